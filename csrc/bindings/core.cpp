// The Python module _core. python/clusterucb/ops.py checks dtypes and says what is wrong in a user's words;
// here only what could read or write out of bounds is checked again.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <optional>
#include <stdexcept>

#include "clusterucb/kernels.hpp"

namespace py = pybind11;
using clusterucb::Constants;
using clusterucb::Kind;
using clusterucb::Segment;

namespace {

template <typename T>
using Array = py::array_t<T, py::array::c_style>;

void require(bool good, const char* what) {
  if (!good) throw std::invalid_argument(what);
}

void accumulate(const Array<float>& gradient, std::int64_t offset, int kind,
                const std::array<float, 7>& constants, const std::optional<Array<float>>& m,
                const std::optional<Array<float>>& v, const Array<float>& directions, Array<double>& norm2,
                Array<double>& products) {
  require(gradient.ndim() == 2 && directions.ndim() == 2, "gradient and directions must have 2 dimensions");
  const std::int64_t samples = gradient.shape(0), size = gradient.shape(1);
  const std::int64_t count = directions.shape(0), stride = directions.shape(1);
  require(kind >= 0 && kind <= static_cast<int>(Kind::sgd), "unknown kind of preconditioner");
  require(offset >= 0 && offset <= stride && size <= stride - offset, "the segment exceeds the directions");
  require(norm2.ndim() == 1 && norm2.shape(0) == samples, "norm2 must have shape [B]");
  require(products.ndim() == 2 && products.shape(0) == samples && products.shape(1) == count,
          "products must have shape [B, S]");
  Segment segment{};
  segment.kind = static_cast<Kind>(kind);
  if (segment.kind != Kind::sgd) {
    require(m && v && m->size() == stride && v->size() == stride, "moments must have shape [P]");
    segment.m = m->data() + offset;
    segment.v = v->data() + offset;
  }
  segment.gradient = gradient.data();
  segment.directions = directions.data() + offset;
  segment.samples = samples;
  segment.size = size;
  segment.count = count;
  segment.stride = stride;
  segment.constants = {constants[0], constants[1], constants[2], constants[3],
                       constants[4], constants[5], constants[6]};
  segment.norm2 = norm2.mutable_data();
  segment.products = products.mutable_data();
  py::gil_scoped_release release;
  clusterucb::accumulate(segment);
}

}  // namespace

PYBIND11_MODULE(_core, module) {
  module.doc() = "The compiled kernels; use them through clusterucb.ops.";
  module.def("accumulate", &accumulate, py::arg("gradient").noconvert(), py::arg("offset"), py::arg("kind"),
             py::arg("constants"), py::arg("m").noconvert(), py::arg("v").noconvert(),
             py::arg("directions").noconvert(), py::arg("norm2").noconvert(),
             py::arg("products").noconvert());
  module.def("simd", &clusterucb::simd, "Name the kernels in use: avx2 or generic.");
}
