// Chooses the kernel once: what the machine can run, or what CLUSTERUCB_SIMD asks for.
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "clusterucb/kernels.hpp"

namespace clusterucb {
namespace {

bool has_avx2() {
#ifdef CLUSTERUCB_AVX2
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
  return false;
#endif
}

struct Choice {
  const char* name;
  void (*kernel)(const Segment&);
};

Choice choose() {
  const char* variable = std::getenv("CLUSTERUCB_SIMD");
  const std::string wanted = variable ? variable : "";
  if (!wanted.empty() && wanted != "generic" && wanted != "avx2") {
    throw std::invalid_argument("the environment variable CLUSTERUCB_SIMD is '" + wanted +
                                "'; expected generic or avx2, or leave it unset");
  }
  if (wanted == "avx2" && !has_avx2()) {
    throw std::invalid_argument(
        "the environment variable CLUSTERUCB_SIMD is 'avx2', which this machine cannot run; leave it unset");
  }
#ifdef CLUSTERUCB_AVX2
  if (wanted != "generic" && has_avx2()) return {"avx2", accumulate_avx2};
#endif
  return {"generic", accumulate_generic};
}

const Choice& choice() {
  static const Choice chosen = choose();
  return chosen;
}

}  // namespace

void accumulate(const Segment& segment) { choice().kernel(segment); }

const char* simd() { return choice().name; }

}  // namespace clusterucb
