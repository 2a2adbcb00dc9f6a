// What the kernels take: raw pointers and sizes. Whoever calls them has checked shapes and bounds.
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
  std::int64_t offset;  // of the segment in the flat space; a multiple of 8 where there is a sparse sketch
  std::int64_t count;   // S
  std::int64_t stride;  // P, floats from one direction to the next
  Kind kind;
  Constants constants;
  Sketch sketch;
  double* norm2;     // [B], added to
  double* products;  // [B, S], added to
  float* sketched;   // [B, d], added to; not scaled
};

// Elements [begin, end) of a segment, and what their contributions are added to; laid out like the segment's.
struct Range {
  std::int64_t begin, end;
  double *norm2, *products;
  float* sketched;
};

void accumulate_generic(const Segment& segment, const Range& range);
void accumulate_avx2(const Segment& segment, const Range& range);
void accumulate_avx512(const Segment& segment, const Range& range);

// Runs the fastest kernel of this machine, or the one that CLUSTERUCB_SIMD names (generic, avx2, avx512),
// on up to `threads` threads. The result does not depend on their number.
void accumulate(const Segment& segment, int threads);
const char* simd();

}  // namespace clusterucb
