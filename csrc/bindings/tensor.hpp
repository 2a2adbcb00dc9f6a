// Borrows arrays from Python without copying: numpy arrays, and other arrays with DLPack (torch, jax, cupy).
//
// Shape, dtype, layout and device are checked here, once, and the messages use the caller's name for the
// array. The code below the bindings works on pointers only.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

namespace clusterucb {

namespace py = pybind11;

// The memory layout that the DLPack specification defines for capsules named "dltensor".
namespace dlpack {
enum DeviceType : std::int32_t { cpu = 1, cuda = 2, cuda_host = 3, cuda_managed = 13 };

struct Tensor {
  void* data;
  std::int32_t device_type, device_id, ndim;
  std::uint8_t code, bits;
  std::uint16_t lanes;
  std::int64_t* shape;
  std::int64_t* strides;  // in elements; null when contiguous
  std::uint64_t byte_offset;
};

inline std::string dtype(const Tensor& tensor) {
  static const char* const codes[] = {"int", "uint", "float", "opaque", "bfloat", "complex", "bool"};
  const std::string name = tensor.code < 7 ? codes[tensor.code] : "code" + std::to_string(tensor.code);
  return tensor.code == 6 ? name : name + std::to_string(tensor.bits);
}
}  // namespace dlpack

// An expected axis: its name, and its size or -1 for any size.
struct Axis {
  const char* name;
  std::int64_t size;
};

class Tensor {
 public:
  // Borrows `object`, which must outlive the Tensor. `name` is the array's name in messages.
  Tensor(std::string name, const py::object& object) : name_(std::move(name)) {
    if (py::isinstance<py::array>(object)) {
      borrow_numpy(py::reinterpret_borrow<py::array>(object));
    } else if (py::hasattr(object, "__dlpack__") && py::hasattr(object, "__dlpack_device__")) {
      borrow_dlpack(object);
    } else {
      throw py::value_error(name_ + " is " + std::string(py::str(py::type::of(object))) +
                            "; expected a numpy array, a torch tensor or another array with __dlpack__");
    }
  }

  // Checks that the array is contiguous and has one of the dtypes and these axes. Returns *this.
  const Tensor& expect(const std::vector<std::string>& dtypes, const std::vector<Axis>& axes) const {
    bool good = contiguous_ && shape_.size() == axes.size();
    for (std::size_t axis = 0; good && axis < axes.size(); ++axis) {
      good = axes[axis].size < 0 || axes[axis].size == shape_[axis];
    }
    bool known = false;
    for (const auto& dtype : dtypes) known = known || dtype == dtype_;
    if (good && known) return *this;
    std::ostringstream message;
    message << name_ << " is " << describe() << "; expected contiguous ";
    for (std::size_t k = 0; k < dtypes.size(); ++k) {
      message << (k == 0 ? "" : k + 1 < dtypes.size() ? ", " : " or ") << dtypes[k];
    }
    message << " of shape [";
    for (std::size_t axis = 0; axis < axes.size(); ++axis) {
      message << (axis ? ", " : "") << axes[axis].name;
      if (axes[axis].size >= 0) message << "=" << axes[axis].size;
    }
    message << "]";
    throw py::value_error(message.str());
  }

  const Tensor& writable() const {
    if (!writable_) throw py::value_error(name_ + " is read-only; expected an array that can be written to");
    return *this;
  }

  // Checks the device: "cpu", or "cuda:" and its number. Returns *this.
  const Tensor& on(const std::string& device) const {
    if (device_ != device) throw py::value_error(name_ + " is on " + device_ + "; expected it on " + device);
    return *this;
  }

  template <typename T>
  T* data() const {
    return static_cast<T*>(data_);
  }
  std::int64_t size(std::size_t axis) const { return axis < shape_.size() ? shape_[axis] : 0; }
  const std::string& dtype() const { return dtype_; }
  const std::string& device() const { return device_; }
  int device_id() const { return device_id_; }

 private:
  void borrow_numpy(const py::array& array) {
    data_ = const_cast<void*>(array.data());
    dtype_ = py::str(array.dtype());
    shape_.assign(array.shape(), array.shape() + array.ndim());
    contiguous_ = (array.flags() & py::array::c_style) && aligned(array.itemsize());
    writable_ = array.writeable();
    device_ = "cpu";
  }

  void borrow_dlpack(const py::object& object) {
    std::pair<int, int> device;
    try {
      device = object.attr("__dlpack_device__")().cast<std::pair<int, int>>();
    } catch (const py::cast_error&) {
      throw py::value_error(name_ + " has a __dlpack_device__ that does not return two numbers");
    }
    const bool cpu = device.first == dlpack::cpu || device.first == dlpack::cuda_host;
    // stream=-1 means no synchronisation: the kernels run on the stream that the caller passes.
    capsule_ = cpu ? object.attr("__dlpack__")() : object.attr("__dlpack__")(py::arg("stream") = -1);
    const void* pointer = PyCapsule_GetPointer(capsule_.ptr(), "dltensor");
    if (!pointer) throw py::error_already_set();
    const auto& tensor = *static_cast<const dlpack::Tensor*>(pointer);
    data_ = static_cast<char*>(tensor.data) + tensor.byte_offset;
    dtype_ = dlpack::dtype(tensor);
    shape_.assign(tensor.shape, tensor.shape + tensor.ndim);
    contiguous_ = tensor.lanes == 1 && aligned(tensor.bits / 8);
    std::int64_t expected = 1;
    for (int axis = tensor.ndim - 1; axis >= 0 && tensor.strides; --axis) {
      contiguous_ = contiguous_ && (tensor.shape[axis] <= 1 || tensor.strides[axis] == expected);
      expected *= tensor.shape[axis];
    }
    const bool cuda = device.first == dlpack::cuda || device.first == dlpack::cuda_managed;
    device_id_ = device.second;
    device_ = cpu    ? "cpu"
              : cuda ? "cuda:" + std::to_string(device_id_)
                     : "a device of DLPack's type " + std::to_string(device.first);
  }

  bool aligned(std::int64_t itemsize) const {
    return itemsize == 0 ||
           reinterpret_cast<std::uintptr_t>(data_) % static_cast<std::uintptr_t>(itemsize) == 0;
  }

  std::string describe() const {
    std::ostringstream text;
    text << dtype_ << " of shape (";
    for (std::size_t axis = 0; axis < shape_.size(); ++axis) text << (axis ? ", " : "") << shape_[axis];
    text << (shape_.size() == 1 ? ",), " : "), ") << (contiguous_ ? "contiguous" : "not contiguous");
    return text.str();
  }

  std::string name_, dtype_, device_;
  std::vector<std::int64_t> shape_;
  py::object capsule_;  // keeps the memory of a DLPack tensor alive
  void* data_ = nullptr;
  int device_id_ = 0;
  bool contiguous_ = false, writable_ = true;
};

}  // namespace clusterucb
