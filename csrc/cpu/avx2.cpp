// The fused pass with AVX2, FMA and F16C. Only this file is compiled for them, and its code runs only where
// the processor has them.
#include <immintrin.h>

#include "fused.hpp"

namespace clusterucb {
namespace {

// True in the first `count` lanes.
__m256i first_lanes(std::int64_t count) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count < kLanes ? count : kLanes)), lane);
}

__m256 widen(__m128i halves, BFloat16) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}

__m256 widen(__m128i halves, Float16) { return _mm256_cvtph_ps(halves); }

// Eight 32-bit words for the hash.
struct Words {
  __m256i lanes;

  Words(__m256i value) : lanes(value) {}
  explicit Words(std::uint32_t value) : lanes(_mm256_set1_epi32(static_cast<int>(value))) {}
};

Words operator^(Words a, Words b) { return _mm256_xor_si256(a.lanes, b.lanes); }
Words operator+(Words a, Words b) { return _mm256_add_epi32(a.lanes, b.lanes); }
Words operator*(Words a, std::uint32_t b) { return _mm256_mullo_epi32(a.lanes, Words(b).lanes); }
Words operator>>(Words a, int bits) { return _mm256_srli_epi32(a.lanes, bits); }

// The sign masks of eight lanes: lane k has only its top bit set if bit k is set, and is 0 otherwise.
__m256i masks_of(std::uint32_t bits) {
  const __m256i to_top = _mm256_setr_epi32(31, 30, 29, 28, 27, 26, 25, 24);
  return _mm256_and_si256(_mm256_sllv_epi32(Words(bits).lanes, to_top), Words(1u << 31).lanes);
}

struct Vec {
  __m256 lanes;

  static constexpr int kWidth = 8, kSigns = 8;
  using Signs = std::uint32_t;  // the mask of one lane

  Vec() = default;
  Vec(__m256 value) : lanes(value) {}
  explicit Vec(float value) : lanes(_mm256_set1_ps(value)) {}

  static Vec load(const float* from) { return _mm256_loadu_ps(from); }
  static Vec load(const float* from, std::int64_t count) {
    return count >= kLanes ? _mm256_loadu_ps(from) : _mm256_maskload_ps(from, first_lanes(count));
  }
  template <typename Half>
  static Vec load(const Half* from) {
    return widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)), Half{});
  }
  template <typename Half>
  static Vec load(const Half* from, std::int64_t count) {
    if (count >= kLanes) return load(from);
    alignas(16) Half padded[kLanes] = {};
    for (std::int64_t lane = 0; lane < count; ++lane) padded[lane] = from[lane];
    return load(padded);
  }
  void store(float* to) const { _mm256_storeu_ps(to, lanes); }

  Vec flipped(const std::uint32_t* masks) const {
    return _mm256_xor_ps(lanes, _mm256_load_ps(reinterpret_cast<const float*>(masks)));
  }
  Vec flipped(std::uint32_t bits) const { return _mm256_xor_ps(lanes, _mm256_castsi256_ps(masks_of(bits))); }
  using Turn = __m256i;
  static Turn turn(int shift) {
    return _mm256_xor_si256(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(shift));
  }
  Vec turned(Turn turn) const { return _mm256_permutevar8x32_ps(lanes, turn); }

  double sum() const {
    const __m256d low = _mm256_cvtps_pd(_mm256_castps256_ps128(lanes));
    const __m256d four = _mm256_add_pd(low, _mm256_cvtps_pd(_mm256_extractf128_ps(lanes, 1)));
    const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
    return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
  }

  // Prefetches into the second-level cache, which can wait for more lines at once than the first-level cache.
  static void prefetch(const void* from) { _mm_prefetch(static_cast<const char*>(from), _MM_HINT_T1); }

  static void draw_signs(const SketchBlock& block, std::int64_t octet, std::int64_t octets,
                         std::uint32_t* masks) {
    const Words step(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    for (std::int64_t o = 0; o < octets; o += kLanes) {
      alignas(32) std::uint32_t signs[kLanes];
      const std::uint64_t counter = static_cast<std::uint64_t>(octet + o);
      if ((counter & 0xffffffffu) <= 0xffffffffu - kLanes) {
        const Words low = (Words(static_cast<std::uint32_t>(counter)) + step) ^ Words(block.sign.first);
        const Words hashed = mix_second(mix_first(low) + Words(between(counter, block.sign)));
        _mm256_store_si256(reinterpret_cast<__m256i*>(signs), hashed.lanes);
      } else {  // the low word of the counter wraps
        for (int lane = 0; lane < kLanes; ++lane) signs[lane] = octet_signs(block, octet + o + lane);
      }
      for (std::int64_t lane = 0; lane < std::min<std::int64_t>(kLanes, octets - o); ++lane) {
        _mm256_store_si256(reinterpret_cast<__m256i*>(masks + (o + lane) * kLanes), masks_of(signs[lane]));
      }
    }
  }
};

Vec operator+(Vec a, Vec b) { return _mm256_add_ps(a.lanes, b.lanes); }
Vec operator*(Vec a, Vec b) { return _mm256_mul_ps(a.lanes, b.lanes); }
Vec operator/(Vec a, Vec b) { return _mm256_div_ps(a.lanes, b.lanes); }
Vec fused_multiply_add(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a.lanes, b.lanes, c.lanes); }
// Returns a / sqrt(b) from the processor's estimate of the reciprocal root, whose relative error is within
// 2^-11. With 1 - e = b * root^2, 1 / sqrt(b) is root * (1 + e / 2 + 3 e^2 / 8 + ...). The processor's own
// root and division would take as long as everything else together.
Vec over_root(Vec a, Vec b) {
  const __m256 root = _mm256_rsqrt_ps(b.lanes), start = _mm256_mul_ps(a.lanes, root);
  const __m256 e = _mm256_fnmadd_ps(_mm256_mul_ps(b.lanes, root), root, _mm256_set1_ps(1.0f));
  const __m256 more = _mm256_fmadd_ps(e, _mm256_set1_ps(0.375f), _mm256_set1_ps(0.5f));
  return _mm256_fmadd_ps(_mm256_mul_ps(start, e), more, start);
}
Vec square_root(Vec a) { return _mm256_sqrt_ps(a.lanes); }

}  // namespace

void accumulate_avx2(const Segment& segment, const Range& range) { accumulate_with<Vec>(segment, range); }

}  // namespace clusterucb
