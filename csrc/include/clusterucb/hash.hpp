// The keyed hash of the sketch. It maps a counter and a key to 32 bits, the same on every machine.
//
// The hash has two mixing rounds over 32-bit words, with a key word before each. The multipliers are those of
// Wellons' lowbias32 and triple32. It uses 32-bit multiplications because both AVX2 and GPUs have them. A
// counter-based Philox would cost three times as much, since only eight of its 128 bits would be used. Keys
// come from a 64-bit mix of seed and purpose, so that the keys of neighbouring seeds are unrelated.
#pragma once

#include <cstdint>

#include "clusterucb/portable.hpp"

namespace clusterucb {

struct Key {
  std::uint32_t first, second;
};

// The steps of the hash. The vector kernels apply them to eight or sixteen counters at a time.
template <typename Word>
CLUSTERUCB_HD Word mix_first(Word x) {
  x = x ^ (x >> 16);
  x = x * 0x7feb352du;
  x = x ^ (x >> 15);
  x = x * 0x846ca68bu;
  return x ^ (x >> 16);
}

template <typename Word>
CLUSTERUCB_HD Word mix_second(Word x) {
  x = x ^ (x >> 17);
  x = x * 0xed5ad4bbu;
  x = x ^ (x >> 11);
  x = x * 0xac4c1b51u;
  x = x ^ (x >> 15);
  x = x * 0x31848babu;
  return x ^ (x >> 14);
}

// Returns the word to add between the two mixes, from the counter's high word and the key's second word.
CLUSTERUCB_HD std::uint32_t between(std::uint64_t counter, Key key) {
  return static_cast<std::uint32_t>(counter >> 32) * 0x9e3779b9u + key.second;
}

CLUSTERUCB_HD std::uint32_t keyed_hash(std::uint64_t counter, Key key) {
  const std::uint32_t low = static_cast<std::uint32_t>(counter) ^ key.first;
  return mix_second(mix_first(low) + between(counter, key));
}

}  // namespace clusterucb
