// Neighbouring elements as a thread holds them: packed as they lie in memory, in registers.
//
// Registers have no addresses: every index below is known when the loops are unrolled. An index that is only
// known when the kernel runs would put the array into memory.
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

  // All elements, from an address at a multiple of 16 bytes, or of their size where that is 8.
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

  // The first `inside` elements, from any address; the others are 0.
  __device__ void load(const In* from, int inside) {
    clear();
#pragma unroll
    for (int k = 0; k < size; ++k) {
      if (k < inside) word[k / kPerWord] |= bits_of(from[k]) << (32 / kPerWord * (k % kPerWord));
    }
  }

  // Element k becomes element k ^ shift, 0 <= shift < 8.
  __device__ void turn(int shift) {
    static_assert(size == kLanes, "a turn is of a whole octet");
#pragma unroll
    for (int bit = 4; bit >= kPerWord; bit /= 2) {
      const bool swap = shift & bit;
      const int step = bit / kPerWord;
#pragma unroll
      for (int w = 0; w < kWords; ++w) {
        if (w & step) continue;
        const std::uint32_t one = word[w], other = word[w + step];
        word[w] = swap ? other : one;
        word[w + step] = swap ? one : other;
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

// What is the same for all samples of some neighbouring elements. Beyond the segment m is 0 and v is 1, so
// that an update there is 0 under every formula.
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

  __device__ Prepared<float> prepared(int k, const Constants& constants) const {
    if constexpr (kind == Kind::sgd) return {0, 0};
    return prepare<kind>(m[k], v[k], constants);
  }
};

}  // namespace
}  // namespace clusterucb
