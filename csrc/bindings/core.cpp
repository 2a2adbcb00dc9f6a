// The Python module _core: the kernels for the CPU. Python code uses it through clusterucb.kernels.ops.
#include "segment.hpp"

namespace {

namespace py = pybind11;

void accumulate(const py::object& gradient, std::int64_t offset, int kind,
                const std::array<float, 4>& constants, const py::object& m, const py::object& v,
                const py::object& directions, const std::optional<clusterucb::SketchArgument>& sketch,
                const py::object& norm2, const py::object& products, const py::object& sketched,
                int threads) {
  auto arguments = clusterucb::arguments_of(gradient, offset, kind, constants, m, v, directions, sketch,
                                            norm2, products, sketched);
  arguments.tensors.front().on("cpu");
  py::gil_scoped_release release;
  clusterucb::accumulate(arguments.segment, threads);
}

}  // namespace

PYBIND11_MODULE(_core, module) {
  module.doc() = "The compiled kernels for the CPU. Use them through clusterucb.kernels.ops.";
  module.def("accumulate", &accumulate, py::arg("gradient"), py::arg("offset"), py::arg("kind"),
             py::arg("constants"), py::arg("m"), py::arg("v"), py::arg("directions"), py::arg("sketch"),
             py::arg("norm2"), py::arg("products"), py::arg("sketched"), py::arg("threads"));
  module.def("simd", &clusterucb::simd, "Return the name of the kernels in use: avx512, avx2 or generic.");
}
