// The fused pass in portable C++.
#include "fused.hpp"

namespace clusterucb {
namespace {

constexpr std::int64_t kLanes = 8;

struct Portable {
  template <Kind kind>
  static double precondition(const float* gradient, const float* m, const float* v, std::int64_t size,
                             const Constants& constants, float* update) {
    for (std::int64_t i = 0; i < size; ++i) {
      if constexpr (kind == Kind::sgd) {
        update[i] = gradient[i];
      } else {
        update[i] = clusterucb::precondition<kind>(gradient[i], m[i], v[i], constants);
      }
    }
    return dot(update, update, size);
  }

  // Eight sums side by side: the compiler may use vectors, and rounding does not grow with the block.
  static double dot(const float* a, const float* b, std::int64_t size) {
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
};

}  // namespace

void accumulate_generic(const Segment& segment) { accumulate_with<Portable>(segment); }

}  // namespace clusterucb
