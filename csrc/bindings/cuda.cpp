// The Python module _cuda: the kernels for CUDA devices. Python code uses it through clusterucb.kernels.ops.
//
// The module links the CUDA runtime statically and does not link torch. It can be imported on a machine
// without a CUDA driver.
#include "clusterucb/cuda.hpp"

#include "segment.hpp"

namespace {

namespace py = pybind11;

std::string version(int number) {
  return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10);
}

// Throws a CUDA error with the versions of driver and runtime, which must be compatible.
void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  int driver = 0, runtime = 0;
  (void)cudaDriverGetVersion(&driver);
  (void)cudaRuntimeGetVersion(&runtime);
  const std::string needed = version(runtime);
  throw std::runtime_error("CUDA cannot be used: " + std::string(cudaGetErrorString(error)) + " (error " +
                           std::to_string(error) + "). " +
                           (driver ? "The NVIDIA driver is for CUDA " + version(driver)
                                   : std::string("No NVIDIA driver was found")) +
                           "; this extension was built with CUDA " + needed + " and needs a driver for " +
                           version(runtime / 1000 * 1000) + " or newer");
}

// Makes a device the current device for as long as the object lives.
class OnDevice {
 public:
  explicit OnDevice(int device) {
    check(cudaGetDevice(&before_));
    check(cudaSetDevice(device));
  }
  ~OnDevice() { (void)cudaSetDevice(before_); }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int before_ = 0;
};

void accumulate(const py::object& gradient, std::int64_t offset, int kind,
                const std::array<float, 4>& constants, const py::object& m, const py::object& v,
                const py::object& directions, const std::optional<clusterucb::SketchArgument>& sketch,
                const py::object& norm2, const py::object& products, const py::object& sketched,
                const py::object& workspace, std::int64_t stream) {
  const auto arguments = clusterucb::arguments_of(gradient, offset, kind, constants, m, v, directions, sketch,
                                                  norm2, products, sketched);
  if (arguments.device.rfind("cuda:", 0) != 0) {
    throw py::value_error("gradient is on " + arguments.device +
                          "; expected it on a CUDA device, such as cuda:0");
  }
  const clusterucb::Tensor bytes("workspace", workspace);
  bytes.on(arguments.device).expect({"uint8"}, {{"bytes", -1}}).writable();
  const std::int64_t needed = clusterucb::workspace_bytes(arguments.segment);
  if (bytes.size(0) < needed || reinterpret_cast<std::uintptr_t>(bytes.data<void>()) % 16) {
    throw py::value_error("workspace has " + std::to_string(bytes.size(0)) + " bytes; expected at least " +
                          std::to_string(needed) + " (workspace_bytes), aligned to 16 bytes");
  }
  const py::gil_scoped_release release;
  const OnDevice on(arguments.device_id);
  clusterucb::accumulate_cuda(arguments.segment, bytes.data<void>(), reinterpret_cast<cudaStream_t>(stream));
}

std::int64_t workspace_bytes(std::int64_t samples, std::int64_t size, std::int64_t offset,
                             std::int64_t n_directions,
                             const std::optional<clusterucb::SketchArgument>& sketch) {
  if (samples < 0 || size < 0 || offset < 0 || n_directions < 0) {
    throw py::value_error("a size is below 0; expected at least 0");
  }
  clusterucb::Segment segment{};
  segment.samples = samples;
  segment.size = size;
  segment.offset = offset;
  segment.n_directions = n_directions;
  segment.sketch = clusterucb::sketch_of(sketch);
  return clusterucb::workspace_bytes(segment);
}

int device_count() {
  int count = 0;
  check(cudaGetDeviceCount(&count));
  return count;
}

}  // namespace

PYBIND11_MODULE(_cuda, module) {
  module.doc() = "The compiled kernels for CUDA devices. Use them through clusterucb.kernels.ops.";
  module.def("accumulate", &accumulate, py::arg("gradient"), py::arg("offset"), py::arg("kind"),
             py::arg("constants"), py::arg("m"), py::arg("v"), py::arg("directions"), py::arg("sketch"),
             py::arg("norm2"), py::arg("products"), py::arg("sketched"), py::arg("workspace"),
             py::arg("stream"));
  module.def("workspace_bytes", &workspace_bytes, py::arg("samples"), py::arg("size"), py::arg("offset"),
             py::arg("n_directions"), py::arg("sketch"),
             "Return how many bytes of device memory the partial sums of a segment's pass take.");
  module.def("device_count", &device_count,
             "Return the number of CUDA devices. Raises RuntimeError with the reason if there are none.");
}
