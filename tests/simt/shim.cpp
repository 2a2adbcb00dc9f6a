// The CUDA launcher and kernels as a library for ctypes. tests/simt/cuda_runtime.h runs them on a CPU.
#include <cstring>
#include <exception>
#include <memory>

#include "../../csrc/cuda/accumulate.cu"

using namespace clusterucb;

namespace {

Segment segment_of(std::int64_t samples, std::int64_t size, std::int64_t offset, std::int64_t n_directions,
                   std::int64_t dimension, int blocks) {
  Segment segment{};
  segment.samples = samples;
  segment.size = size;
  segment.offset = offset;
  segment.n_directions = n_directions;
  segment.sketch.dimension = dimension;
  segment.sketch.blocks = blocks;
  return segment;
}

}  // namespace

// Makes threads take turns from the last to the first, or again from the first to the last.
extern "C" void simt_descending(int descending) { simt::descending = descending; }

extern "C" std::int64_t simt_workspace_bytes(std::int64_t samples, std::int64_t size, std::int64_t offset,
                                             std::int64_t n_directions, std::int64_t dimension, int blocks) {
  return workspace_bytes(segment_of(samples, size, offset, n_directions, dimension, blocks));
}

// Returns 0, or 1 with a message if the launch failed. m, v and the directions already point at the segment's
// offset.
extern "C" int simt_accumulate(const void* gradient, int dtype, const float* m, const float* v,
                               const float* directions, std::int64_t samples, std::int64_t size,
                               std::int64_t offset, std::int64_t n_directions, std::int64_t stride, int kind,
                               const float* constants, std::int64_t dimension, int blocks,
                               const std::uint32_t* keys, double* norm2, double* products, float* sketched,
                               char* message, std::size_t message_size) {
  Segment segment = segment_of(samples, size, offset, n_directions, dimension, blocks);
  segment.gradient = gradient;
  segment.dtype = static_cast<Dtype>(dtype);
  segment.m = m;
  segment.v = v;
  segment.directions = directions;
  segment.stride = stride;
  segment.kind = static_cast<Kind>(kind);
  segment.constants = {constants[0], constants[1], constants[2], constants[3]};
  for (int block = 0; block < (blocks ? blocks : dimension ? 1 : 0); ++block) {
    const std::uint32_t* words = keys + 6 * block;
    segment.sketch.block[block] = {{words[0], words[1]}, {words[2], words[3]}, {words[4], words[5]}};
  }
  segment.norm2 = norm2;
  segment.products = products;
  segment.sketched = sketched;
  // The workspace has exactly the size that workspace_bytes returns and is filled with NaN, so that a read
  // before a write shows in the results.
  const auto bytes = static_cast<std::size_t>(workspace_bytes(segment));
  const std::unique_ptr<char[]> workspace(new char[bytes]);
  std::memset(workspace.get(), 0xff, bytes);
  try {
    accumulate_cuda(segment, workspace.get(), nullptr);
  } catch (const std::exception& error) {
    std::snprintf(message, message_size, "%s", error.what());
    return 1;
  }
  return 0;
}

// Makes the next launch fail.
extern "C" void simt_fail() { simt::last_error = cudaErrorInvalidConfiguration; }

namespace {

// Reverses 64 numbers through shared memory. Without the first barrier the result is wrong.
__global__ void turn_round(int* numbers, bool first, bool second) {
  __shared__ int kept[64];
  kept[threadIdx.x] = numbers[threadIdx.x];
  if (first) __syncthreads();
  numbers[threadIdx.x] = kept[63 - threadIdx.x];
  if (second && threadIdx.x < 32) __syncthreads();  // the other threads never reach it
}

}  // namespace

extern "C" void simt_turn_round(int* numbers, int first, int second) {
  CLUSTERUCB_LAUNCH(turn_round, dim3(1), dim3(64), nullptr, numbers, first != 0, second != 0);
}
