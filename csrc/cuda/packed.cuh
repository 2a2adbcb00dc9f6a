// The neighbouring elements that a thread holds in registers, packed in the same way as in memory.
//
// Registers have no addresses, so every index below must be known when the loops are unrolled. An index that
// is known only at run time would move the array into memory.
#pragma once

#include "clusterucb/sketch.hpp"
#include "clusterucb/widen.hpp"

namespace clusterucb {
namespace {

struct alignas(8) Words2 {
  std::uint32_t word[2];
};
struct alignas(16) Words4 {
  std::uint32_t word[4];
};

template <typename In, int size>
struct Packed {
  static constexpr int kPerWord = 4 / sizeof(In);
  static constexpr int kWords = size / kPerWord;
  std::uint32_t word[kWords];

  __device__ void clear() {
#pragma unroll
    for (int w = 0; w < kWords; ++w) word[w] = 0;
  }

  // Loads all elements. The address must be a multiple of 16 bytes, or of 8 bytes if the elements take
  // only 8.
  __device__ void load(const In* from) {
    using Words = std::conditional_t<kWords == 2, Words2, Words4>;
    constexpr int at_once = sizeof(Words) / 4;
#pragma unroll
    for (int w = 0; w < kWords; w += at_once) {
      const Words loaded = *reinterpret_cast<const Words*>(from + w * kPerWord);
#pragma unroll
      for (int k = 0; k < at_once; ++k) word[w + k] = loaded.word[k];
    }
  }

  // Loads the first `inside` elements from any address. The others become 0.
  __device__ void load(const In* from, int inside) {
    clear();
#pragma unroll
    for (int k = 0; k < size; ++k) {
      if (k < inside) word[k / kPerWord] |= bits_of(from[k]) << (32 / kPerWord * (k % kPerWord));
    }
  }

  // Moves element k to position k ^ shift, 0 <= shift < 8.
  __device__ void turn(int shift) {
    static_assert(size == kLanes, "only a whole octet can be turned");
#pragma unroll
    for (int bit = 4; bit >= kPerWord; bit /= 2) {
      const bool swap = shift & bit;
      const int step = bit / kPerWord;
#pragma unroll
      for (int w = 0; w < kWords; ++w) {
        if (w & step) continue;
        const std::uint32_t lower = word[w], upper = word[w + step];
        word[w] = swap ? upper : lower;
        word[w + step] = swap ? lower : upper;
      }
    }
    if constexpr (kPerWord == 2) {
      const bool swap = shift & 1;
#pragma unroll
      for (int w = 0; w < kWords; ++w) word[w] = swap ? word[w] >> 16 | word[w] << 16 : word[w];
    }
  }

  __device__ float operator[](int k) const {
    if constexpr (std::is_same_v<In, float>) return bits_to_float(word[k]);
    if constexpr (std::is_same_v<In, BFloat16>) {
      return bits_to_float(k % 2 ? word[k / 2] & 0xffff0000u : word[k / 2] << 16);
    }
    if constexpr (std::is_same_v<In, Float16>) {
      return widen(Float16{static_cast<std::uint16_t>(word[k / 2] >> 16 * (k % 2))});
    }
  }

 private:
  template <typename Half>
  __device__ static std::uint32_t bits_of(Half value) {
    return value.bits;
  }
  __device__ static std::uint32_t bits_of(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
  }
};

// The moments of neighbouring elements, which are the same for all samples. Beyond the end of the segment, m
// is 0 and v is 1, so that every formula gives an update of 0 there.
template <Kind kind, int size>
struct Moments {
  Packed<float, size> m, v;

  __device__ void load(const float* from_m, const float* from_v, std::int64_t at, int inside, bool vector) {
    if constexpr (kind != Kind::sgd) {
      if (vector && inside == size) {
        m.load(from_m + at);
        v.load(from_v + at);
      } else {
        m.load(from_m + at, inside);
        v.load(from_v + at, inside);
#pragma unroll
        for (int k = 0; k < size; ++k) {
          if (k >= inside) v.word[k] = 0x3f800000u;
        }
      }
    }
  }

  __device__ void turn(int shift) {
    if constexpr (kind != Kind::sgd) {
      m.turn(shift);
      v.turn(shift);
    }
  }

  __device__ MomentTerms<float> terms(int k, const Constants& constants) const {
    if constexpr (kind == Kind::sgd) return {0, 0};
    return moment_terms<kind>(m[k], v[k], constants);
  }
};

}  // namespace
}  // namespace clusterucb
