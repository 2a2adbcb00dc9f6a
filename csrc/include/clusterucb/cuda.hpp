// Launches the CUDA kernels, without allocating memory and without waiting for the device.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "clusterucb/kernels.hpp"

namespace clusterucb {

// Returns how many bytes of device memory a segment's pass needs. Only the segment's sizes matter.
std::int64_t workspace_bytes(const Segment& segment);

// Runs the pass over a segment on `stream`. The segment's pointers belong to the current device. `workspace`
// has workspace_bytes(segment) bytes, at an address that is a multiple of 16, and may be reused once the
// stream has completed the pass. Throws std::runtime_error if a kernel cannot be launched.
void accumulate_cuda(const Segment& segment, void* workspace, cudaStream_t stream);

}  // namespace clusterucb
