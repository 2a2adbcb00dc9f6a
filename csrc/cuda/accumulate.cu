// Launches the CUDA kernels: chooses the kernels for a segment and divides the segment among their threads.
#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "clusterucb/cuda.hpp"
#include "kernels.cuh"

// tests/simt, which runs the kernels on a CPU, defines its own.
#ifndef CLUSTERUCB_LAUNCH
#define CLUSTERUCB_LAUNCH(kernel, grid, block, stream, ...) kernel<<<grid, block, 0, stream>>>(__VA_ARGS__)
#endif

namespace clusterucb {
namespace {

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

int log2_of(std::int64_t power) {
  int bits = 0;
  while (std::int64_t(1) << bits < power) ++bits;
  return bits;
}

bool aligned(const void* pointer, std::size_t bytes) {
  return reinterpret_cast<std::uintptr_t>(pointer) % bytes == 0;
}

std::int64_t itemsize(Dtype dtype) { return dtype == Dtype::f32 ? 4 : 2; }

// Returns whether whole vectors of `size` elements can be loaded from every sample's gradient and the
// moments.
bool whole_vectors(const Segment& s, std::int64_t size) {
  const auto bytes = static_cast<std::size_t>(std::min<std::int64_t>(16, size * itemsize(s.dtype)));
  return s.size * itemsize(s.dtype) % bytes == 0 && aligned(s.gradient, bytes) && aligned(s.m, 16) &&
         aligned(s.v, 16);
}

// Returns whether inner_products runs. Without directions it computes only the norm, if no sketch computes
// it.
bool needs_products(const Segment& s) { return s.n_directions || !s.sketch.dimension; }

// Returns into how many slices a segment is cut, each with a sketch of its own. A slice costs d floats
// written and read for each sample. With 16 d elements in a slice, this is less than a fourth of the cost of
// reading bf16 gradients; and 2^21 / d slices keep any GPU busy. A short segment is cut into finer slices,
// down to 4 d elements, because it would otherwise have too few threads.
std::int64_t sketch_slices(const Segment& s) {
  const std::int64_t d = s.sketch.dimension;
  const std::int64_t wide = std::min(s.size / (16 * d), (std::int64_t(1) << 21) / d);
  const std::int64_t fine = std::min(s.size / (4 * d), (std::int64_t(1) << 18) / d);
  return std::clamp<std::int64_t>(std::max(wide, fine), 1, 512);
}

SparsePlan sparse_plan(const Segment& s) {
  SparsePlan plan{};
  plan.block_bits = log2_of(s.sketch.blocks);
  plan.width_bits = log2_of(s.sketch.dimension) - plan.block_bits;
  const std::int64_t rows = ((s.offset + s.size - 1) >> plan.width_bits) - (s.offset >> plan.width_bits) + 1;
  plan.rows = ceil_div(rows, sketch_slices(s));
  plan.slices = ceil_div(rows, plan.rows);
  plan.tiles = ceil_div(plan.slices * s.sketch.dimension / kLanes, kSketchThreads);
  return plan;
}

DensePlan dense_plan(const Segment& s) {
  DensePlan plan{};
  plan.length = ceil_div(ceil_div(s.size, sketch_slices(s)), kChunk) * kChunk;
  plan.slices = ceil_div(s.size, plan.length);
  plan.tiles = static_cast<int>(ceil_div(s.sketch.dimension, 32 * kWarps));
  return plan;
}

ProductPlan product_plan(const Segment& s) {
  constexpr std::int64_t unit = kWarps * kTile, most = 1024;  // so many slices are enough for any GPU
  ProductPlan plan{};
  plan.length = static_cast<int>(std::max(2 * unit, ceil_div(ceil_div(s.size, most), unit) * unit));
  plan.slices = ceil_div(s.size, plan.length);
  plan.team = 1;
  while (plan.team < kWarps && plan.team * kDirections < s.n_directions) plan.team *= 2;
  plan.sets = static_cast<int>(std::max<std::int64_t>(1, ceil_div(s.n_directions, plan.team * kDirections)));
  return plan;
}

// What a plan needs of the workspace. The squares are placed before the sums, so that both are aligned.
struct Need {
  std::int64_t squares, sums;  // bytes, each a multiple of 16
};

Need need(std::int64_t squares, std::int64_t sums) {
  return {ceil_div(squares, 16) * 16, ceil_div(sums, 16) * 16};
}
Need sketch_need(const Segment& s, std::int64_t slices, std::int64_t tiles) {
  return need(8 * tiles * s.samples, 4 * slices * s.samples * s.sketch.dimension);
}
Need need_of(const Segment& s, const SparsePlan& plan) { return sketch_need(s, plan.slices, plan.tiles); }
Need need_of(const Segment& s, const DensePlan& plan) { return sketch_need(s, plan.slices, plan.slices); }
Need need_of(const Segment& s, const ProductPlan& plan) {
  return need(8 * plan.slices * s.samples, 8 * plan.slices * s.samples * s.n_directions);
}

template <typename Plan>
void place(const Segment& s, Plan& plan, void* workspace) {
  plan.squares_to = static_cast<double*>(workspace);
  plan.sums = reinterpret_cast<std::remove_reference_t<decltype(plan.sums)>>(static_cast<char*>(workspace) +
                                                                             need_of(s, plan).squares);
}

// Throws an error if the launch of a kernel failed.
void check(const Segment& s, const char* kernel, dim3 grid, dim3 block) {
  const cudaError_t error = cudaGetLastError();
  if (error == cudaSuccess) return;
  throw std::runtime_error("launching the CUDA kernel " + std::string(kernel) + " with " +
                           std::to_string(grid.x) + " blocks of " + std::to_string(block.x) + " x " +
                           std::to_string(block.y) + " threads failed for B=" + std::to_string(s.samples) +
                           ", n=" + std::to_string(s.size) + ", S=" + std::to_string(s.n_directions) +
                           ", d=" + std::to_string(s.sketch.dimension) + ": " + cudaGetErrorString(error));
}

template <typename Number>
void launch_add_up(const Segment& s, const Number* sums, std::int64_t rows, std::int64_t columns, Number* to,
                   cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(ceil_div(columns, kWarp)));
  const dim3 block(kWarp, rows < 8 ? 1 : rows < 64 ? 8 : kWarp);
  CLUSTERUCB_LAUNCH(add_up<Number>, grid, block, stream, sums, rows, columns, to);
  check(s, "add_up", grid, block);
}

// Calls function(kind) with the kind as a compile-time constant.
template <typename Function>
void with_kind(Kind kind, Function function) {
  switch (kind) {
    case Kind::adam_less:
      return function(std::integral_constant<Kind, Kind::adam_less>{});
    case Kind::adam:
      return function(std::integral_constant<Kind, Kind::adam>{});
    case Kind::second_moment:
      return function(std::integral_constant<Kind, Kind::second_moment>{});
    case Kind::sgd:
      return function(std::integral_constant<Kind, Kind::sgd>{});
  }
}

// Calls function(kind, an element of the gradient's type, the number of samples that a thread works on).
template <typename Function>
void with_types(const Segment& s, Function function) {
  with_kind(s.kind, [&](auto kind) {
    const auto with = [&](auto element) {
      if (s.samples == 1) {
        function(kind, element, std::integral_constant<int, 1>{});
      } else {
        function(kind, element, std::integral_constant<int, kSamples>{});
      }
    };
    if (s.dtype == Dtype::f32) return with(float{});
    if (s.dtype == Dtype::bf16) return with(BFloat16{});
    return with(Float16{});
  });
}

void run_products(const Segment& s, void* workspace, cudaStream_t stream) {
  ProductPlan plan = product_plan(s);
  place(s, plan, workspace);
  // `directions` points at the segment's offset, so its alignment covers both. Without directions it is
  // ignored.
  plan.vector =
      whole_vectors(s, kVector) && (!s.n_directions || (aligned(s.directions, 16) && s.stride % 4 == 0));
  with_types(s, [&](auto kind, auto element, auto samples) {
    const auto kernel = inner_products<decltype(kind)::value, decltype(element), decltype(samples)::value>;
    const std::int64_t groups = ceil_div(s.samples, decltype(samples)::value);
    const dim3 grid(static_cast<unsigned>(plan.slices * plan.sets * groups)), block(kWarps * kWarp);
    CLUSTERUCB_LAUNCH(kernel, grid, block, stream, s, plan);
    check(s, "inner_products", grid, block);
  });
  launch_add_up<double>(s, plan.squares_to, plan.slices, s.samples, s.norm2, stream);
  if (s.n_directions) {
    launch_add_up<double>(s, plan.sums, plan.slices, s.samples * s.n_directions, s.products, stream);
  }
}

template <typename Plan>
void add_up_sketches(const Segment& s, const Plan& plan, std::int64_t squares, cudaStream_t stream) {
  launch_add_up<float>(s, plan.sums, plan.slices, s.samples * s.sketch.dimension, s.sketched, stream);
  if (plan.squares) launch_add_up<double>(s, plan.squares_to, squares, s.samples, s.norm2, stream);
}

void run_sketch(const Segment& s, void* workspace, cudaStream_t stream) {
  if (!s.sketch.blocks) {
    DensePlan plan = dense_plan(s);
    place(s, plan, workspace);
    plan.squares = !needs_products(s);
    const std::int64_t groups = ceil_div(s.samples, kSamples);
    const dim3 grid(static_cast<unsigned>(plan.slices * plan.tiles * groups)), block(kWarps * kWarp);
    CLUSTERUCB_LAUNCH(dense_sketch, grid, block, stream, s, plan);
    check(s, "dense_sketch", grid, block);
    return add_up_sketches(s, plan, plan.slices, stream);
  }
  SparsePlan plan = sparse_plan(s);
  place(s, plan, workspace);
  plan.vector = whole_vectors(s, kLanes);
  plan.squares = !needs_products(s);
  with_types(s, [&](auto kind, auto element, auto samples) {
    const auto kernel = sparse_sketch<decltype(kind)::value, decltype(element), decltype(samples)::value>;
    const std::int64_t groups = ceil_div(s.samples, decltype(samples)::value);
    const dim3 grid(static_cast<unsigned>(plan.tiles * groups)), block(kSketchThreads);
    CLUSTERUCB_LAUNCH(kernel, grid, block, stream, s, plan);
    check(s, "sparse_sketch", grid, block);
  });
  add_up_sketches(s, plan, plan.tiles, stream);
}

}  // namespace

std::int64_t workspace_bytes(const Segment& s) {
  if (!s.samples || !s.size) return 0;
  const auto bytes = [&](const auto& plan) {
    const Need needed = need_of(s, plan);
    return needed.squares + needed.sums;
  };
  const std::int64_t products = needs_products(s) ? bytes(product_plan(s)) : 0;
  if (!s.sketch.dimension) return products;
  // The two run one after the other, so they share the memory.
  return std::max(products, s.sketch.blocks ? bytes(sparse_plan(s)) : bytes(dense_plan(s)));
}

// Products and a sketch take two passes over the gradient: a thread's sums for either of them fill the
// registers, and the sums for both would spill into memory.
void accumulate_cuda(const Segment& s, void* workspace, cudaStream_t stream) {
  if (!s.samples || !s.size) return;
  if (!aligned(workspace, 16)) throw std::runtime_error("the workspace is not at a multiple of 16 bytes");
  if (needs_products(s)) run_products(s, workspace, stream);
  if (s.sketch.dimension) run_sketch(s, workspace, stream);
}

}  // namespace clusterucb
