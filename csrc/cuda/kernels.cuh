// The CUDA kernels, which accumulate.cu launches.
//
// Every result is the same on every GPU, bit for bit, because the sizes of the segment and of the sketch
// alone determine the order of additions. Each slice of the segment has its own sums in the workspace, and
// `add_up` adds them in order. There are no atomics. A sample's result does not depend on the other samples
// of its batch either: the kernels for one sample and for kSamples add in the same order. They are compiled
// with -fmad=false, so that multiplications are fused with additions only where the source does it
// explicitly.
//
// There is no tensor-core code. The pass with S = 57 directions streams V in fp32, 228 bytes for each
// element, and needs S fused multiply-adds for each element and sample. For p = 4.2M on a GPU with 3.35 TB/s
// and 33e12 fp32 multiply-adds a second (H100), memory takes .29 ms and arithmetic .06 ms (B = 8) to .23 ms
// (B = 32). Tensor cores would therefore gain nothing below a B of some 40, and TF32 would keep only 10 bits
// of the mantissa. All these numbers are computed bounds, not measurements.
#pragma once

#include "packed.cuh"

namespace clusterucb {
namespace {

constexpr int kSamples = 8;  // samples that a thread works on at once; 1 if the batch is a single sample
constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// -- The sparse sketch --

constexpr int kSketchThreads = 128;

// How the rows of a segment are divided among threads. A thread's number is (slice, block, octet of buckets),
// and the octet varies fastest.
struct SparsePlan {
  std::int64_t rows;    // rows of a slice
  std::int64_t slices;  // number of slices; follows from n, d, s and the offset
  std::int64_t tiles;   // number of tiles of kSketchThreads threads each
  int width_bits;       // log2 of w
  int block_bits;       // log2 of s
  bool vector;          // whether addresses and sizes allow 16-byte loads
  bool squares;         // whether the kernel also computes the norm
  float* sums;          // [slices, B, d]
  double* squares_to;   // [tiles, B]
};

// Returns the signs of a turned octet: bit k is the sign of its lane k.
__device__ std::uint32_t turned_bits(std::uint32_t bits, int shift) {
  if (shift & 4) bits = bits >> 4 | bits << 4;
  if (shift & 2) bits = (bits >> 2 & 0x33u) | (bits & 0x33u) << 2;
  if (shift & 1) bits = (bits >> 1 & 0x55u) | (bits & 0x55u) << 1;
  return bits;
}

// Returns how many blocks the registers allow on an SM, which has 65536 of them and at most 255 for each
// thread. One row of fp32 gradients of eight samples takes 64 registers, besides 64 for the sums.
constexpr int blocks_on_an_sm(int samples, std::size_t itemsize) {
  return samples == 1 ? 6 : itemsize == 4 ? 2 : 3;
}

// A thread owns eight neighbouring buckets of `samples` samples. Row by row, it gathers the octet of
// coordinates that falls into them. The threads of a warp read whole lines although each row is permuted,
// because the permutation moves octets within a row. Sample groups and blocks of the sketch that read the
// same rows run at the same time, so that one of them reads the rows from memory and the others find them in
// the L2 cache.
template <Kind kind, typename In, int samples>
__global__ void __launch_bounds__(kSketchThreads, blocks_on_an_sm(samples, sizeof(In)))
    sparse_sketch(Segment s, SparsePlan plan) {
  __shared__ double folded[samples][kSketchThreads];
  const auto groups = static_cast<unsigned>((s.samples + samples - 1) / samples);
  const std::int64_t tile = blockIdx.x / groups, first = blockIdx.x % groups * samples;
  const std::int64_t thread = tile * kSketchThreads + threadIdx.x;
  const int octet_bits = plan.width_bits - 3;
  const std::int64_t octet = thread & ((std::int64_t(1) << octet_bits) - 1);
  const int block = static_cast<int>(thread >> octet_bits) & ((1 << plan.block_bits) - 1);
  const std::int64_t slice = thread >> (octet_bits + plan.block_bits);
  const bool squares = plan.squares && block == 0;
  const std::int64_t width = std::int64_t(1) << plan.width_bits;
  const SketchBlock keys = s.sketch.block[block];
  const In* gradient = static_cast<const In*>(s.gradient) + first * s.size;

  float sums[samples][kLanes] = {};
#pragma unroll
  for (int t = 0; t < samples; ++t) folded[t][threadIdx.x] = 0;

  const std::int64_t begin = (s.offset >> plan.width_bits) + slice * plan.rows;
  const std::int64_t last = (s.offset + s.size - 1) >> plan.width_bits;
  const std::int64_t end = begin + plan.rows <= last ? begin + plan.rows : last + 1;
  for (std::int64_t row = slice < plan.slices ? begin : end; row < end; ++row) {
    const std::int64_t from = (row << octet_bits) + (octet ^ octet_shift(keys, row, width));
    const std::int64_t at = from * kLanes - s.offset;  // the octet's position within the segment
    if (at >= 0 && at < s.size) {
      const int inside = s.size - at < kLanes ? static_cast<int>(s.size - at) : kLanes;
      Packed<In, kLanes> g[samples];
      Moments<kind, kLanes> moments;
      moments.load(s.m, s.v, at, inside, plan.vector);
      if (plan.vector && inside == kLanes) {
#pragma unroll
        for (int t = 0; t < samples; ++t) {
          if (first + t < s.samples) {
            g[t].load(gradient + t * s.size + at);
          } else {
            g[t].clear();
          }
        }
      } else {
#pragma unroll
        for (int t = 0; t < samples; ++t) {
          g[t].load(gradient + t * s.size + at, first + t < s.samples ? inside : 0);
        }
      }
      // Moments and gradients are turned while they are packed, which is less work than turning the updates.
      const int turn = lane_shift(keys, row, 1 << plan.block_bits);
      moments.turn(turn);
#pragma unroll
      for (int t = 0; t < samples; ++t) g[t].turn(turn);
      const std::uint32_t bits = turned_bits(octet_signs(keys, from), turn);
      // The loop over elements is outermost, so that an element's terms occupy registers only briefly.
      float square[samples] = {};
#pragma unroll
      for (int k = 0; k < kLanes; ++k) {
        const MomentTerms<float> terms = moments.terms(k, s.constants);
        const float sign = bits_to_float(0x3f800000u | bits >> k << 31);
#pragma unroll
        for (int t = 0; t < samples; ++t) {
          const float update = precondition<kind>(g[t][k], terms, s.constants);
          sums[t][k] = fused_multiply_add(update, sign, sums[t][k]);
          square[t] = fused_multiply_add(update, update, square[t]);
        }
      }
      if (squares) {
#pragma unroll
        for (int t = 0; t < samples; ++t) folded[t][threadIdx.x] += square[t];
      }
    }
  }

  if (slice < plan.slices) {
    float* to = plan.sums + (slice * s.samples + first) * s.sketch.dimension + (block << plan.width_bits);
#pragma unroll
    for (int t = 0; t < samples; ++t) {
      if (first + t < s.samples) {
#pragma unroll
        for (int k = 0; k < kLanes; ++k) to[t * s.sketch.dimension + octet * kLanes + k] = sums[t][k];
      }
    }
  }
  if (plan.squares) {
    __syncthreads();
    const int lane = threadIdx.x % kWarp;
    for (int t = threadIdx.x / kWarp; t < samples; t += kSketchThreads / kWarp) {
      double sum = 0;
      for (int k = lane; k < kSketchThreads; k += kWarp) sum += folded[t][k];
      for (int step = kWarp / 2; step; step /= 2) sum += __shfl_xor_sync(kAllLanes, sum, step);
      if (lane == 0 && first + t < s.samples) plan.squares_to[tile * s.samples + first + t] = sum;
    }
  }
}

// -- Inner products --

constexpr int kVector = 4;              // neighbouring elements of a thread
constexpr int kTile = kVector * kWarp;  // elements of a warp
constexpr int kWarps = 8;               // warps of a block
constexpr int kDirections = 8;          // directions of a warp
constexpr int kFold = 16;               // steps after which fp32 sums are added to double-precision sums

// The warps of a block form teams of 1, 2, 4 or 8 warps, with one warp for each 8 directions if there are
// enough warps. A team works on one tile of elements. First its warps divide the samples among them for
// preconditioning and write the updates to shared memory. Then each warp multiplies the updates of all
// samples with its own directions. If every warp preconditioned all samples itself, this would take more
// instructions than the multiplications.
struct ProductPlan {
  int length;           // elements of a slice, a multiple of kWarps * kTile; follows from n
  std::int64_t slices;  // number of slices
  int sets;             // number of sets of team * kDirections directions
  int team;             // warps of a team
  bool vector;          // whether addresses and sizes allow whole vectors to be loaded
  double* sums;         // [slices, B, S]
  double* squares_to;   // [slices, B]
};

// Sums every element of x over the warp. At each step a lane gives away half of its elements, as long as it
// holds more than one. At the end, x[0] and its followers hold the sums of x[lane * n / 32] and its
// followers, where n is the number of elements at the start.
template <int held, int step = kWarp / 2>
__device__ void sum_over_warp(float* x) {
  if constexpr (held == 1) {
    x[0] += __shfl_xor_sync(kAllLanes, x[0], step);
  } else {
    const bool upper = threadIdx.x & step;
#pragma unroll
    for (int k = 0; k < held / 2; ++k) {
      const float given = upper ? x[k] : x[k + held / 2];
      x[k] = (upper ? x[k + held / 2] : x[k]) + __shfl_xor_sync(kAllLanes, given, step);
    }
  }
  if constexpr (step > 1) sum_over_warp<(held + 1) / 2, step / 2>(x);
}

// The fp32 sums of a warp's threads, which are folded into double-precision sums held by its lanes.
template <int count>
struct WarpSums {
  static constexpr int kHeld = count > kWarp ? count / kWarp : 1;
  float part[count] = {};
  double whole[kHeld] = {};

