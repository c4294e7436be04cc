#include <cooperative_groups.h>

#include "kernels/cuda/common/launch.cuh"
#include "kernels/sample/device_draw.h"

// A cluster of eight blocks per row. A block has a contiguous part of the ids, in shared memory:
// tiles of 1024, four neighbouring ids per thread, who alone looks at them. So ids ascend by
// (block, tile, thread, place).
//
// What the blocks tell each other goes through an exchange: a place for every message in every
// block's shared memory, written once per launch, so that one cluster barrier per message suffices.

namespace rwkv::cuda {
namespace {

namespace cg = cooperative_groups;
using namespace rwkv::sample;

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kTile = 4 * kThreads;
constexpr int kMostTiles = static_cast<int>(kMostVocab / (kTile * kParts));
/// Blocks of a multiprocessor, by shared memory.
constexpr int kBlocksAtOnce = 5;
constexpr int kSegment = kBuckets / kParts;
/// Messages of a launch: largest and first bad one; total weight; per search one for the number of
/// finite tokens and two per level (at most 5); per located token two; all generously.
constexpr int kMessages = 48;
constexpr unsigned kAll = 0xffffffffu;

struct Shared {
  float4 values[kMostTiles][kThreads];
  uint64_t exchange[kMessages][kParts];
  /// Amounts in three parts of 15 bits, so that sums of 8192 fit, and numbers of tokens.
  uint32_t low[kBuckets], middle[kBuckets], high[kBuckets], count[kBuckets];
  uint64_t cells[kMostTiles * kWarps];
  uint64_t warp_sums[2][kWarps];
};

__device__ __forceinline__ int32_t ordered(float x) {
  const auto bits = static_cast<int32_t>(__float_as_uint(x));
  return bits ^ ((bits >> 31) & 0x7fffffff);
}
__device__ __forceinline__ float unordered(int32_t i) {
  return __uint_as_float(static_cast<uint32_t>(i ^ ((i >> 31) & 0x7fffffff)));
}

struct Add {
  __device__ uint64_t operator()(uint64_t a, uint64_t b) const { return a + b; }
};
struct Largest {
  __device__ uint64_t operator()(uint64_t a, uint64_t b) const { return a > b ? a : b; }
};
template <class F>
__device__ __forceinline__ uint64_t warp_reduce(uint64_t x, const F& f) {
#pragma unroll
  for (int i = 16; i > 0; i >>= 1) x = f(x, __shfl_xor_sync(kAll, x, i));
  return x;
}
/// Sum of the lanes up to and with this one.
__device__ __forceinline__ uint64_t warp_prefix(uint64_t x) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int i = 1; i < 32; i <<= 1) {
    const uint64_t y = __shfl_up_sync(kAll, x, i);
    if (lane >= i) x += y;
  }
  return x;
}

/// A row's blocks at work.
class RowBlock {
 public:
  __device__ RowBlock(Shared& shared, int tiles)
      : s_(shared),
        cluster_(cg::this_cluster()),
        rank_(static_cast<int>(cluster_.block_rank())),
        first_(rank_ * tiles * kTile + 4 * static_cast<int>(threadIdx.x)),
        tiles_(tiles) {}

  __device__ int rank() const { return rank_; }

  /// Ids from `limit` on are -infinity.
  __device__ void load(const float* row, int limit, bool aligned) {
#pragma unroll 4
    for (int i = 0; i < tiles_; ++i) {
      const int at = first_ + i * kTile;
      float4 v = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
      if (aligned && at + 4 <= limit) {
        v = *reinterpret_cast<const float4*>(row + at);
      } else {
        if (at < limit) v.x = row[at];
        if (at + 1 < limit) v.y = row[at + 1];
        if (at + 2 < limit) v.z = row[at + 2];
        if (at + 3 < limit) v.w = row[at + 3];
      }
      mine(i) = v;
    }
  }

