#pragma once
/// The kernel that decodes one token of one sequence. One block per multiprocessor, all at once;
/// blocks meet only through exchange.cuh. The residual stream lies in registers, the same in every
/// block: thread t owns the pairs of channels t, t + 512, ...
///
/// A place of the exchange is written again one layer later. By then everybody has read it: what is
/// written in a stage needs the whole of the stage before, which needs rows of every block.

#include "kernels/cuda/decode/step.cuh"
#include "kernels/wkv/cuda/wkv7_fp16.cuh"

namespace rwkv::cuda::decode {

using rwkv::decode::kThreads;
using rwkv::decode::Param;

template <class T, int kPairs, bool kHalfState>
class Step {
 public:
  __device__ __forceinline__ Step(const Args& a, std::byte* shared)
      : a_(a),
        l_(a.l),
        d_(a.l.shape.width),
        block_(static_cast<int>(blockIdx.x)),
        blocks_(static_cast<int>(gridDim.x)),
        t_(static_cast<int>(threadIdx.x)),
        warp_(t_ / 32),
        lane_(t_ % 32),
        norm_(*reinterpret_cast<NormMemory*>(shared + kNormAt)),
        head_memory_(*reinterpret_cast<HeadMemory*>(shared + kHeadAt)),
        low_(reinterpret_cast<float*>(shared + a.lora_at)),
        x_(reinterpret_cast<float*>(shared + a.x_at)),
        sums_(reinterpret_cast<float*>(shared + a.sums_at)),
        head_(head_of_block()),
        slice_(block_ / a.l.splits),
        split_(block_ % a.l.splits),
        value_rows_(a.l.shape.ffn / a.l.splits),
        ranges_(make_ranges(*reinterpret_cast<Ranges*>(shared + kRangesAt))),
        stream_(a.l, ranges_, a.weights, head_, shared + a.ring_at + warp_ * a.slots * kSlotBytes,
                reinterpret_cast<uint64_t*>(shared) + warp_ * rwkv::decode::kMaxSlots, a.slots) {}

  __device__ __forceinline__ void run() {
    const int slot = *a_.slot, token = *a_.token, layers = l_.shape.layers;
    const uint32_t launch = fetch_word(a_.epoch);
    const uint32_t elapsed = fetch_word(a_.elapsed + slot);
    shift_ = reinterpret_cast<T*>(a_.shift) + static_cast<int64_t>(slot) * layers * 2 * d_;
    constexpr int64_t kStateBytes = int64_t{kN} * kN * (kHalfState ? 2 : 4);
    wkv_ = a_.wkv + static_cast<int64_t>(slot) * layers * l_.shape.heads() * kStateBytes +
           static_cast<int64_t>(max(head_, 0)) * kStateBytes;
    for (int i = t_; i < l_.padded_ranks(); i += kThreads) low_[i] = 0.0f;
    const T* const row =
        reinterpret_cast<const T*>(a_.weights + l_.embedding_at) + static_cast<int64_t>(token) * d_;
    own_ = -1;
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      const int p = t_ + kThreads * i;
      mine_[i] = p < d_ / 2;
      residual_[i] = mine_[i] ? fetch_pair(row + 2 * p) : make_float2(0.0f, 0.0f);
      if (p >= ranges_.begin[Ranges::kOwnPairs] && p < ranges_.end[Ranges::kOwnPairs]) own_ = p;
    }
    count_ = pairs_of(warp_);
    lane_count_ = lane_ < kWarps ? pairs_of(lane_) : 0.0f;
    while (ranges_.begin[Ranges::kIn] >= l_.section[first_section_ + 1]) ++first_section_;
    ahead(0);
    for (int layer = 0; layer < layers; ++layer) {
      params_ = a_.params + static_cast<int64_t>(layer) * rwkv::decode::kParams * d_;
      tag_ = launch * static_cast<uint32_t>(layers) + static_cast<uint32_t>(layer) + 1u;
      if (layer + 1 < layers) ahead(layer + 1);
      if (a_.prefetch_value && block_ < l_.value_blocks())
        prefetch_lines(value_rows(layer), 0,
                       value_rows_ * l_.slice * static_cast<int>(sizeof(T)) / 128);
      in(layer);
      if (head_ >= 0) lora(layer, elapsed, wkv_ + layer * (l_.shape.heads() * kStateBytes));
      out(layer);
      key(layer);
      value(layer);
    }
    head(layers);
    if (block_ == 0 && t_ == 0) {
      *a_.epoch = launch + 1u;
      a_.elapsed[slot] = static_cast<int32_t>(elapsed + 1u);
    }
  }

