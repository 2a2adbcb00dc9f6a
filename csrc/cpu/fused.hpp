// The fused pass over one segment, written once for every instruction set.
//
// The outermost loop is over blocks of elements. A block's moment terms and sketch signs are computed once.
// They stay in the first-level cache, with the block's part of the S directions, while the samples' gradients
// stream past. A sample's update directions exist only in `update_`, only for one block. A sample's result
// does not depend on the other samples of its batch.
#pragma once

#include <algorithm>

#include "clusterucb/kernels.hpp"
#include "clusterucb/widen.hpp"

namespace clusterucb {
namespace {

constexpr std::int64_t kAhead = 4;  // samples between the computed gradient and the prefetched one
constexpr std::int64_t kLine = 16;  // floats in a cache line
constexpr std::int64_t kRun = 32;   // elements that a dense sketch adds up one after the other
constexpr std::int64_t kGroup = 8;  // samples whose updates are kept for products and dense sketches

// `Vec` is kWidth floats: one octet of the sketch, or two. It is in an unnamed namespace, so that code
// compiled here for one instruction set is never shared with another. It has the operators + * / and
//   static Vec load(const In*), load(const In*, count)   loads float, bf16 or f16; the other lanes are 0
//   void store(float*)                                   stores all lanes
//   Vec flipped(const Signs*)                             flips signs by the signs of its octets
//   Vec flipped(std::uint32_t bits)                       negates lane k if bit k is set
//   Vec turned(Turn), static Turn turn(int shift)         moves lane k to lane k ^ shift
//   double sum()                                          adds up all lanes
//   static void prefetch(const void*)                     prefetches into the second-level cache
//   static void draw_signs(block, octet, octets, Signs*)  draws consecutive octets' signs, kSigns for each
// There are also the functions fused_multiply_add(Vec, Vec, Vec), square_root(Vec) and over_root(a, b), which
// returns a / sqrt(b).

template <typename Vec>
constexpr std::int64_t kBlock = 64 * Vec::kWidth;  // elements

// The update directions of a group of samples in one block, with the steps that work on all of them at once.
template <typename Vec>
class Updates {
 public:
  explicit Updates(const Segment& segment) : s_(segment) {}

  float* of(std::int64_t sample) { return update_[sample]; }

  // Adds the inner products of the group's updates with all directions, in tiles of 4 samples and 3
  // directions, which fill the registers. The updates are padded with zeros to a whole vector.
  void multiply(std::int64_t begin, std::int64_t size, std::int64_t samples, double* products) const {
    for (std::int64_t k = 0; k < s_.n_directions; k += 3) {
      for (std::int64_t i = 0; i < samples; i += 4) {
        const std::int64_t rows = std::min<std::int64_t>(4, samples - i);
        const std::int64_t columns = std::min<std::int64_t>(3, s_.n_directions - k);
        double* to = products + i * s_.n_directions + k;
        const float* directions = s_.directions + k * s_.stride + begin;
        if (rows == 4 && columns == 3) {
          tile<4, 3>(i, directions, size, to);
          continue;
        }
        for (std::int64_t row = 0; row < rows; ++row, to += s_.n_directions) {
          if (columns == 3) {
            tile<1, 3>(i + row, directions, size, to);
          } else {
            for (std::int64_t column = 0; column < columns; ++column) {
              tile<1, 1>(i + row, directions + column * s_.stride, size, to + column);
            }
          }
        }
      }
    }
  }

  // Adds the group's updates to their dense sketches, one vector of buckets at a time. The signs of the
  // block's elements in 32 buckets are drawn once for all samples.
  void project(std::int64_t begin, std::int64_t size, std::int64_t samples, float* sketched) const {
    const std::int64_t d = s_.sketch.dimension;
    std::uint32_t signs[kBlock<Vec>];
    for (std::int64_t word = 0; word * 32 < d; ++word) {
      for (std::int64_t k = 0; k < size; ++k) signs[k] = dense_signs(s_.sketch, s_.offset + begin + k, word);
      for (int lane = 0; lane < 32 && word * 32 + lane < d; lane += Vec::kWidth) {
        const std::int64_t bucket = word * 32 + lane;
        Vec sums[kGroup];
        for (Vec& sum : sums) sum = Vec(0);
        for (std::int64_t start = 0; start < size; start += kRun) {  // partial sums reduce rounding errors
          Vec part[kGroup];
          for (Vec& sum : part) sum = Vec(0);
          for (std::int64_t k = start; k < std::min(start + kRun, size); ++k) {
            const std::uint32_t bits = signs[k] >> lane;
            for (std::int64_t i = 0; i < kGroup; ++i) {
              if (i < samples) part[i] = part[i] + Vec(update_[i][k]).flipped(bits);
            }
          }
          for (std::int64_t i = 0; i < kGroup; ++i) sums[i] = sums[i] + part[i];
        }
        for (std::int64_t i = 0; i < samples; ++i) {
          float added[Vec::kWidth];
          sums[i].store(added);
          const std::int64_t buckets = std::min<std::int64_t>(Vec::kWidth, d - bucket);
          for (std::int64_t at = 0; at < buckets; ++at) sketched[i * d + bucket + at] += added[at];
        }
      }
    }
  }

