// Counts the edges that the sanitised extension takes, for libFuzzer.
//
// gcc calls __sanitizer_cov_trace_pc at every edge (-fsanitize-coverage=trace-pc), and libFuzzer reads arrays
// of counters. fuzz.py gives libFuzzer the two tables below.
#include <cstddef>
#include <cstdint>

namespace {
constexpr std::size_t kCounters = 1 << 13;
struct Edge {
  std::uintptr_t address, flags;
};
}  // namespace

extern "C" {
__attribute__((visibility("default"))) std::uint8_t clusterucb_counters[kCounters];
__attribute__((visibility("default"))) Edge clusterucb_edges[kCounters];

__attribute__((no_sanitize("address", "undefined"))) void __sanitizer_cov_trace_pc() {
  const auto caller = reinterpret_cast<std::uintptr_t>(__builtin_return_address(0));
  const auto here = reinterpret_cast<std::uintptr_t>(&clusterucb_counters);  // moves with the module
  std::uint8_t& counter = clusterucb_counters[((here - caller) * 0x9E3779B97F4A7C15ull) >> 51];
  counter += counter < 255;
}
}
