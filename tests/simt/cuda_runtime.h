// Runs unmodified CUDA kernels on a CPU. This header replaces the toolkit's when g++ compiles a .cu file.
//
// The threads of a block are fibres on one thread of the processor. Each fibre runs until it waits at a
// barrier of the block or at a shuffle of its warp; then the next fibre runs. Blocks run one after the other.
// A kernel that lacks a barrier gives another result when the fibres take turns in the opposite order
// (simt::descending). A kernel whose threads do not all reach a barrier aborts the program.
#pragma once

#include <ucontext.h>

#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <vector>
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

#define __global__
#define __device__
#define __host__
#define __shared__ static  // blocks run one after the other
#define __launch_bounds__(...)
#define CLUSTERUCB_LAUNCH(kernel, grid, block, stream, ...) \
  simt::launch(grid, block, stream, [&] { kernel(__VA_ARGS__); })

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
inline dim3 gridDim, blockDim, blockIdx, threadIdx;

using cudaStream_t = struct SimtStream*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidConfiguration = 9 };

namespace simt {

inline cudaError_t last_error = cudaSuccess;
inline bool descending = false;
constexpr std::size_t kStack = 1 << 16, kWarp = 32;

// A barrier that a group of threads waits at.
struct Barrier {
  unsigned waiting = 0, passed = 0;
};

struct Fibre {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStack]};
  bool done = false;
  unsigned shuffles = 0;
  double given[2];  // two, because a thread may reach its next shuffle before the others have read this one
  void* fake_stack = nullptr;
};

inline std::vector<Fibre> fibres;
inline std::vector<Barrier> warps;
inline Barrier block;
inline ucontext_t scheduler;
inline std::size_t current = 0, threads = 0;
inline bool moved = false;  // whether a thread ended or a barrier opened in this round of turns
inline const std::function<void()>* body = nullptr;

// AddressSanitizer must be told about every switch of stacks.
inline void leave(void** fake_stack, const void* bottom, std::size_t size) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(fake_stack, bottom, size);
#else
  (void)fake_stack, (void)bottom, (void)size;
#endif
}
inline const void* scheduler_bottom = nullptr;
inline std::size_t scheduler_size = 0;
inline void arrive(void* fake_stack, const void** bottom, std::size_t* size) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(fake_stack, bottom, size);
#else
  (void)fake_stack, (void)bottom, (void)size;
#endif
}

inline void yield() {
  Fibre& fibre = fibres[current];
  leave(&fibre.fake_stack, scheduler_bottom, scheduler_size);
  swapcontext(&fibre.context, &scheduler);
  arrive(fibre.fake_stack, nullptr, nullptr);
}

inline void start() {
  arrive(nullptr, &scheduler_bottom, &scheduler_size);
  (*body)();
  fibres[current].done = moved = true;
  leave(nullptr, scheduler_bottom, scheduler_size);  // the stack is not needed any more
  setcontext(&scheduler);
}

inline void wait(Barrier& barrier, std::size_t size) {
  const unsigned mine = barrier.passed;
  if (++barrier.waiting == size) {
    barrier.waiting = 0;
    ++barrier.passed;
    moved = true;
  }
  while (barrier.passed == mine) yield();
}

template <typename T>
T shuffle_xor(T value, unsigned mask) {
  static_assert(sizeof(T) <= sizeof(double), "a shuffle moves one word or two");
  Fibre& fibre = fibres[current];
  const unsigned turn = fibre.shuffles++ % 2;
  *reinterpret_cast<T*>(&fibre.given[turn]) = value;
  wait(warps[current / kWarp], kWarp);
  return *reinterpret_cast<T*>(&fibres[current ^ mask].given[turn]);
}

inline void run_block() {
  block = Barrier();
  warps.assign((threads + kWarp - 1) / kWarp, Barrier());
  for (std::size_t k = 0; k < threads; ++k) {
    Fibre& fibre = fibres[k];
    fibre.done = false;
    fibre.shuffles = 0;
    getcontext(&fibre.context);
    fibre.context.uc_stack.ss_sp = fibre.stack.get();
    fibre.context.uc_stack.ss_size = kStack;
    makecontext(&fibre.context, start, 0);
  }
  for (bool left = true; left;) {
    left = moved = false;
    for (std::size_t k = 0; k < threads; ++k) {
      current = descending ? threads - 1 - k : k;
      Fibre& fibre = fibres[current];
      if (fibre.done) continue;
      threadIdx = dim3(current % blockDim.x, current / blockDim.x % blockDim.y, 0);
      void* fake_stack = nullptr;
      leave(&fake_stack, fibre.stack.get(), kStack);
      swapcontext(&scheduler, &fibre.context);
      arrive(fake_stack, nullptr, nullptr);
      left = left || !fibre.done;
    }
    if (left && !moved) {
      std::fputs("simt: threads wait at a barrier that others never come to\n", stderr);
      std::abort();
    }
  }
}

inline void launch(dim3 grid, dim3 size, cudaStream_t, const std::function<void()>& kernel) {
  threads = std::size_t(size.x) * size.y * size.z;
  if (!threads || threads > 1024 || !grid.x || !grid.y || !grid.z) {
    last_error = cudaErrorInvalidConfiguration;
    return;
  }
  gridDim = grid;
  blockDim = size;
  body = &kernel;
  if (fibres.size() < threads) fibres = std::vector<Fibre>(threads);
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        blockIdx = dim3(x, y, z);
        run_block();
      }
    }
  }
}

}  // namespace simt

inline void __syncthreads() { simt::wait(simt::block, simt::threads); }
template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return simt::shuffle_xor(value, static_cast<unsigned>(mask));
}

inline cudaError_t cudaGetLastError() {
  const cudaError_t error = simt::last_error;
  simt::last_error = cudaSuccess;
  return error;
}
inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "invalid configuration argument";
}