 private:
  __device__ __forceinline__ int head_of_block() const {
    const int heads = l_.shape.heads();
    const int h = (block_ * heads + blocks_ - 1) / blocks_;
    return h < heads && h * blocks_ / heads == block_ ? h : -1;
  }
  /// Every thread calls it; a barrier of the block.
  __device__ __forceinline__ const Ranges& make_ranges(Ranges& to) const {
    const int sizes[Ranges::kCount] = {l_.in_rows(),
                                       l_.shape.width,
                                       l_.shape.ffn,
                                       l_.shape.vocab,
                                       static_cast<int>(rwkv::decode::kParams) * d_ * 4 / 128,
                                       2 * d_ * static_cast<int>(sizeof(T)) / 128,
                                       d_ / 2};
    if (t_ == 0)
#pragma unroll
      for (int i = 0; i < Ranges::kCount; ++i) {
        to.begin[i] = first_row(sizes[i], block_, blocks_);
        to.end[i] = first_row(sizes[i], block_ + 1, blocks_);
      }
    __syncthreads();
    return to;
  }
  /// Channels of the residual stream that a warp has.
  __device__ __forceinline__ float pairs_of(int warp) const {
    int n = 0;
#pragma unroll
    for (int i = 0; i < kPairs; ++i) n += min(max(d_ / 2 - kThreads * i - 32 * warp, 0), 32);
    return static_cast<float>(2 * n);
  }
  __device__ __forceinline__ void stamp(int layer, int what) {
    if (a_.stamps == nullptr || t_ != 0 || (block_ != 0 && block_ != blocks_ - 1)) return;
    const int who = block_ == 0 ? 0 : 1;
    a_.stamps[(static_cast<int64_t>(who) * (l_.shape.layers + 1) + layer) * rwkv::decode::kStamps +
              what] = clock64();
  }
  __device__ __forceinline__ const float* param(Param p) const {
    return params_ + static_cast<int64_t>(p) * d_;
  }

  /// Brings to the L2 cache what a layer reads besides the stream.
  __device__ __forceinline__ void ahead(int next) {
    const size_t bytes = static_cast<size_t>(rwkv::decode::kParams) * d_ * sizeof(float);
    prefetch_lines(reinterpret_cast<const std::byte*>(a_.params) + next * bytes,
                   ranges_.begin[Ranges::kParamLines], ranges_.end[Ranges::kParamLines]);
    prefetch_lines(shift_ + static_cast<int64_t>(next) * 2 * d_, ranges_.begin[Ranges::kShiftLines],
                   ranges_.end[Ranges::kShiftLines]);
    constexpr int kStateBytes = kN * kN * (kHalfState ? 2 : 4);
    if (head_ >= 0)
      prefetch_lines(wkv_ + static_cast<int64_t>(next) * l_.shape.heads() * kStateBytes, 0,
                     kStateBytes / 128);
  }

