// Checks the arguments from Python and makes the kernels' Segment from them. Both bindings use it.
#pragma once

#include <pybind11/stl.h>

#include <array>
#include <limits>
#include <optional>

#include "clusterucb/kernels.hpp"
#include "tensor.hpp"

namespace clusterucb {

// A sketch as Python passes it: d, s (0: dense) and six key words for each block (projection.Sketch.keys).
using SketchArgument = std::tuple<std::int64_t, int, std::vector<std::uint32_t>>;

inline Sketch sketch_of(const std::optional<SketchArgument>& given) {
  Sketch sketch{};
  if (!given) return sketch;
  const auto& [dimension, blocks, keys] = *given;
  const bool known = blocks == 0 || blocks == 1 || blocks == 2 || blocks == 4;
  const std::size_t keyed = blocks ? static_cast<std::size_t>(blocks) : 1;
  if (!known || dimension < 1 || keys.size() != 6 * keyed ||
      (blocks && (dimension < 64 * blocks || (dimension & (dimension - 1))))) {
    throw py::value_error("sketch is not one that clusterucb.kernels.projection.Sketch describes");
  }
  sketch.dimension = dimension;
  sketch.blocks = blocks;
  for (std::size_t block = 0; block < keyed; ++block) {
    const std::uint32_t* words = keys.data() + 6 * block;
    sketch.block[block] = {{words[0], words[1]}, {words[2], words[3]}, {words[4], words[5]}};
  }
  return sketch;
}

// A segment, and the arrays that its pointers point into.
struct Arguments {
  Segment segment{};
  std::vector<Tensor> tensors;
  std::string device;
  int device_id = 0;

  const Tensor& take(const char* name, const py::object& object) {
    tensors.emplace_back(name, object);
    return tensors.back().on(device);
  }
};

inline Arguments arguments_of(const py::object& gradient, std::int64_t offset, int kind,
                              const std::array<float, 4>& constants, const py::object& m, const py::object& v,
                              const py::object& directions, const std::optional<SketchArgument>& sketch,
                              const py::object& norm2, const py::object& products,
                              const py::object& sketched) {
  Arguments arguments;
  arguments.tensors.reserve(7);
  Segment& s = arguments.segment;
  const Tensor& given = arguments.tensors.emplace_back("gradient", gradient);
  given.expect({"float32", "bfloat16", "float16"}, {{"B", -1}, {"n", -1}});
  arguments.device = given.device();
  arguments.device_id = given.device_id();
  s.gradient = given.data<void>();
  s.dtype = given.dtype() == "float32" ? Dtype::f32 : given.dtype() == "bfloat16" ? Dtype::bf16 : Dtype::f16;
  s.samples = given.size(0);
  s.size = given.size(1);
  s.offset = offset;
  if (kind < 0 || kind > static_cast<int>(Kind::sgd)) throw py::value_error("unknown kind of preconditioner");
  s.kind = static_cast<Kind>(kind);
  s.constants = {constants[0], constants[1], constants[2], constants[3]};
  s.sketch = sketch_of(sketch);
  if (offset < 0) throw py::value_error("offset is " + std::to_string(offset) + "; expected at least 0");
  if (s.size > std::numeric_limits<std::int64_t>::max() - offset) {
    throw py::value_error("the segment of " + std::to_string(s.size) + " elements from " +
                          std::to_string(offset) + " on ends beyond 2^63; expected a smaller offset");
  }
  if (s.sketch.blocks && offset % kLanes) {
    throw py::value_error(
        "offset is " + std::to_string(offset) +
        "; expected a multiple of 8, as a sparse sketch requires (ParameterManifest places segments there)");
  }
  std::int64_t total = -1;  // P, once it is known from an array's shape
  const auto within = [&](const Tensor& array, std::size_t axis) {
    total = array.size(axis);
    if (s.size > total - offset) {
      throw py::value_error("the segment [" + std::to_string(offset) + ", " +
                            std::to_string(offset + s.size) +
                            ") is not within the flat space; expected 0 to " + std::to_string(total));
    }
  };
  if (!directions.is_none()) {
    const Tensor& array =
        arguments.take("directions", directions).expect({"float32"}, {{"S", -1}, {"P", -1}});
    within(array, 1);
    s.n_directions = array.size(0);
    s.stride = total;
    s.directions = array.data<float>() + offset;
    s.products = arguments.take("products", products)
                     .expect({"float64"}, {{"B", s.samples}, {"S", s.n_directions}})
                     .writable()
                     .data<double>();
  }
  if (s.kind != Kind::sgd) {
    const Tensor& first = arguments.take("moments m", m).expect({"float32"}, {{"P", total}});
    within(first, 0);
    s.m = first.data<float>() + offset;
    s.v = arguments.take("moments v", v).expect({"float32"}, {{"P", total}}).data<float>() + offset;
  }
  s.norm2 = arguments.take("norm2", norm2).expect({"float64"}, {{"B", s.samples}}).writable().data<double>();
  if (s.sketch.dimension) {
    s.sketched = arguments.take("sketched", sketched)
                     .expect({"float32"}, {{"B", s.samples}, {"d", s.sketch.dimension}})
                     .writable()
                     .data<float>();
  }
  return arguments;
}

}  // namespace clusterucb
