// The fused pass in portable C++: precondition a block into the L1 cache, then sum its squares and products.
#include <algorithm>

#include "clusterucb/kernels.hpp"

namespace clusterucb {
namespace {

constexpr std::int64_t kLanes = 8;

// Eight sums side by side: the compiler may use vectors, and rounding does not grow with the block.
double dot(const float* a, const float* b, std::int64_t size) {
  float lanes[kLanes] = {};
  std::int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    for (std::int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] += a[i + lane] * b[i + lane];
  }
  for (; i < size; ++i) lanes[i % kLanes] += a[i] * b[i];
  double sum = 0;
  for (float lane : lanes) sum += lane;
  return sum;
}

template <Kind kind>
void accumulate(const Segment& s) {
  alignas(32) float update[kBlock];
  for (std::int64_t begin = 0; begin < s.size; begin += kBlock) {
    const std::int64_t size = std::min(kBlock, s.size - begin);
    for (std::int64_t sample = 0; sample < s.samples; ++sample) {
      const float* gradient = s.gradient + sample * s.size + begin;
      for (std::int64_t i = 0; i < size; ++i) {
        const float m = kind == Kind::sgd ? 0 : s.m[begin + i];
        const float v = kind == Kind::sgd ? 0 : s.v[begin + i];
        update[i] = precondition<kind>(gradient[i], m, v, s.constants);
      }
      s.norm2[sample] += dot(update, update, size);
      for (std::int64_t k = 0; k < s.count; ++k) {
        s.products[sample * s.count + k] += dot(update, s.directions + k * s.stride + begin, size);
      }
    }
  }
}

}  // namespace

void accumulate_generic(const Segment& segment) {
  switch (segment.kind) {
    case Kind::adam_less:
      return accumulate<Kind::adam_less>(segment);
    case Kind::adam:
      return accumulate<Kind::adam>(segment);
    case Kind::second_moment:
      return accumulate<Kind::second_moment>(segment);
    case Kind::sgd:
      return accumulate<Kind::sgd>(segment);
  }
}

}  // namespace clusterucb
