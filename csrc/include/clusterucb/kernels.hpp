// The kernels and their arguments: raw pointers and sizes. The caller has checked shapes and bounds.
#pragma once

#include <cstdint>

#include "clusterucb/precondition.hpp"
#include "clusterucb/sketch.hpp"

namespace clusterucb {

enum class Dtype : int { f32 = 0, bf16 = 1, f16 = 2 };

// One segment of the flat parameter space, for B samples, S directions and a sketch of dimension d.
struct Segment {
  const void* gradient;  // [B, n] of dtype
  Dtype dtype;
  const float* m;           // [n], null for sgd
  const float* v;           // [n], null for sgd
  const float* directions;  // [S, stride], at the segment's offset; null when S is 0
  std::int64_t samples;     // B
  std::int64_t size;        // n
  std::int64_t offset;  // where the segment begins in the flat space; with a sparse sketch, a multiple of 8
  std::int64_t n_directions;  // S
  std::int64_t stride;        // P, floats from one direction to the next
  Kind kind;
  Constants constants;
  Sketch sketch;
  double* norm2;     // [B], squared norms; the pass adds to them
  double* products;  // [B, S], inner products; the pass adds to them
  float* sketched;   // [B, d], unscaled sketches; the pass adds to them
};

// The elements [begin, end) of a segment, and the sums that they are added to, in the layout of the segment's
// sums.
struct Range {
  std::int64_t begin, end;
  double *norm2, *products;
  float* sketched;
};

void accumulate_generic(const Segment& segment, const Range& range);
void accumulate_avx2(const Segment& segment, const Range& range);
void accumulate_avx512(const Segment& segment, const Range& range);

// Runs the fastest kernel that this machine can run, or the kernel that CLUSTERUCB_SIMD names (generic, avx2,
// avx512), on up to `threads` threads. The result does not depend on the number of threads.
void accumulate(const Segment& segment, int threads);

// Returns the name of the kernel that accumulate runs.
const char* simd();

}  // namespace clusterucb