  /// f(value, id) for all that this thread has, by ascending ids.
  template <class F>
  __device__ __forceinline__ void each(const F& f) const {
#pragma unroll 2
    for (int i = 0; i < tiles_; ++i) {
      const float4 v = mine(i);
      const int at = first_ + i * kTile;
      f(v.x, at), f(v.y, at + 1), f(v.z, at + 2), f(v.w, at + 3);
    }
  }
  /// From now on the values are distances.
  __device__ void subtract_from(float largest) {
#pragma unroll 2
    for (int i = 0; i < tiles_; ++i) {
      float4& v = mine(i);
      v = {largest - v.x, largest - v.y, largest - v.z, largest - v.w};
    }
  }

  /// The same for all threads of the cluster: f of what all threads have.
  template <class F>
  __device__ uint64_t reduce(uint64_t x, const F& f) {
    x = block_reduce(x, f);
    send(x);
    uint64_t all = receive(0);
#pragma unroll
    for (int i = 1; i < kParts; ++i) all = f(all, receive(i));
    ++message_;
    return all;
  }

  /// Largest value and the first bad id (NaN, +infinity), or INT32_MAX.
  __device__ float largest(int32_t& bad) {
    int32_t most = ordered(-INFINITY);
    int32_t first = INT32_MAX;
    each([&](float x, int id) {
      if (x < INFINITY)
        most = max(most, ordered(x));
      else
        first = min(first, id);
    });
    // Bad ones win: with the first of them as the rest of the number.
    const uint64_t none = static_cast<uint64_t>(static_cast<uint32_t>(most) ^ 0x80000000u);
    const uint64_t word =
        first == INT32_MAX ? none : uint64_t{1} << 40 | static_cast<uint32_t>(INT32_MAX - first);
    const uint64_t all = reduce(word, Largest());
    bad = all >> 40 == 0 ? INT32_MAX : INT32_MAX - static_cast<int32_t>(all & 0x7fffffffu);
    return all >> 40 == 0
               ? unordered(static_cast<int32_t>(static_cast<uint32_t>(all) ^ 0x80000000u))
               : INFINITY;
  }

  template <class Amount>
  __device__ uint64_t total(const Amount& amount) {
    uint64_t sum = 0;
    each([&](float x, int id) { sum += amount(x, id); });
    return reduce(sum, Add());
  }

