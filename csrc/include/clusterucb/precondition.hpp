// The map from a gradient element to an update element; python/clusterucb/reference.py has the formulas.
#pragma once

#include <cmath>

namespace clusterucb {

enum class Kind : int { adam_less = 0, adam = 1, second_moment = 2, sgd = 3 };

// Factors of a formula, computed in double precision by the caller and rounded once.
struct Constants {
  float beta1, one_minus_beta1, beta2, one_minus_beta2, eps, numerator, denominator;
};

// Internal linkage: each translation unit is compiled for its own instruction set and keeps its own copy.
template <Kind kind>
static inline float precondition(float g, float m, float v, const Constants& c) {
  if constexpr (kind == Kind::sgd) return g;
  if constexpr (kind == Kind::second_moment) return g / (std::sqrt(v * c.denominator) + c.eps);
  const float first = c.beta1 * m + c.one_minus_beta1 * g;
  const float second = c.beta2 * v + c.one_minus_beta2 * g * g;
  if constexpr (kind == Kind::adam_less) return first / std::sqrt(second + c.eps);
  return first * c.numerator / (std::sqrt(second * c.denominator) + c.eps);
}

}  // namespace clusterucb
