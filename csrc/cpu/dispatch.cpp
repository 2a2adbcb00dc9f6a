// Chooses the kernel once, and distributes its work over threads.
//
// The number of threads decides who does the work but never the order of additions: a segment is cut into
// slices by its size alone, each slice has its own sums, and these sums are added up in order.
#include <algorithm>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "clusterucb/kernels.hpp"

namespace clusterucb {
namespace {

constexpr std::int64_t kSlice = 1 << 17;  // the fewest elements of a slice that are worth a thread
constexpr std::int64_t kRows = 64;        // times d: the fewest elements that are worth a sketch of their own
constexpr std::int64_t kSlices = 16;      // the largest number of slices

struct Choice {
  const char* name;
  bool runs;  // whether this machine can run it
  void (*kernel)(const Segment&, const Range&);
};

// The kernels that were compiled, fastest first.
std::vector<Choice> choices() {
  return {
#ifdef CLUSTERUCB_X86
      // The kernel does not use VBMI2, but processors without it slow down when they use vectors of this
      // width.
      {"avx512",
       __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vbmi2"),
       accumulate_avx512},
      {"avx2",
       __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"),
       accumulate_avx2},
#endif
      {"generic", true, accumulate_generic},
  };
}

// Returns the kernel that CLUSTERUCB_SIMD names or, if it is not set, the fastest that this machine can run.
Choice choose() {
  const char* variable = std::getenv("CLUSTERUCB_SIMD");
  const std::string wanted = variable ? variable : "";
  for (const Choice& candidate : choices()) {
    if (wanted.empty() ? candidate.runs : wanted == candidate.name && candidate.runs) return candidate;
    if (wanted == candidate.name) {
      throw std::invalid_argument("the environment variable CLUSTERUCB_SIMD is '" + wanted +
                                  "', which this machine cannot run; leave it unset");
    }
  }
  std::string known;
  for (const Choice& candidate : choices()) {
    known += (known.empty() ? "" : ", ") + std::string(candidate.name);
  }
  throw std::invalid_argument("the environment variable CLUSTERUCB_SIMD is '" + wanted +
                              "'; expected one of " + known + ", or leave it unset");
}

const Choice& choice() {
  static const Choice chosen = choose();
  return chosen;
}

// The sums of one slice, before they are added to the segment's sums.
class Sums {
 public:
  explicit Sums(const Segment& s)
      : norm2_(s.samples), products_(s.samples * s.n_directions), sketched_(s.samples * s.sketch.dimension) {}

  Range of(std::int64_t begin, std::int64_t end) {
    return {begin, end, norm2_.data(), products_.data(), sketched_.data()};
  }
  void move_to(const Segment& s) {
    move(norm2_, s.norm2);
    move(products_, s.products);
    move(sketched_, s.sketched);
  }

 private:
  template <typename Number>
  static void move(std::vector<Number>& from, Number* to) {
    for (std::size_t k = 0; k < from.size(); ++k) to[k] += std::exchange(from[k], Number(0));
  }

  std::vector<double> norm2_, products_;
  std::vector<float> sketched_;
};

}  // namespace

void accumulate(const Segment& s, int threads) {
  const auto kernel = choice().kernel;
  const std::int64_t least = std::max(kSlice, kRows * s.sketch.dimension);
  const std::int64_t slices = std::min(kSlices, s.size / least);
  if (slices <= 1) return kernel(s, {0, s.size, s.norm2, s.products, s.sketched});
  const std::int64_t length = (s.size / slices + kLanes - 1) / kLanes * kLanes;
  const std::int64_t workers = std::clamp<std::int64_t>(threads, 1, slices);
  std::vector<Sums> sums(workers, Sums(s));
  std::mutex mutex;
  std::condition_variable moved;
  std::int64_t next = 0, done = 0;  // slices that were begun, and slices whose sums were added
  const auto work = [&](std::int64_t worker) {
    std::unique_lock lock(mutex);
    while (next < slices) {
      const std::int64_t slice = next++;
      lock.unlock();
      const std::int64_t begin = slice * length;
      kernel(s, sums[worker].of(begin, slice + 1 == slices ? s.size : begin + length));
      lock.lock();
      moved.wait(lock, [&] { return done == slice; });
      sums[worker].move_to(s);
      ++done;
      moved.notify_all();
    }
  };
  std::vector<std::thread> others;
  others.reserve(workers);
  for (std::int64_t worker = 1; worker < workers; ++worker) {
    try {
      others.emplace_back(work, worker);
    } catch (const std::system_error&) {
      break;  // the system gives no more threads: the existing threads do the work
    }
  }
  work(0);
  for (auto& other : others) other.join();
}

const char* simd() { return choice().name; }

}  // namespace clusterucb
