// The launcher of the CUDA kernels. It allocates nothing and waits for nothing.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "clusterucb/kernels.hpp"

namespace clusterucb {

// Bytes of device memory that a segment's pass needs, by its sizes alone.
std::int64_t workspace_bytes(const Segment& segment);

// Runs the pass over a segment whose pointers are the current device's, on `stream`. `workspace` has
// workspace_bytes(segment) bytes at a multiple of 16, and is free again once the stream has passed. Throws
// std::runtime_error where a kernel cannot be launched.
void accumulate_cuda(const Segment& segment, void* workspace, cudaStream_t stream);

}  // namespace clusterucb