 private:
  template <int rows, int columns>
  void tile(std::int64_t first, const float* directions, std::int64_t size, double* products) const {
    Vec sums[rows][columns];
    for (auto& row : sums) {
      for (auto& sum : row) sum = Vec(0);
    }
    const auto add = [&](std::int64_t k, auto load) {
      Vec direction[columns];
      for (int column = 0; column < columns; ++column) {
        direction[column] = load(directions + column * s_.stride + k);
      }
      for (int row = 0; row < rows; ++row) {
        const Vec update = Vec::load(update_[first + row] + k);
        for (int column = 0; column < columns; ++column) {
          sums[row][column] = fused_multiply_add(update, direction[column], sums[row][column]);
        }
      }
    };
    std::int64_t k = 0;
    for (; k + Vec::kWidth <= size; k += Vec::kWidth) {
      if (first == 0 && k % kLine == 0) {  // prefetch the directions' next block, one line at a time
        for (int column = 0; column < columns; ++column) {
          Vec::prefetch(directions + column * s_.stride + k + kBlock<Vec>);
        }
      }
      add(k, [](const float* from) { return Vec::load(from); });
    }
    if (k < size) add(k, [&](const float* from) { return Vec::load(from, size - k); });
    for (int row = 0; row < rows; ++row) {
      for (int column = 0; column < columns; ++column) {
        products[row * s_.n_directions + column] += sums[row][column].sum();
      }
    }
  }

  const Segment& s_;
  alignas(64) float update_[kGroup][kBlock<Vec>];
};

// The pass over a range of elements, with the kind, dtype and number of sketch blocks known at compile time.
template <typename Vec, Kind kind, typename In, int blocks>
class Pass {
 public:
  explicit Pass(const Segment& segment)
      : s_(segment), updates_(segment), width_(blocks ? segment.sketch.dimension / blocks : 0) {}

  void run(const Range& range) {
    const bool dense = !blocks && s_.sketch.dimension, keep = s_.n_directions || dense;
    for (std::int64_t begin = range.begin, size; begin < range.end; begin += size) {
      size = std::min(kBlock<Vec>, range.end - begin);
      if constexpr (blocks > 0) {
        size = std::min(size, width_ - (s_.offset + begin) % width_);
        if ((s_.offset + begin) % Vec::kWidth) size = std::min<std::int64_t>(size, kLanes);
      }
      start_block(begin, size);
      for (std::int64_t group = 0; group < s_.samples; group += kGroup) {
        const std::int64_t samples = std::min(kGroup, s_.samples - group);
        float* sketched = range.sketched + group * s_.sketch.dimension;
        for (std::int64_t i = 0; i < samples; ++i) {
          float* own = sketched + i * s_.sketch.dimension;
          range.norm2[group + i] += keep ? update_sample<true>(group + i, begin, size, updates_.of(i), own)
                                         : update_sample<false>(group + i, begin, size, nullptr, own);
        }
        if (s_.n_directions) {
          updates_.multiply(begin, size, samples, range.products + group * s_.n_directions);
        }
        if (dense) updates_.project(begin, size, samples, sketched);
      }
    }
  }

 private:
  void start_block(std::int64_t begin, std::int64_t size) {
    if constexpr (kind != Kind::sgd) {
      for (std::int64_t k = 0; k < size; k += Vec::kWidth) {
        const auto terms = moment_terms<kind>(Vec::load(s_.m + begin + k, size - k),
                                              Vec::load(s_.v + begin + k, size - k), s_.constants);
        terms.a.store(a_ + k);
        terms.b.store(b_ + k);
      }
    }
    if constexpr (blocks > 0) {
      const std::int64_t at = s_.offset + begin, row = at / width_, octet = at % width_ / kLanes;
      first_octet_ = octet & ~kOdd;
      for (int block = 0; block < blocks; ++block) {
        const SketchBlock& keys = s_.sketch.block[block];
        Vec::draw_signs(keys, at / kLanes, (size + kLanes - 1) / kLanes, signs_[block]);
        const std::int64_t shift = octet_shift(keys, row, width_);
        octet_shift_[block] = shift & ~kOdd;
        lane_shift_[block] = lane_shift(keys, row, blocks) + ((shift ^ octet) & kOdd) * kLanes;
      }
    }
  }