  /// Mean and 1 / sqrt(variance + epsilon) of the residual stream; a barrier of the block.
  __device__ __forceinline__ float2 statistics() {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kPairs; ++i) sum += residual_[i].x + residual_[i].y;
    const float mean = warp_sum(sum) / fmaxf(count_, 1.0f);
    float squares = 0;
#pragma unroll
    for (int i = 0; i < kPairs; ++i)
      if (mine_[i]) {
        const float dx = residual_[i].x - mean, dy = residual_[i].y - mean;
        squares += dx * dx + dy * dy;
      }
    squares = warp_sum(squares);
    if (lane_ == 0) {
      norm_.mean[warp_] = mean;
      norm_.squares[warp_] = squares;
    }
    __syncthreads();
    const bool entry = lane_ < kWarps;
    const float n = lane_count_, m = entry ? norm_.mean[lane_] : 0.0f,
                s = entry ? norm_.squares[lane_] : 0.0f;
    const auto width = static_cast<float>(d_);
    const float all = warp_sum(n * m) / width;
    const float off = m - all;
    const float variance = warp_sum(s + n * off * off) / width;
    return {all, rsqrtf(variance + 1e-5f)};
  }

  /// The residual stream takes in what the value stage of the layer before has left.
  __device__ __forceinline__ void take_parts(uint32_t tag) {
    for (int s = 0; s < l_.splits; s += 2) {
      float2 x[2 * kPairs];
      bool wanted[2 * kPairs];
#pragma unroll
      for (int i = 0; i < kPairs; ++i) {
        wanted[2 * i] = mine_[i];
        wanted[2 * i + 1] = mine_[i] && s + 1 < l_.splits;
      }
      get_pairs(x, tag, a_.nap, wanted, [&](int i) {
        return a_.parts + static_cast<int64_t>(s + i % 2) * d_ + 2 * (t_ + kThreads * (i / 2));
      });
#pragma unroll
      for (int i = 0; i < kPairs; ++i) {
        residual_[i].x += x[2 * i].x + x[2 * i + 1].x;
        residual_[i].y += x[2 * i].y + x[2 * i + 1].y;
      }
    }
  }

  __device__ __forceinline__ void put_shift(int layer, int which, float2 kept) {
    if (own_ >= 0)
      store_pair(shift_ + (static_cast<int64_t>(layer) * 2 + which) * d_ + 2 * own_, kept);
  }

  /// The normalised stream, with the part that is this block's to store kept aside.
  __device__ __forceinline__ void normalise(const float2 (&weight)[kPairs],
                                            const float2 (&bias)[kPairs], float2 (&h)[kPairs],
                                            float2& kept) {
    const float2 s = statistics();
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      h[i].x = (residual_[i].x - s.x) * s.y * weight[i].x + bias[i].x;
      h[i].y = (residual_[i].y - s.x) * s.y * weight[i].y + bias[i].y;
      if (t_ + kThreads * i == own_) kept = h[i];
    }
  }
  __device__ __forceinline__ void fetch_all(const float* from, float2 (&x)[kPairs]) {
#pragma unroll
    for (int i = 0; i < kPairs; ++i)
      x[i] = mine_[i] ? fetch(from + 2 * (t_ + kThreads * i)) : make_float2(0.0f, 0.0f);
  }
  __device__ __forceinline__ void put_input(float* x, int i, float a, float b) {
    if (mine_[i])
      *reinterpret_cast<float2*>(x + place<T>(2 * (t_ + kThreads * i), d_)) = make_float2(a, b);
  }
  __device__ __forceinline__ void put_mixed(float* x, const float2 (&h)[kPairs],
                                            const float2 (&before)[kPairs],
                                            const float2 (&mix)[kPairs]) {
#pragma unroll
    for (int i = 0; i < kPairs; ++i)
      put_input(x, i, h[i].x + (before[i].x - h[i].x) * mix[i].x,
                h[i].y + (before[i].y - h[i].y) * mix[i].y);
  }

  /// Layer norm, token shift, rows of r, k, v and of the first low-rank matrices.
  __device__ __forceinline__ void in(int layer) {
    const int begin = ranges_.begin[Ranges::kIn], end = ranges_.end[Ranges::kIn];
    const int first = first_section_;
    float2 weight[kPairs], bias[kPairs], before[kPairs], mix[kMostInputs][kPairs];
    fetch_all(param(rwkv::decode::kLn1Weight), weight);
    fetch_all(param(rwkv::decode::kLn1Bias), bias);
#pragma unroll
    for (int i = 0; i < kPairs; ++i)
      before[i] =
          mine_[i]
              ? fetch_pair(shift_ + static_cast<int64_t>(layer) * 2 * d_ + 2 * (t_ + kThreads * i))
              : make_float2(0.0f, 0.0f);
#pragma unroll
    for (int n = 0; n < kMostInputs; ++n)
      if (first + n < rwkv::decode::kSections && l_.section[first + n] < end)
        fetch_all(param(mix_of(first + n)), mix[n]);
    if (layer > 0) {
      take_parts(tag_ - 1u);
      put_shift(layer - 1, 1, kept_[1]);
    }
    stamp(layer, 0);
    float2 h[kPairs];
    normalise(weight, bias, h, kept_[0]);
#pragma unroll
    for (int n = 0; n < kMostInputs; ++n)
      if (first + n < rwkv::decode::kSections && l_.section[first + n] < end)
        put_mixed(x_ + n * d_, h, before, mix[n]);
    __syncthreads();
    for (int row = begin + warp_; row < end; row += kWarps) {
      int n = 0;
      while (row >= l_.section[first + n + 1]) ++n;
      const float sum = row_product<T>(stream_, x_ + n * d_, d_, lane_);
      if (lane_ == 0) put(a_.in + row, sum, tag_);
    }
    if (t_ == 0 && a_.ahead_bytes > 0) {
      const std::byte* const weights = a_.weights + static_cast<size_t>(layer) * l_.layer_bytes;
      const int row_bytes = d_ * static_cast<int>(sizeof(T));
      const auto rows = [&](size_t at, Ranges::Of range, int most) {
        const int bytes = min((ranges_.end[range] - ranges_.begin[range]) * row_bytes, most);
        prefetch_bulk(weights + at + static_cast<size_t>(ranges_.begin[range]) * row_bytes, bytes);
        return most - bytes;
      };
      rows(l_.key_at, Ranges::kKey, rows(l_.out_at, Ranges::kOut, a_.ahead_bytes));
    }
    stamp(layer, 1);
  }
  static __device__ __forceinline__ Param mix_of(int section) {
    using namespace rwkv::decode;
    constexpr Param kOf[kSections] = {kMixR, kMixK, kMixV, kMixW, kMixA, kMixV, kMixG};
    Param p = kMixR;
#pragma unroll
    for (int i = 0; i < kSections; ++i)
      if (i == section) p = kOf[i];
    return p;
  }

  /// The block's head (step_head.cuh): everything between the two products with D x D matrices.
  __device__ __forceinline__ void lora(int layer, uint32_t elapsed, std::byte* state);

  __device__ __forceinline__ void out(int layer) {
    float2 x[kPairs];
    get_pairs(x, tag_, a_.nap, mine_, [&](int i) { return a_.gated + 2 * (t_ + kThreads * i); });
    __syncthreads();  // nobody reads the inputs of stage in any more
#pragma unroll
    for (int i = 0; i < kPairs; ++i) put_input(x_, i, x[i].x, x[i].y);
    __syncthreads();
    stamp(layer, 4);
    const int end = ranges_.end[Ranges::kOut];
    for (int row = ranges_.begin[Ranges::kOut] + warp_; row < end; row += kWarps) {
      const float sum = row_product<T>(stream_, x_, d_, lane_);
      if (lane_ == 0) put(a_.added + row, sum, tag_);
    }
    stamp(layer, 5);
  }

  __device__ __forceinline__ void key(int layer) {
    float2 weight[kPairs], bias[kPairs], before[kPairs], mix[kPairs], x[kPairs], h[kPairs];
    fetch_all(param(rwkv::decode::kLn2Weight), weight);
    fetch_all(param(rwkv::decode::kLn2Bias), bias);
    fetch_all(param(rwkv::decode::kMixFfn), mix);
#pragma unroll
    for (int i = 0; i < kPairs; ++i)
      before[i] = mine_[i] ? fetch_pair(shift_ + (static_cast<int64_t>(layer) * 2 + 1) * d_ +
                                        2 * (t_ + kThreads * i))
                           : make_float2(0.0f, 0.0f);
    get_pairs(x, tag_, a_.nap, mine_, [&](int i) { return a_.added + 2 * (t_ + kThreads * i); });
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      residual_[i].x += x[i].x;
      residual_[i].y += x[i].y;
    }
    put_shift(layer, 0, kept_[0]);
    stamp(layer, 6);
    normalise(weight, bias, h, kept_[1]);
    put_mixed(x_, h, before, mix);
    __syncthreads();
    const int end = ranges_.end[Ranges::kKey];
    for (int row = ranges_.begin[Ranges::kKey] + warp_; row < end; row += kWarps) {
      const float sum = fmaxf(row_product<T>(stream_, x_, d_, lane_), 0.0f);
      if (lane_ == 0) put(a_.hidden + row, sum * sum, tag_);
    }
    stamp(layer, 7);
  }

  /// This block's rows of its slice of the value matrix.
  __device__ __forceinline__ const T* value_rows(int layer) const {
    return reinterpret_cast<const T*>(a_.weights + static_cast<size_t>(layer) * l_.layer_bytes +
                                      l_.value_at) +
           (static_cast<int64_t>(slice_) * l_.shape.ffn +
            static_cast<int64_t>(split_) * value_rows_) *
               l_.slice;
  }

  __device__ __forceinline__ void value(int layer) {
    if (block_ >= l_.value_blocks()) return;
    constexpr int kPack = kPackOf<T>, kAhead = 8, kPairsAtOnce = 4;
    const int rows = value_rows_, first = split_ * rows;
    // A warp lists its activations: values, then indices, in shared memory.
    const int room = (rows + 2 * kThreads - 1) / (2 * kThreads) * 64;
    float* const values = x_ + warp_ * room;
    auto* const places = reinterpret_cast<uint16_t*>(x_ + kWarps * room) + warp_ * room;
    __syncthreads();  // nobody reads the input of stage key any more
    int count = 0;
    for (int begin = 0; begin < rows / 2; begin += kThreads * kPairsAtOnce) {
      float2 x[kPairsAtOnce];
      bool wanted[kPairsAtOnce];
#pragma unroll
      for (int i = 0; i < kPairsAtOnce; ++i) wanted[i] = begin + kThreads * i + t_ < rows / 2;
      get_pairs(x, tag_, a_.nap, wanted,
                [&](int i) { return a_.hidden + first + 2 * (begin + kThreads * i + t_); });
      __syncwarp();
#pragma unroll
      for (int i = 0; i < kPairsAtOnce; ++i)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float v = e == 0 ? x[i].x : x[i].y;
          const bool keep = wanted[i] && (v != 0.0f || !a_.skip);
          const uint32_t all = __ballot_sync(0xffffffffu, keep);
          if (keep) {
            const int at = count + __popc(all & ((1u << lane_) - 1u));
            values[at] = v;
            places[at] = static_cast<uint16_t>(2 * (begin + kThreads * i + t_) + e);
          }
          count += __popc(all);
        }
    }
    __syncwarp();
    stamp(layer, 8);

    const int lanes = l_.slice / kPack, groups = 32 / lanes;
    const int group = lane_ / lanes, inside = lane_ % lanes;
    const T* const weights = value_rows(layer) + inside * kPack;
    float sum[kPack] = {};
    for (int begin = 0; begin < count; begin += groups * kAhead) {
      uint4 raw[kAhead];
      float v[kAhead];
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const int at = begin + i * groups + group;
        v[i] = 0.0f;
        raw[i] = uint4{0, 0, 0, 0};
        if (at < count) {
          v[i] = values[at];
          raw[i] = __ldg(reinterpret_cast<const uint4*>(weights + static_cast<int64_t>(places[at]) *
                                                                      l_.slice));
        }
      }
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        float w[kPack];
        Weights<T>::get(raw[i], w);
