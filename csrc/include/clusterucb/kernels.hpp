// What the kernels take: raw pointers and sizes. Whoever calls them has checked shapes and bounds.
#pragma once

#include <cstdint>

#include "clusterucb/precondition.hpp"

namespace clusterucb {

// One segment of the flat parameter space, for B samples and S directions.
struct Segment {
  const float* gradient;    // [B, n]
  const float* m;           // [n], null for sgd
  const float* v;           // [n], null for sgd
  const float* directions;  // [S, stride], at the segment's offset
  std::int64_t samples;     // B
  std::int64_t size;        // n
  std::int64_t count;       // S
  std::int64_t stride;      // P, floats from one direction to the next
  Kind kind;
  Constants constants;
  double* norm2;     // [B], added to
  double* products;  // [B, S], added to
};

// Elements whose products are summed in fp32, in 8 lanes; sums over blocks are in double precision. A block
// of the moments and of S directions stays in the cache while the B samples' gradients stream past it.
constexpr std::int64_t kBlock = 1024;

void accumulate_generic(const Segment& segment);
void accumulate_avx2(const Segment& segment);

// Runs the fastest kernel of this machine, or the one that CLUSTERUCB_SIMD names (generic, avx2).
void accumulate(const Segment& segment);
const char* simd();

}  // namespace clusterucb
