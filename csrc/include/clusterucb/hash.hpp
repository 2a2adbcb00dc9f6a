// The keyed hash behind the sketch: a counter and a key in, 32 bits out, the same on every machine.
//
// Two mixing rounds over 32-bit words (the multipliers are those of Wellons' lowbias32 and triple32), a key
// word before each. 32-bit multiplications are what both AVX2 and GPUs have; a counter-based Philox costs
// three times as much where only eight bits of its 128 are used. Keys come from a 64-bit mix of seed and
// purpose, so that neighbouring seeds have nothing in common.
#pragma once

#include <cstdint>

#include "clusterucb/portable.hpp"

namespace clusterucb {

struct Key {
  std::uint32_t first, second;
};

// Steps of the hash that AVX2 repeats on eight counters at a time.
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

// What the high word of a counter and the key's second word add between the two mixes.
CLUSTERUCB_HD std::uint32_t between(std::uint64_t counter, Key key) {
  return static_cast<std::uint32_t>(counter >> 32) * 0x9e3779b9u + key.second;
}

CLUSTERUCB_HD std::uint32_t keyed_hash(std::uint64_t counter, Key key) {
  const std::uint32_t low = static_cast<std::uint32_t>(counter) ^ key.first;
  return mix_second(mix_first(low) + between(counter, key));
}

}  // namespace clusterucb