  __device__ void fold() {
    sum_over_warp<count>(part);
#pragma unroll
    for (int k = 0; k < kHeld; ++k) whole[k] += part[k];
#pragma unroll
    for (int k = 0; k < count; ++k) part[k] = 0;
  }
  __device__ void store(double* to) const {
    const int lane = threadIdx.x % kWarp;
#pragma unroll
    for (int k = 0; k < kHeld; ++k) {
      if (count >= kWarp || lane % (kWarp / count) == 0) to[lane * count / kWarp + k] = whole[k];
    }
  }
};

template <Kind kind, typename In, int samples>
__global__ void __launch_bounds__(kWarps* kWarp, 2) inner_products(Segment s, ProductPlan plan) {
  alignas(16) __shared__ float updates[kWarps][samples][kTile];  // one tile for each team
  __shared__ double products[kWarps][samples * kDirections], squares[kWarps][samples];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int member = warp % plan.team, team = warp / plan.team, teams = kWarps / plan.team;
  const auto groups = static_cast<unsigned>((s.samples + samples - 1) / samples);
  const std::int64_t first = blockIdx.x % groups * samples;
  const std::int64_t set = blockIdx.x / groups % plan.sets, slice = blockIdx.x / groups / plan.sets;
  const std::int64_t first_direction = (set * plan.team + member) * kDirections;
  const std::int64_t begin = slice * plan.length;
  const int length = static_cast<int>(s.size - begin < plan.length ? s.size - begin : plan.length);
  const In* gradient = static_cast<const In*>(s.gradient) + first * s.size + begin;
  float* own = &updates[team][0][lane * kVector];

  WarpSums<samples * kDirections> product;
  WarpSums<samples> square;
  int step = 0;
  for (int base = 0; base < length; base += teams * kTile) {
    const int at = base + team * kTile + lane * kVector;  // within the slice
    const int inside = length - at < 0 ? 0 : length - at < kVector ? length - at : kVector;
    const bool vector = plan.vector && inside == kVector;
    {
      Moments<kind, kVector> moments;
      moments.load(s.m, s.v, begin + at, inside, plan.vector);
      MomentTerms<float> terms[kVector];
#pragma unroll
      for (int k = 0; k < kVector; ++k) terms[k] = moments.terms(k, s.constants);
      constexpr int held = sizeof(In) == 4 ? samples / 2 + samples % 2 : samples;  // limited by the registers
#pragma unroll
      for (int half = 0; half < samples; half += held) {
        Packed<In, kVector> g[held];
#pragma unroll
        for (int t = 0; t < held; ++t) {
          const bool mine = (half + t) % plan.team == member && first + half + t < s.samples;
          const In* from = gradient + (half + t) * s.size + at;
          if (mine && vector) {
            g[t].load(from);
          } else {
            g[t].load(from, mine ? inside : 0);
          }
        }
#pragma unroll
        for (int t = 0; t < held; ++t) {
          if ((half + t) % plan.team == member) {
            Words4 words;
            float sum = 0;
#pragma unroll
            for (int k = 0; k < kVector; ++k) {
              const float update = precondition<kind>(g[t][k], terms[k], s.constants);
              sum = fused_multiply_add(update, update, sum);
              std::memcpy(&words.word[k], &update, sizeof update);
            }
            square.part[half + t] += sum;
            *reinterpret_cast<Words4*>(own + (half + t) * kTile) = words;
          }
        }
      }
    }
    if (s.n_directions) {
      __syncthreads();
      if (first_direction < s.n_directions) {
        const float* from = s.directions + first_direction * s.stride + begin + at;
        Packed<float, kVector> direction[kDirections];
#pragma unroll
        for (int k = 0; k < kDirections; ++k) {
          const bool there = first_direction + k < s.n_directions;
          if (there && vector) {
            direction[k].load(from + k * s.stride);
          } else {
            direction[k].load(from + k * s.stride, there ? inside : 0);
          }
        }
#pragma unroll
        for (int t = 0; t < samples; ++t) {
          Packed<float, kVector> update;
          update.load(own + t * kTile);
#pragma unroll
          for (int k = 0; k < kDirections; ++k) {
            float& sum = product.part[t * kDirections + k];
#pragma unroll
            for (int e = 0; e < kVector; ++e) sum = fused_multiply_add(update[e], direction[k][e], sum);
          }
        }
      }
      __syncthreads();
    }
    if (++step % kFold == 0) {
      if (s.n_directions) product.fold();
      square.fold();
    }
  }

  product.fold();
  square.fold();
  product.store(products[warp]);
  square.store(squares[warp]);
  __syncthreads();
  for (int k = threadIdx.x; k < plan.team * samples * kDirections; k += kWarps * kWarp) {
    const int of = k / (samples * kDirections), t = k / kDirections % samples;
    const std::int64_t direction = (set * plan.team + of) * kDirections + k % kDirections;
    if (first + t >= s.samples || direction >= s.n_directions) continue;
    double sum = 0;
    for (int w = of; w < kWarps; w += plan.team) sum += products[w][k % (samples * kDirections)];
    plan.sums[(slice * s.samples + first + t) * s.n_directions + direction] = sum;
  }
  if (set == 0 && threadIdx.x < samples && first + threadIdx.x < s.samples) {
    double sum = 0;
    for (int w = 0; w < kWarps; ++w) sum += squares[w][threadIdx.x];
    plan.squares_to[slice * s.samples + first + threadIdx.x] = sum;
  }
}

// -- The dense sketch --

constexpr int kChunk = 128;  // elements whose updates and signs are in shared memory at a time

struct DensePlan {
  std::int64_t length;  // elements of a slice, a multiple of kChunk; follows from n and d
  std::int64_t slices;  // number of slices
  int tiles;            // number of tiles of kWarps words of 32 buckets
  bool squares;         // whether the kernel also computes the norm
  float* sums;          // [slices, B, d]
  double* squares_to;   // [slices, B]
};

template <Kind kind>
__device__ float update_of(const Segment& s, float g, std::int64_t at) {
  MomentTerms<float> terms{0, 0};
  if constexpr (kind != Kind::sgd) terms = moment_terms<kind>(s.m[at], s.v[at], s.constants);
  return precondition<kind>(g, terms, s.constants);
}

// Returns an element's update. It branches on dtype and kind for every element, because most of the work is
// elsewhere.
__device__ float update_of(const Segment& s, std::int64_t sample, std::int64_t at) {
  const std::int64_t k = sample * s.size + at;
  const float g = s.dtype == Dtype::f32    ? static_cast<const float*>(s.gradient)[k]
                  : s.dtype == Dtype::bf16 ? widen(static_cast<const BFloat16*>(s.gradient)[k])
                                           : widen(static_cast<const Float16*>(s.gradient)[k]);
  switch (s.kind) {
    case Kind::adam_less:
      return update_of<Kind::adam_less>(s, g, at);
    case Kind::adam:
      return update_of<Kind::adam>(s, g, at);
    case Kind::second_moment:
      return update_of<Kind::second_moment>(s, g, at);
    default:
      return g;
  }
}

// The dense sketch, which serves as a reference. A thread owns one bucket of kSamples samples, and a warp
// owns the 32 buckets of a word of signs. The block draws the signs and computes the updates of a chunk of
// elements together.
__global__ void __launch_bounds__(kWarps* kWarp) dense_sketch(Segment s, DensePlan plan) {
  __shared__ float updates[kChunk][kSamples];
  __shared__ std::uint32_t signs[kWarps][kChunk];
  __shared__ double squares[kSamples][kChunk];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const auto groups = static_cast<unsigned>((s.samples + kSamples - 1) / kSamples);
  const std::int64_t first = blockIdx.x % groups * kSamples;
  const std::int64_t tile = blockIdx.x / groups % plan.tiles, slice = blockIdx.x / groups / plan.tiles;
  const std::int64_t bucket = (tile * kWarps + warp) * 32 + lane;
  constexpr int strands = kWarps * kWarp / kChunk;  // threads that share an element, by samples
  const int element = threadIdx.x % kChunk, strand = threadIdx.x / kChunk;

  double sums[kSamples] = {}, square[kSamples / strands] = {};
  const std::int64_t begin = slice * plan.length;
  const std::int64_t end = begin + plan.length < s.size ? begin + plan.length : s.size;
  for (std::int64_t base = begin; base < end; base += kChunk) {
#pragma unroll
    for (int k = 0; k < kSamples / strands; ++k) {
      const int t = strand + k * strands;
      const bool there = base + element < end && first + t < s.samples;
      const float update = there ? update_of(s, first + t, base + element) : 0;
      square[k] += static_cast<double>(update) * update;
      updates[element][t] = update;
    }
    for (int k = threadIdx.x; k < kWarps * kChunk; k += kWarps * kWarp) {
      signs[k / kChunk][k % kChunk] =
          dense_signs(s.sketch, s.offset + base + k % kChunk, tile * kWarps + k / kChunk);
    }
    __syncthreads();
    float part[kSamples] = {};
    for (int k = 0; k < kChunk; ++k) {
      const float sign = bits_to_float(0x3f800000u | (signs[warp][k] >> lane << 31));
#pragma unroll
      for (int t = 0; t < kSamples; ++t) part[t] = fused_multiply_add(updates[k][t], sign, part[t]);
    }
#pragma unroll
    for (int t = 0; t < kSamples; ++t) sums[t] += part[t];
    __syncthreads();
  }
#pragma unroll
  for (int t = 0; t < kSamples; ++t) {
    if (bucket < s.sketch.dimension && first + t < s.samples) {
      plan.sums[(slice * s.samples + first + t) * s.sketch.dimension + bucket] = static_cast<float>(sums[t]);
    }
  }
  if (plan.squares && tile == 0) {
#pragma unroll
    for (int k = 0; k < kSamples / strands; ++k) squares[strand + k * strands][element] = square[k];
    __syncthreads();
    double sum = 0;
    for (int k = lane; k < kChunk; k += kWarp) sum += squares[warp][k];
    for (int step = kWarp / 2; step; step /= 2) sum += __shfl_xor_sync(kAllLanes, sum, step);
    if (lane == 0 && first + warp < s.samples) plan.squares_to[slice * s.samples + first + warp] = sum;
  }
}
static_assert(kSamples == kWarps, "at the end of a dense sketch, each warp adds up one sample's squares");

// -- The last step of every kernel above --

// Adds the sums of all slices, [rows, columns], to the segment's sums. In each column, each of blockDim.y
// threads adds up every blockDim.y-th row. The first of these threads then adds up their sums, in order.
template <typename Number>
__global__ void __launch_bounds__(1024)
    add_up(const Number* sums, std::int64_t rows, std::int64_t columns, Number* to) {
  __shared__ Number partial[kWarp][kWarp];
  const std::int64_t column = blockIdx.x * std::int64_t(kWarp) + threadIdx.x;
  Number sum = 0;
  if (column < columns) {
#pragma unroll 4
    for (std::int64_t row = threadIdx.y; row < rows; row += blockDim.y) sum += sums[row * columns + column];
  }
  partial[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y == 0 && column < columns) {
    Number total = 0;
    for (unsigned k = 0; k < blockDim.y; ++k) total += partial[k][threadIdx.x];
    to[column] += total;
  }
}

}  // namespace
}  // namespace clusterucb