  /// The first id at which the running sum of amounts exceeds target_of(their total); -1 if it
  /// never does.
  template <class Amount, class Target>
  __device__ int32_t locate(const Amount& amount, const Target& target_of) {
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    __syncthreads();
#pragma unroll 2
    for (int i = 0; i < tiles_; ++i) {
      const uint64_t sum = warp_reduce(tile_sum(amount, i), Add());
      if (lane == 0) s_.cells[i * kWarps + warp] = sum;
    }
    __syncthreads();
    uint64_t here = 0;
    for (int i = 0; i < tiles_ * kWarps; ++i) here += s_.cells[i];
    send(here);
    uint64_t before = 0, all = 0;
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      if (i == rank_) before = all;
      all += receive(i);
    }
    ++message_;
    const uint64_t target = target_of(all);
    // One thread of one block finds it, or none.
    if (target >= before && target < before + here) {
      int cell = 0;
      for (; before + s_.cells[cell] <= target; ++cell) before += s_.cells[cell];
      if (cell % kWarps == warp) {
        const int tile = cell / kWarps;
        const uint64_t sum = tile_sum(amount, tile);
        uint64_t at = before + warp_prefix(sum) - sum;
        const float4 v = mine(tile);
        const float values[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const int id = first_ + tile * kTile + k;
          const uint64_t w = amount(values[k], id);
          if (target >= at && target < at + w)
            for (int i = 0; i < kParts; ++i)
              cluster_.map_shared_rank(&s_, i)->exchange[message_][0] =
                  static_cast<uint64_t>(id) + 1;
          at += w;
        }
      }
    }
    cluster_.sync();
    const uint64_t found = s_.exchange[message_++][0];
    return target < all ? static_cast<int32_t>(found) - 1 : -1;
  }

  /// As search() of draw_cpu.cpp; `counts`: amounts are 1.
  template <class Amount>
  __device__ Cut search(const Amount& amount, uint64_t target, bool counts) {
    KeyRange range;
    Cut cut;
    uint64_t before = 0;
    while (true) {
      const int shift = range.first ? 0 : range.shift();
      uint64_t found_count = 0, skipped = 0;
      const uint32_t bucket = level(range, shift, amount, target - before, skipped, found_count);
      before += skipped;
      range = range.inside(bucket, shift);
      if (found_count > 1 && range.high - range.low > 1) continue;
      cut.end = range.high;
      if (counts && target - before < found_count) {
        cut.tie = range.low;
        cut.ties = target - before;
      }
      return cut;
    }
  }

  /// Every block's own most probable tokens.
  __device__ void top(int n, TopEntry* out) {
    uint64_t last = UINT64_MAX;  // ranks are unique: only lower ones follow
    for (int place = 0; place < n; ++place) {
      uint64_t best = 0;
      each([&](float x, int id) {
        if (!(x > -INFINITY)) return;
        const uint32_t high = static_cast<uint32_t>(ordered(x + 0.0f)) ^ 0x80000000u;
        const uint64_t rank =
            static_cast<uint64_t>(high) << 32 | (0xffffffffu - static_cast<uint32_t>(id));
        if (rank < last && rank > best) best = rank;
      });
      best = block_reduce(best, Largest());
      last = best;
      if (threadIdx.x != 0) continue;
      TopEntry e;
      if (best != 0) {
        e.token = static_cast<int32_t>(0xffffffffu - static_cast<uint32_t>(best));
        e.logit = unordered(static_cast<int32_t>(static_cast<uint32_t>(best >> 32) ^ 0x80000000u));
      }
      out[place] = e;
    }
  }

  /// Nobody leaves while others may still write to its memory.
  __device__ void leave() {
    cluster_.sync();
  }

 private:
  __device__ __forceinline__ float4& mine(int tile) {
    return s_.values[tile][threadIdx.x];
  }
  __device__ __forceinline__ const float4& mine(int tile) const {
    return s_.values[tile][threadIdx.x];
  }
  template <class Amount>
  __device__ __forceinline__ uint64_t tile_sum(const Amount& amount, int tile) const {
    const float4 v = mine(tile);
    const int at = first_ + tile * kTile;
    return amount(v.x, at) + amount(v.y, at + 1) + amount(v.z, at + 2) + amount(v.w, at + 3);
  }

  template <class F>
  __device__ uint64_t block_reduce(uint64_t x, const F& f) {
    x = warp_reduce(x, f);
    __syncthreads();
    if (threadIdx.x % 32 == 0) s_.warp_sums[0][threadIdx.x / 32] = x;
    __syncthreads();
    x = s_.warp_sums[0][0];
#pragma unroll
    for (int i = 1; i < kWarps; ++i) x = f(x, s_.warp_sums[0][i]);
    return x;
  }

  /// A block's number, the same in all its threads, to all blocks.
  __device__ void send(uint64_t x) {
    if (threadIdx.x < kParts)
      cluster_.map_shared_rank(&s_, threadIdx.x)->exchange[message_][rank_] = x;
    cluster_.sync();
  }
  __device__ uint64_t receive(int from) const {
    return s_.exchange[message_][from];
  }

  /// One histogram of the keys in range; the bucket in which the running sum reaches target.
  template <class Amount>
  __device__ uint32_t level(const KeyRange& range, int shift, const Amount& amount, uint64_t target,
                            uint64_t& skipped, uint64_t& found_count) {
    const int tid = static_cast<int>(threadIdx.x);
    for (int b = tid; b < static_cast<int>(kBuckets); b += kThreads)
      s_.low[b] = s_.middle[b] = s_.high[b] = s_.count[b] = 0;
    __syncthreads();
    each([&](float d, int id) {
      const uint32_t x = __float_as_uint(d);
      if (!range.holds(x)) return;
      const uint32_t b = range.bucket(x, shift);
      const uint64_t w = amount(d, id);
      atomicAdd(&s_.count[b], 1u);
      if (const auto part = static_cast<uint32_t>(w) & 0x7fffu) atomicAdd(&s_.low[b], part);
      if (const auto part = static_cast<uint32_t>(w >> 15) & 0x7fffu)
        atomicAdd(&s_.middle[b], part);
      if (const auto part = static_cast<uint32_t>(w >> 30)) atomicAdd(&s_.high[b], part);
    });
    cluster_.sync();
    // Every block adds up a segment of the buckets.
    uint64_t sum = 0, count = 0;
    if (tid < kSegment) {
      const int b = rank_ * kSegment + tid;
      for (int i = 0; i < kParts; ++i) {
        const Shared* const other = cluster_.map_shared_rank(&s_, i);
        sum += other->low[b] + (static_cast<uint64_t>(other->middle[b]) << 15) +
               (static_cast<uint64_t>(other->high[b]) << 30);
        count += other->count[b];
      }
    }
    uint64_t up_to = warp_prefix(sum);
    if (tid % 32 == 31) s_.warp_sums[1][tid / 32] = up_to;
    __syncthreads();
    for (int i = 0; i < tid / 32; ++i) up_to += s_.warp_sums[1][i];
    uint64_t segment = 0;
    for (int i = 0; i < kSegment / 32; ++i) segment += s_.warp_sums[1][i];
    send(segment);
    uint64_t earlier = 0;
    for (int i = 0; i < rank_; ++i) earlier += receive(i);
    ++message_;
    // One thread of one block finds it, or none: then it is the last bucket.
    const uint64_t before = earlier + up_to - sum;
    if (tid < kSegment && before < target && before + sum >= target)
      for (int i = 0; i < kParts; ++i) {
        auto& exchange = cluster_.map_shared_rank(&s_, i)->exchange[message_];
        exchange[0] = static_cast<uint64_t>(rank_ * kSegment + tid) + 1;
        exchange[1] = before;
        exchange[2] = count;
      }
    cluster_.sync();
    const auto& exchange = s_.exchange[message_++];
    skipped = exchange[1];
    found_count = exchange[2];
    return static_cast<uint32_t>(exchange[0]) - 1;
  }

  Shared& s_;
  cg::cluster_group cluster_;
  int rank_, first_, tiles_;
  int message_ = 0;
};

