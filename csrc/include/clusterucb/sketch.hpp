// The sketch: which bucket a coordinate of the flat parameter space falls into, and with which sign.
// python/clusterucb/reference.py is the specification.
//
// The sparse one (row-XOR SJLT) of dimension d has s blocks of width w = d / s. For a block, coordinate i
// stands in row r = i / w at j = i % w. Octets of coordinates map to octets of buckets: octet j / 8 goes to
// (j / 8) ^ h(r), and within it lane j % 8 goes to lane (j % 8) ^ l(r). Within a row this is a bijection and
// its own inverse, so what a bucket receives from a row is one coordinate, found by the same two XORs.
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
  int blocks;              // s: 1, 2 or 4; 0: dense, every coordinate goes to every bucket
  SketchBlock block[kMaxBlocks];
};

CLUSTERUCB_HD std::int64_t octet_shift(const SketchBlock& block, std::int64_t row, std::int64_t width) {
  return keyed_hash(static_cast<std::uint64_t>(row), block.row) & (width / kLanes - 1);
}

// With one block the lanes turn with the row alone; with several, the key turns them too for every eight
// rows, so that coordinates which share a lane in one block do not in the next.
CLUSTERUCB_HD int lane_shift(const SketchBlock& block, std::int64_t row, int blocks) {
  const int lane = static_cast<int>(row & 7);
  if (blocks == 1) return lane;
  return lane ^ static_cast<int>(keyed_hash(static_cast<std::uint64_t>(row >> 3), block.lane) & 7);
}

// Bit k is the sign of coordinate 8 * octet + k: 1 means minus.
CLUSTERUCB_HD std::uint32_t octet_signs(const SketchBlock& block, std::int64_t octet) {
  return keyed_hash(static_cast<std::uint64_t>(octet), block.sign) & 255u;
}

// Of the dense sketch: bit k is the sign of a coordinate in bucket 32 * word + k.
CLUSTERUCB_HD std::uint32_t dense_signs(const Sketch& sketch, std::int64_t coordinate, std::int64_t word) {
  const std::uint64_t words = static_cast<std::uint64_t>(sketch.dimension + 31) / 32;
  return keyed_hash(static_cast<std::uint64_t>(coordinate) * words + static_cast<std::uint64_t>(word),
                    sketch.block[0].sign);
}

}  // namespace clusterucb
