// The fused pass, block by block, whatever instructions its two primitives use.
#pragma once

#include "clusterucb/kernels.hpp"

namespace clusterucb {

// `Simd` has two static functions and lives in an unnamed namespace, so that what is compiled here for one
// instruction set is never shared with another:
//   template <Kind kind> double precondition(const float* gradient, const float* m, const float* v,
//                                            std::int64_t size, const Constants&, float* update)
//     writes the update (aligned, room for kBlock) and returns the sum of its squares;
//   double dot(const float* update, const float* direction, std::int64_t size).
template <typename Simd, Kind kind>
void accumulate_kind(const Segment& s) {
  alignas(32) float update[kBlock];
  for (std::int64_t begin = 0; begin < s.size; begin += kBlock) {
    const std::int64_t size = s.size - begin < kBlock ? s.size - begin : kBlock;
    const float* m = kind == Kind::sgd ? nullptr : s.m + begin;
    const float* v = kind == Kind::sgd ? nullptr : s.v + begin;
    for (std::int64_t sample = 0; sample < s.samples; ++sample) {
      const float* gradient = s.gradient + sample * s.size + begin;
      s.norm2[sample] += Simd::template precondition<kind>(gradient, m, v, size, s.constants, update);
      for (std::int64_t k = 0; k < s.count; ++k) {
        s.products[sample * s.count + k] += Simd::dot(update, s.directions + k * s.stride + begin, size);
      }
    }
  }
}

template <typename Simd>
void accumulate_with(const Segment& segment) {
  switch (segment.kind) {
    case Kind::adam_less:
      return accumulate_kind<Simd, Kind::adam_less>(segment);
    case Kind::adam:
      return accumulate_kind<Simd, Kind::adam>(segment);
    case Kind::second_moment:
      return accumulate_kind<Simd, Kind::second_moment>(segment);
    case Kind::sgd:
      return accumulate_kind<Simd, Kind::sgd>(segment);
  }
}

}  // namespace clusterucb
