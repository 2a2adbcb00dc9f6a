// The preconditioner: maps a gradient element to an update element. The formulas are in
// python/clusterucb/kernels/reference.py.
//
// The terms that do not depend on the sample are computed once for all samples of a batch (`moment_terms`),
// and the rest for each sample (`precondition`). Both are written once, for floats and for vectors of floats.
#pragma once

#include <cmath>

#include "clusterucb/portable.hpp"

namespace clusterucb {

enum class Kind : int { adam_less = 0, adam = 1, second_moment = 2, sgd = 3 };

// The constants of a formula. The caller computes them in double precision and rounds once. In the Adam
// formulas, numerator and denominator are divided by the root of (1 - beta2), which saves one multiplication
// for each element:
//   adam_less      (first * g + a) / sqrt(g * g + b)           a = from_m * m, b = from_v * v + eps
//   adam           (first * g + a) / (sqrt(g * g + b) + eps)   a = from_m * m, b = from_v * v
//   second_moment  g * a                                       a = 1 / (sqrt(from_v * v) + eps)
struct Constants {
  float first, from_m, from_v, eps;
};

// std::fma is not used: it is a slow library call if the instruction may be missing.
CLUSTERUCB_HD float fused_multiply_add(float a, float b, float c) {
#ifdef __CUDA_ARCH__
  return __fmaf_rn(a, b, c);
#else
  return a * b + c;
#endif
}

#ifdef __CUDA_ARCH__
// On a GPU, correctly rounded roots and divisions take some 20 instructions and a branch. The functions below
// start from the hardware's estimates, whose errors are below 2^-22, and refine them once, so that only the
// error of the last rounding remains. As in the AVX2 kernels, there is no reciprocal root of a number that is
// not normal.
CLUSTERUCB_HD float estimate_of_reciprocal(float a) {
  float estimate;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(estimate) : "f"(a));
  return estimate;
}
CLUSTERUCB_HD float estimate_of_reciprocal_root(float a) {
  float estimate;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(estimate) : "f"(a));
  return estimate;
}
CLUSTERUCB_HD float square_root(float a) {
  const float estimate = estimate_of_reciprocal_root(a), root = a * estimate;
  const float refined = __fmaf_rn(__fmaf_rn(-root, root, a), 0.5f * estimate, root);
  return a < 0x1p-126f ? 0.0f : refined;
}
CLUSTERUCB_HD float over_root(float a, float b) {
  const float estimate = estimate_of_reciprocal_root(b), quotient = a * estimate;
  return __fmaf_rn(0.5f * quotient, __fmaf_rn(-(b * estimate), estimate, 1.0f), quotient);
}
CLUSTERUCB_HD float divide(float a, float b) {
  const float estimate = estimate_of_reciprocal(b), quotient = a * estimate;
  return __fmaf_rn(__fmaf_rn(-b, quotient, a), estimate, quotient);
}
#else
CLUSTERUCB_HD float square_root(float a) { return std::sqrt(a); }
CLUSTERUCB_HD float over_root(float a, float b) { return a / std::sqrt(b); }
template <typename Float>
CLUSTERUCB_HD Float divide(Float a, Float b) {
  return a / b;
}
#endif

// The terms of a formula that depend on the moments but not on the sample: a and b of the formulas above.
template <typename Float>
struct MomentTerms {
  Float a, b;
};

template <Kind kind, typename Float>
CLUSTERUCB_HD MomentTerms<Float> moment_terms(Float m, Float v, const Constants& c) {
  const Float eps = Float(c.eps);
  if constexpr (kind == Kind::adam_less)
    return {Float(c.from_m) * m, fused_multiply_add(Float(c.from_v), v, eps)};
  if constexpr (kind == Kind::adam) return {Float(c.from_m) * m, Float(c.from_v) * v};
  if constexpr (kind == Kind::second_moment)
    return {divide(Float(1), square_root(Float(c.from_v) * v) + eps), Float(0)};
  return {Float(0), Float(0)};
}

template <Kind kind, typename Float>
CLUSTERUCB_HD Float precondition(Float g, const MomentTerms<Float>& terms, const Constants& c) {
  if constexpr (kind == Kind::sgd) return g;
  if constexpr (kind == Kind::second_moment) return g * terms.a;
  const Float first = fused_multiply_add(Float(c.first), g, terms.a);
  const Float second = fused_multiply_add(g, g, terms.b);
  if constexpr (kind == Kind::adam_less) return over_root(first, second);
  return divide(first, square_root(second) + Float(c.eps));
}

}  // namespace clusterucb