__global__ void __cluster_dims__(kParts, 1, 1) __launch_bounds__(kThreads, kBlocksAtOnce)
    draw_kernel(const DrawCall call, int tiles, bool aligned) {
  __shared__ Shared shared;
  const int row = static_cast<int>(blockIdx.x) / kParts;
  const DrawRow draw = call.draws[row];
  if (draw.adjustments < 0) return;
  RowBlock block(shared, tiles);
  const float* const logits = call.logits + row * call.vocab;
  block.load(logits, draw.vocab, aligned);
  int32_t bad = 0;
  const float largest = block.largest(bad);
  int32_t token = -1;
  if (bad == INT32_MAX && largest > -INFINITY) {
    block.subtract_from(largest);
    const auto one = [](float d, int) { return uint64_t{d < INFINITY ? 1u : 0u}; };
    if (draw.inverse_temperature == 0) {
      token = block.locate([](float d, int) { return uint64_t{d == 0 ? 1u : 0u}; },
                           [](uint64_t) { return uint64_t{0}; });
    } else {
      Cut cut;
      if (draw.top_p != 0) {
        const auto amount = [](float d, int) { return weight_of(d, 1); };
        cut = block.search(amount, top_p_target(draw.top_p, block.total(amount)), false);
      }
      const auto top_k = static_cast<uint64_t>(draw.top_k);
      if (top_k != 0 && top_k < block.total(one)) {
        const Cut by_count = block.search(one, top_k, true);
        cut.end = min(cut.end, by_count.end);
        cut.tie = by_count.tie;
        cut.ties = by_count.ties;
      }
      int32_t last_tie = -1;  // of those that stay
      if (cut.tie < cut.end && cut.ties > 0)
        last_tie = block.locate(
            [&](float d, int) { return uint64_t{__float_as_uint(d) == cut.tie ? 1u : 0u}; },
            [&](uint64_t) { return cut.ties - 1; });
      const auto weight = [&](float d, int id) {
        const uint32_t key = __float_as_uint(d);
        const bool kept = key < cut.end && d <= draw.farthest && (key != cut.tie || id <= last_tie);
        return kept ? weight_of(d, draw.inverse_temperature) : uint64_t{0};
      };
      token =
          block.locate(weight, [&](uint64_t total) { return high_product(draw.random, total); });
    }
  }
  if (block.rank() == 0 && threadIdx.x == 0) {
    DrawResult& r = call.results[row];
    r.token = token;
    r.bad = bad == INT32_MAX ? -1 : bad;
    r.bad_logit = bad == INT32_MAX ? 0 : logits[bad];
    if (token >= 0) r.logit = logits[token];
  }
  if (block.rank() == 0 && draw.top >= 0 && token >= 0 && draw.adjustments > 0) {
    __syncthreads();
    const int64_t at = draw.slot * call.capacity;
    for (int i = static_cast<int>(threadIdx.x); i < draw.adjustments; i += kThreads)
      if (call.adjustments[at + i].token == token) call.results[row].logit = call.before[at + i];
  }
  block.leave();
}

