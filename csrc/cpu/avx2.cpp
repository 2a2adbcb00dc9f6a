// The fused pass with AVX2 and FMA. This file alone is compiled for them; nothing in it runs elsewhere.
#include <immintrin.h>

#include "fused.hpp"

namespace clusterucb {
namespace {

constexpr std::int64_t kLanes = 8;

// True in the first `count` lanes.
__m256i mask(std::int64_t count) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count < kLanes ? count : kLanes)), lane);
}

// Eight floats, or the last few of a segment and zeros: what lies behind belongs to another parameter.
__m256 load(const float* from, std::int64_t left) {
  return left >= kLanes ? _mm256_loadu_ps(from) : _mm256_maskload_ps(from, mask(left));
}

template <Kind kind>
__m256 precondition8(__m256 g, __m256 m, __m256 v, const Constants& c) {
  if constexpr (kind == Kind::sgd) return g;
  const __m256 eps = _mm256_set1_ps(c.eps);
  const __m256 denominator = _mm256_set1_ps(c.denominator);
  if constexpr (kind == Kind::second_moment) {
    return _mm256_div_ps(g, _mm256_add_ps(_mm256_sqrt_ps(_mm256_mul_ps(v, denominator)), eps));
  }
  const __m256 mine = _mm256_mul_ps(_mm256_set1_ps(c.one_minus_beta1), g);
  const __m256 first = _mm256_fmadd_ps(_mm256_set1_ps(c.beta1), m, mine);
  const __m256 square = _mm256_mul_ps(_mm256_mul_ps(_mm256_set1_ps(c.one_minus_beta2), g), g);
  const __m256 second = _mm256_fmadd_ps(_mm256_set1_ps(c.beta2), v, square);
  if constexpr (kind == Kind::adam_less) {
    return _mm256_div_ps(first, _mm256_sqrt_ps(_mm256_add_ps(second, eps)));
  }
  return _mm256_div_ps(_mm256_mul_ps(first, _mm256_set1_ps(c.numerator)),
                       _mm256_add_ps(_mm256_sqrt_ps(_mm256_mul_ps(second, denominator)), eps));
}

double sum(__m256 lanes) {
  alignas(32) float values[kLanes];
  _mm256_store_ps(values, lanes);
  double total = 0;
  for (float value : values) total += value;
  return total;
}

struct Avx2 {
  template <Kind kind>
  static double precondition(const float* gradient, const float* m, const float* v, std::int64_t size,
                             const Constants& constants, float* update) {
    __m256 squares = _mm256_setzero_ps();
    for (std::int64_t i = 0; i < size; i += kLanes) {
      __m256 first = _mm256_setzero_ps(), second = first;
      if constexpr (kind != Kind::sgd) {
        first = load(m + i, size - i);
        second = load(v + i, size - i);
      }
      const __m256 value = precondition8<kind>(load(gradient + i, size - i), first, second, constants);
      _mm256_store_ps(update + i, value);
      squares = _mm256_fmadd_ps(value, value, squares);
    }
    return sum(squares);
  }

  // Two independent sums hide the latency of FMA; `update` is padded with zeros to a whole vector.
  static double dot(const float* update, const float* direction, std::int64_t size) {
    __m256 even = _mm256_setzero_ps(), odd = _mm256_setzero_ps();
    std::int64_t i = 0;
    for (; i + 2 * kLanes <= size; i += 2 * kLanes) {
      even = _mm256_fmadd_ps(_mm256_load_ps(update + i), _mm256_loadu_ps(direction + i), even);
      odd =
          _mm256_fmadd_ps(_mm256_load_ps(update + i + kLanes), _mm256_loadu_ps(direction + i + kLanes), odd);
    }
    for (; i < size; i += kLanes) {
      even = _mm256_fmadd_ps(_mm256_load_ps(update + i), load(direction + i, size - i), even);
    }
    return sum(_mm256_add_ps(even, odd));
  }
};

}  // namespace

void accumulate_avx2(const Segment& segment) { accumulate_with<Avx2>(segment); }

}  // namespace clusterucb
