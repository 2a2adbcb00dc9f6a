// The fused pass in portable C++.
#include <cstring>

#include "fused.hpp"

namespace clusterucb {
namespace {

void masks_of(std::uint32_t bits, std::uint32_t* masks) {
  for (int lane = 0; lane < kLanes; ++lane) masks[lane] = bits >> lane << 31;
}

struct Vec {
  float lanes[kLanes];

  static constexpr int kWidth = 8, kSigns = 8;
  using Signs = std::uint32_t;  // the mask of one lane

  Vec() = default;
  explicit Vec(float value) {
    for (float& lane : lanes) lane = value;
  }

  template <typename In>
  static Vec load(const In* from) {
    Vec loaded;
    for (std::int64_t lane = 0; lane < kLanes; ++lane) loaded.lanes[lane] = widen(from[lane]);
    return loaded;
  }
  template <typename In>
  static Vec load(const In* from, std::int64_t count) {
    if (count >= kLanes) return load(from);
    Vec loaded(0);
    for (std::int64_t lane = 0; lane < count; ++lane) loaded.lanes[lane] = widen(from[lane]);
    return loaded;
  }
  void store(float* to) const { std::memcpy(to, lanes, sizeof lanes); }

  Vec flipped(const std::uint32_t* masks) const {
    std::uint32_t bits[kLanes];
    std::memcpy(bits, lanes, sizeof bits);
    for (std::int64_t lane = 0; lane < kLanes; ++lane) bits[lane] ^= masks[lane];
    Vec result;
    std::memcpy(result.lanes, bits, sizeof bits);
    return result;
  }
  Vec flipped(std::uint32_t bits) const {
    std::uint32_t masks[kLanes];
    masks_of(bits, masks);
    return flipped(masks);
  }
  using Turn = int;
  static Turn turn(int shift) { return shift; }
  Vec turned(Turn shift) const {
    Vec result;
    for (std::int64_t lane = 0; lane < kLanes; ++lane) result.lanes[lane] = lanes[lane ^ shift];
    return result;
  }
  double sum() const {
    double total = 0;
    for (float lane : lanes) total += lane;
    return total;
  }

  static void prefetch(const void* from) { __builtin_prefetch(from, 0, 2); }

  static void draw_signs(const SketchBlock& block, std::int64_t octet, std::int64_t octets,
                         std::uint32_t* masks) {
    for (std::int64_t o = 0; o < octets; ++o) {
      const std::uint32_t signs = octet_signs(block, octet + o);
      masks_of(signs, masks + o * kLanes);
    }
  }
};

template <typename Function>
Vec each(Function function) {
  Vec result;
  for (std::int64_t lane = 0; lane < kLanes; ++lane) result.lanes[lane] = function(lane);
  return result;
}

Vec operator+(const Vec& a, const Vec& b) {
  return each([&](std::int64_t lane) { return a.lanes[lane] + b.lanes[lane]; });
}
Vec operator*(const Vec& a, const Vec& b) {
  return each([&](std::int64_t lane) { return a.lanes[lane] * b.lanes[lane]; });
}
Vec operator/(const Vec& a, const Vec& b) {
  return each([&](std::int64_t lane) { return a.lanes[lane] / b.lanes[lane]; });
}
Vec fused_multiply_add(const Vec& a, const Vec& b, const Vec& c) { return a * b + c; }
Vec square_root(const Vec& a) {
  return each([&](std::int64_t lane) { return std::sqrt(a.lanes[lane]); });
}

Vec over_root(const Vec& a, const Vec& b) { return a / square_root(b); }

}  // namespace

void accumulate_generic(const Segment& segment, const Range& range) { accumulate_with<Vec>(segment, range); }

}  // namespace clusterucb
