// The sketch: determines which bucket a coordinate of the flat parameter space falls into, and its sign.
// The specification is python/clusterucb/kernels/reference.py.
//
// The sparse sketch (row-XOR SJLT) of dimension d has s blocks of width w = d / s. In each block, coordinate
// i is at position j = i % w of row r = i / w. Octets of coordinates map to octets of buckets: octet j / 8
// goes to octet (j / 8) ^ h(r), and within it lane j % 8 goes to lane (j % 8) ^ l(r). Within a row, this map
// is a bijection and its own inverse. A bucket therefore receives one coordinate from each row, which the
// same two XORs find.
#pragma once

#include <cstdint>

#include "clusterucb/hash.hpp"

namespace clusterucb {

constexpr int kLanes = 8;
constexpr int kMaxBlocks = 4;

struct SketchBlock {
  Key sign, row, lane;
};

struct Sketch {
  std::int64_t dimension;  // d; 0: no sketch
  int blocks;              // s: 1, 2 or 4; or 0: a dense sketch, where every coordinate goes to every bucket
  SketchBlock block[kMaxBlocks];
};

CLUSTERUCB_HD std::int64_t octet_shift(const SketchBlock& block, std::int64_t row, std::int64_t width) {
  return keyed_hash(static_cast<std::uint64_t>(row), block.row) & (width / kLanes - 1);
}

// With one block, the lane shift depends on the row alone. With several blocks, the key changes it for every
// eight rows, so that coordinates that share a lane in one block do not share it in the next.
CLUSTERUCB_HD int lane_shift(const SketchBlock& block, std::int64_t row, int blocks) {
  const int lane = static_cast<int>(row & 7);
  if (blocks == 1) return lane;
  return lane ^ static_cast<int>(keyed_hash(static_cast<std::uint64_t>(row >> 3), block.lane) & 7);
}

// Returns the signs of an octet: bit k is the sign of coordinate 8 * octet + k, where 1 means minus.
CLUSTERUCB_HD std::uint32_t octet_signs(const SketchBlock& block, std::int64_t octet) {
  return keyed_hash(static_cast<std::uint64_t>(octet), block.sign) & 255u;
}

// Returns signs of the dense sketch: bit k is the sign of a coordinate in bucket 32 * word + k.
CLUSTERUCB_HD std::uint32_t dense_signs(const Sketch& sketch, std::int64_t coordinate, std::int64_t word) {
  const std::uint64_t words = static_cast<std::uint64_t>(sketch.dimension + 31) / 32;
  return keyed_hash(static_cast<std::uint64_t>(coordinate) * words + static_cast<std::uint64_t>(word),
                    sketch.block[0].sign);
}

}  // namespace clusterucb