#pragma unroll
        for (int e = 0; e < kPack; ++e) sum[e] = fmaf(w[e], v[i], sum[e]);
      }
    }
    for (int o = lanes; o < 32; o <<= 1)
#pragma unroll
      for (int e = 0; e < kPack; ++e) sum[e] += __shfl_xor_sync(0xffffffffu, sum[e], o);
    if (group == 0)
#pragma unroll
      for (int e = 0; e < kPack; ++e) sums_[warp_ * l_.slice + inside * kPack + e] = sum[e];
    __syncthreads();
    if (t_ < l_.slice) {
      float all = 0;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) all += sums_[w * l_.slice + t_];
      put(a_.parts + static_cast<int64_t>(split_) * d_ + slice_ * l_.slice + t_, all, tag_);
    }
    stamp(layer, 9);
  }

  __device__ __forceinline__ void head(int layers) {
    const float* const params =
        a_.params + static_cast<int64_t>(layers) * rwkv::decode::kParams * d_;
    float2 weight[kPairs], bias[kPairs], h[kPairs], none;
    fetch_all(params, weight);
    fetch_all(params + d_, bias);
    take_parts(tag_);
    put_shift(layers - 1, 1, kept_[1]);
    stamp(layers, 0);
    normalise(weight, bias, h, none);
#pragma unroll
    for (int i = 0; i < kPairs; ++i) put_input(x_, i, h[i].x, h[i].y);
    __syncthreads();
    const int end = ranges_.end[Ranges::kHead];
    for (int row = ranges_.begin[Ranges::kHead] + warp_; row < end; row += kWarps) {
      const float sum = row_product<T>(stream_, x_, d_, lane_);
      if (lane_ == 0) a_.logits[row] = sum;
    }
    stamp(layers, 1);
  }

  const Args& a_;
  const Layout& l_;
  const int d_, block_, blocks_, t_, warp_, lane_;
  NormMemory& norm_;
  HeadMemory& head_memory_;
  float* const low_;   ///< activated low-rank vectors of the head, padded
  float* const x_;     ///< inputs of products; lists of the value stage
  float* const sums_;  ///< of the value stage, per warp
  const int head_, slice_, split_, value_rows_;
  const Ranges& ranges_;
  Stream stream_;
  int first_section_ = 0;
  float count_ = 0, lane_count_ = 0;
  T* shift_ = nullptr;
  std::byte* wkv_ = nullptr;
  const float* params_ = nullptr;
  uint32_t tag_ = 0;
  int own_ = -1;
  bool mine_[kPairs];
  float2 residual_[kPairs], kept_[2];
};

}  // namespace rwkv::cuda::decode
