// The fused pass with AVX-512: sixteen floats at a time, signs as bit masks, and an estimate of reciprocal
// roots that needs only one Newton step. Only this file is compiled for AVX-512, and its code runs only where
// the processor has it.
#include <immintrin.h>

#include "fused.hpp"

namespace clusterucb {
namespace {

constexpr std::int64_t kSixteen = 16;

__mmask16 first_lanes(std::int64_t count) {
  return static_cast<__mmask16>(count < kSixteen ? (1u << count) - 1 : 0xffffu);
}

__m512 widen(__m256i halves, BFloat16) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

__m512 widen(__m256i halves, Float16) { return _mm512_cvtph_ps(halves); }

// Sixteen 32-bit words for the hash.
struct Words {
  __m512i lanes;

  Words(__m512i value) : lanes(value) {}
  explicit Words(std::uint32_t value) : lanes(_mm512_set1_epi32(static_cast<int>(value))) {}
};

Words operator^(Words a, Words b) { return _mm512_xor_si512(a.lanes, b.lanes); }
Words operator+(Words a, Words b) { return _mm512_add_epi32(a.lanes, b.lanes); }
Words operator*(Words a, std::uint32_t b) { return _mm512_mullo_epi32(a.lanes, Words(b).lanes); }
Words operator>>(Words a, int bits) { return _mm512_srli_epi32(a.lanes, static_cast<unsigned>(bits)); }

__m512i lane_numbers() { return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); }

struct Vec {
  __m512 lanes;

  static constexpr int kWidth = kSixteen, kSigns = 1;
  using Signs = std::uint8_t;  // one bit for each lane

  Vec() = default;
  Vec(__m512 value) : lanes(value) {}
  explicit Vec(float value) : lanes(_mm512_set1_ps(value)) {}

  static Vec load(const float* from) { return _mm512_loadu_ps(from); }
  static Vec load(const float* from, std::int64_t count) {
    return _mm512_maskz_loadu_ps(first_lanes(count), from);
  }
  template <typename Half>
  static Vec load(const Half* from) {
    return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)), Half{});
  }
  template <typename Half>
  static Vec load(const Half* from, std::int64_t count) {
    return widen(_mm256_maskz_loadu_epi16(first_lanes(count), from), Half{});
  }
  void store(float* to) const { _mm512_storeu_ps(to, lanes); }

  Vec flipped(const std::uint8_t* signs) const {
    std::uint16_t bits;
    std::memcpy(&bits, signs, sizeof bits);
    return flipped(static_cast<std::uint32_t>(bits));
  }
  Vec flipped(std::uint32_t bits) const {
    const __m512i words = _mm512_castps_si512(lanes);
    const auto chosen = static_cast<__mmask16>(bits);
    return _mm512_castsi512_ps(_mm512_mask_xor_epi32(words, chosen, words, Words(1u << 31).lanes));
  }
  using Turn = __m512i;
  static Turn turn(int shift) { return _mm512_xor_si512(lane_numbers(), _mm512_set1_epi32(shift)); }
  Vec turned(Turn turn) const { return _mm512_permutexvar_ps(turn, lanes); }

  double sum() const {
    const __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256(lanes));
    return _mm512_reduce_add_pd(_mm512_add_pd(low, _mm512_cvtps_pd(_mm512_extractf32x8_ps(lanes, 1))));
  }

  // Prefetches into the second-level cache, which can wait for more lines at once than the first-level cache.
  static void prefetch(const void* from) { _mm_prefetch(static_cast<const char*>(from), _MM_HINT_T1); }

  static void draw_signs(const SketchBlock& block, std::int64_t octet, std::int64_t octets,
                         std::uint8_t* signs) {
    for (std::int64_t o = 0; o < octets; o += kSixteen) {
      const std::uint64_t counter = static_cast<std::uint64_t>(octet + o);
      if ((counter & 0xffffffffu) <= 0xffffffffu - kSixteen) {
        const Words counters = Words(static_cast<std::uint32_t>(counter)) + Words(lane_numbers());
        const Words mixed = mix_first(counters ^ Words(block.sign.first));
        const Words hashed = mix_second(mixed + Words(between(counter, block.sign)));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(signs + o), _mm512_cvtepi32_epi8(hashed.lanes));
      } else {  // the low word of the counter wraps
        for (std::int64_t lane = 0; lane < kSixteen; ++lane) {
          signs[o + lane] = static_cast<std::uint8_t>(octet_signs(block, octet + o + lane));
        }
      }
    }
  }
};

Vec operator+(Vec a, Vec b) { return _mm512_add_ps(a.lanes, b.lanes); }
Vec operator*(Vec a, Vec b) { return _mm512_mul_ps(a.lanes, b.lanes); }
Vec operator/(Vec a, Vec b) { return _mm512_div_ps(a.lanes, b.lanes); }
Vec fused_multiply_add(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a.lanes, b.lanes, c.lanes); }
// Returns a / sqrt(b) from an estimate of the reciprocal root, whose relative error is within 2^-14. With
// 1 - e = b * root^2, 1 / sqrt(b) is root * (1 + e / 2).
Vec over_root(Vec a, Vec b) {
  const __m512 root = _mm512_rsqrt14_ps(b.lanes), start = _mm512_mul_ps(a.lanes, root);
  const __m512 e = _mm512_fnmadd_ps(_mm512_mul_ps(b.lanes, root), root, _mm512_set1_ps(1.0f));
  return _mm512_fmadd_ps(_mm512_mul_ps(start, _mm512_set1_ps(0.5f)), e, start);
}
Vec square_root(Vec a) { return _mm512_sqrt_ps(a.lanes); }

}  // namespace

// AVX2 is faster for inner products, which wait for memory and for the sums of their many short vectors. A
// sketch whose blocks are only one octet of buckets wide also uses AVX2, because a vector of AVX-512 needs
// two octets.
void accumulate_avx512(const Segment& segment, const Range& range) {
  const bool narrow = segment.sketch.blocks && segment.sketch.dimension / segment.sketch.blocks < kSixteen;
  if (segment.n_directions || narrow) return accumulate_avx2(segment, range);
  accumulate_with<Vec>(segment, range);
}

}  // namespace clusterucb
