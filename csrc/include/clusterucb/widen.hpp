// The half-precision formats of gradients, and their exact conversion to floats.
#pragma once

#include <cstdint>
#include <cstring>

#include "clusterucb/portable.hpp"

namespace clusterucb {

struct BFloat16 {
  std::uint16_t bits;
};
struct Float16 {
  std::uint16_t bits;
};

CLUSTERUCB_HD float bits_to_float(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

CLUSTERUCB_HD float widen(float value) { return value; }
CLUSTERUCB_HD float widen(BFloat16 value) {
  return bits_to_float(static_cast<std::uint32_t>(value.bits) << 16);
}

CLUSTERUCB_HD float widen(Float16 value) {
#ifdef __CUDA_ARCH__
  float result;  // one instruction instead of the six below
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
  return result;
#else
  const std::uint32_t sign = static_cast<std::uint32_t>(value.bits & 0x8000u) << 16;
  const std::uint32_t rest = value.bits & 0x7fffu;
  if (rest >= 0x7c00u) return bits_to_float(sign | 0x7f800000u | (rest & 0x3ffu) << 13);  // infinity or NaN
  // Read as a float's exponent and mantissa, the value is too small by a factor of 2^112, even if it is
  // subnormal.
  return bits_to_float(sign | rest << 13) * 0x1p112f;
#endif
}

}  // namespace clusterucb