/// Before the adjustments: what the log-probabilities of the model are made from.
__global__ void __cluster_dims__(kParts, 1, 1) __launch_bounds__(kThreads, kBlocksAtOnce)
    observe_kernel(const DrawCall call, int tiles, bool aligned) {
  __shared__ Shared shared;
  const int row = static_cast<int>(blockIdx.x) / kParts;
  const DrawRow draw = call.draws[row];
  if (draw.adjustments < 0 || draw.top < 0) return;
  RowBlock block(shared, tiles);
  block.load(call.logits + row * call.vocab, draw.vocab, aligned);
  int32_t bad = 0;
  const float largest = block.largest(bad);
  const uint64_t total = block.total([&](float x, int) { return weight_of(largest - x, 1); });
  block.top(min(draw.top, kMostTop), call.top + (row * kParts + block.rank()) * kMostTop);
  if (block.rank() == 0 && threadIdx.x == 0) {
    call.results[row].largest = largest;
    call.results[row].total = total;
  }
  block.leave();
}

__global__ void update_kernel(const DrawCall call) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= call.update_count) return;
  const AdjustmentUpdate u = call.updates[i];
  call.adjustments[u.slot * call.capacity + u.index] = u.value;
}

__global__ void adjust_kernel(const DrawCall call) {
  const DrawRow draw = call.draws[blockIdx.x];
  const int64_t at = draw.slot * call.capacity;
  for (int i = static_cast<int>(threadIdx.x); i < draw.adjustments; i += kThreads) {
    const Adjustment a = call.adjustments[at + i];
    if (a.token < 0 || a.token >= draw.vocab) continue;
    float& logit = call.logits[blockIdx.x * call.vocab + a.token];
    call.before[at + i] = logit;
    logit = adjusted(logit, a, draw);
  }
}

void launch(const DrawCall& call, int tiles, bool aligned, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>(call.rows * kParts);
  if (call.any_top) {
    observe_kernel<<<blocks, kThreads, 0, stream>>>(call, tiles, aligned);
    RWKV_LAUNCHED("log-probabilities", stream);
  }
  if (call.any_adjustments) {
    adjust_kernel<<<static_cast<unsigned>(call.rows), kThreads, 0, stream>>>(call);
    RWKV_LAUNCHED("penalties", stream);
  }
  draw_kernel<<<blocks, kThreads, 0, stream>>>(call, tiles, aligned);
  RWKV_LAUNCHED("draws", stream);
}

}  // namespace
}  // namespace rwkv::cuda

namespace rwkv::sample {

void draw_rows(Context& ctx, const DrawCall& call) {
  RWKV_CHECK(call.vocab >= 1 && call.vocab <= kMostVocab, ConfigError,
             "draws on a GPU: a vocabulary of ", call.vocab, ", expected 1 to ", kMostVocab);
  if (call.rows == 0) return;
  const cudaStream_t stream = cuda::stream_of(ctx);
  if (call.update_count > 0) {
    const auto blocks =
        static_cast<unsigned>((call.update_count + cuda::kThreads - 1) / cuda::kThreads);
    cuda::update_kernel<<<blocks, cuda::kThreads, 0, stream>>>(call);
    RWKV_LAUNCHED("updates of penalties", stream);
  }
  const int64_t part = int64_t{cuda::kTile} * kParts;
  const auto tiles = static_cast<int>((call.vocab + part - 1) / part);
  const bool aligned = call.vocab % 4 == 0 && reinterpret_cast<uintptr_t>(call.logits) % 16 == 0;
  cuda::launch(call, tiles, aligned, stream);
}

}  // namespace rwkv::sample