  // Adds a sample's update directions to its sparse sketch and returns the sum of their squares. If `keep`,
  // it also writes the updates. It is not inlined: on its own, the loop has enough registers for all its
  // pointers.
  template <bool keep>
  __attribute__((noinline)) double update_sample(std::int64_t sample, std::int64_t begin, std::int64_t size,
                                                 float* update, float* sketched) const {
    const In* gradient = static_cast<const In*>(s_.gradient) + sample * s_.size + begin;
    const In* coming = prefetched(sample, begin, size);
    const float* moment = kind == Kind::sgd || sample > 1 ? nullptr : (sample ? s_.m : s_.v) + begin + size;
    const Constants constants = s_.constants;
    const std::int64_t first = first_octet_ * kLanes;
    std::int64_t shift[kMaxBlocks];
    typename Vec::Turn turn[kMaxBlocks];
    for (int block = 0; block < blocks; ++block) {
      shift[block] = octet_shift_[block] * kLanes;
      turn[block] = Vec::turn(lane_shift_[block]);
    }
    const auto step = [&](Vec value, std::int64_t k, Vec squares) {
      MomentTerms<Vec> terms{Vec(0), Vec(0)};
      if constexpr (kind != Kind::sgd) terms = {Vec::load(a_ + k), Vec::load(b_ + k)};
      value = precondition<kind>(value, terms, constants);
      if constexpr (keep) value.store(update + k);
      for (int block = 0; block < blocks; ++block) {
        float* bucket = sketched + block * width_ + ((first + k) ^ shift[block]);
        (Vec::load(bucket) + value.flipped(signs_[block] + k / kLanes * Vec::kSigns).turned(turn[block]))
            .store(bucket);
      }
      return fused_multiply_add(value, value, squares);
    };
    Vec even = Vec(0), odd = Vec(0);
    std::int64_t k = 0;
    for (; k + 2 * Vec::kWidth <= size; k += 2 * Vec::kWidth) {
      for (std::int64_t line = k; line < k + 2 * Vec::kWidth; line += kLine) {
        Vec::prefetch(coming + line);
        if (moment) Vec::prefetch(moment + line);
      }
      even = step(Vec::load(gradient + k), k, even);
      odd = step(Vec::load(gradient + k + Vec::kWidth), k + Vec::kWidth, odd);
    }
    for (; k < size; k += Vec::kWidth) even = step(Vec::load(gradient + k, size - k), k, even);
    return (even + odd).sum();
  }

  // Returns the address to prefetch while a sample's block is computed: the same block of a later sample,
  // which the hardware does not predict. For the last samples it is the first samples' next block.
  const In* prefetched(std::int64_t sample, std::int64_t begin, std::int64_t size) const {
    const std::int64_t coming = sample + kAhead;
    const std::int64_t at =
        coming < s_.samples ? coming * s_.size + begin : coming % s_.samples * s_.size + begin + size;
    return static_cast<const In*>(s_.gradient) + at;
  }

  // The mask of an octet's position within a vector: 0 for vectors of one octet, 1 for vectors of two. A
  // vector of two octets goes to two neighbouring octets of buckets, so the XOR on the lowest bit of the
  // octet's number becomes an XOR on bit 3 of the lane's number. A segment may begin at an octet with an odd
  // number. This octet is computed alone, in the vector of buckets whose second half it belongs to, and the
  // halves are swapped in the same way.
  static constexpr std::int64_t kOdd = Vec::kWidth / kLanes - 1;

  const Segment& s_;
  Updates<Vec> updates_;
  const std::int64_t width_;
  std::int64_t first_octet_ = 0, octet_shift_[kMaxBlocks] = {};
  int lane_shift_[kMaxBlocks] = {};
  alignas(64) float a_[kBlock<Vec>], b_[kBlock<Vec>];
  alignas(64) typename Vec::Signs signs_[blocks ? blocks : 1][kBlock<Vec> / kLanes * Vec::kSigns];
};

template <typename Vec, Kind kind, typename In>
void accumulate_blocks(const Segment& s, const Range& range) {
  switch (s.sketch.blocks) {
    case 1:
      return Pass<Vec, kind, In, 1>(s).run(range);
    case 2:
      return Pass<Vec, kind, In, 2>(s).run(range);
    case 4:
      return Pass<Vec, kind, In, 4>(s).run(range);
    default:
      return Pass<Vec, kind, In, 0>(s).run(range);
  }
}

template <typename Vec, Kind kind>
void accumulate_dtype(const Segment& s, const Range& range) {
  switch (s.dtype) {
    case Dtype::f32:
      return accumulate_blocks<Vec, kind, float>(s, range);
    case Dtype::bf16:
      return accumulate_blocks<Vec, kind, BFloat16>(s, range);
    case Dtype::f16:
      return accumulate_blocks<Vec, kind, Float16>(s, range);
  }
}

template <typename Vec>
void accumulate_with(const Segment& s, const Range& range) {
  switch (s.kind) {
    case Kind::adam_less:
      return accumulate_dtype<Vec, Kind::adam_less>(s, range);
    case Kind::adam:
      return accumulate_dtype<Vec, Kind::adam>(s, range);
    case Kind::second_moment:
      return accumulate_dtype<Vec, Kind::second_moment>(s, range);
    case Kind::sgd:
      return accumulate_dtype<Vec, Kind::sgd>(s, range);
  }
}

}  // namespace
}  // namespace clusterucb
