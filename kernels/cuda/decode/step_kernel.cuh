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

using rwkv::decode::kLn1Weight;
using rwkv::decode::kLn2Weight;

/// The head that this block works on, or -1.
__device__ __forceinline__ int head_of_block(const Layout& l) {
  const int heads = l.shape.heads(), block = static_cast<int>(blockIdx.x),
            blocks = static_cast<int>(gridDim.x);
  const int h = (block * heads + blocks - 1) / blocks;
  return h < heads && h * blocks / heads == block ? h : -1;
}

/// A thread per range.
template <class T>
__device__ __forceinline__ void make_ranges(const Layout& l, Ranges& to, int t) {
  if (t >= Ranges::kCount) return;
  const int d = l.shape.width;
  const int sizes[Ranges::kCount] = {l.in_rows(),
                                     d,
                                     l.shape.ffn,
                                     l.shape.vocab,
                                     static_cast<int>(rwkv::decode::kParams) * d * 4 / 128,
                                     2 * d * static_cast<int>(sizeof(T)) / 128,
                                     d / 2};
  int size = 0;
#pragma unroll
  for (int i = 0; i < Ranges::kCount; ++i)
    if (i == t) size = sizes[i];
  const int block = static_cast<int>(blockIdx.x), blocks = static_cast<int>(gridDim.x);
  to.begin[t] = first_row(size, block, blocks);
  to.end[t] = first_row(size, block + 1, blocks);
}

/// One warp: brings to the L2 cache what a layer reads besides the stream, a layer ahead.
template <class T, bool kHalfState>
__device__ __forceinline__ void prefetch_layers(const Args& a, const Ranges& ranges,
                                                Sequence& sequence, int head, int lane) {
  const Layout& l = a.l;
  const int slot = *a.slot, layers = l.shape.layers, d = l.shape.width;
  const size_t params = static_cast<size_t>(rwkv::decode::kParams) * d * sizeof(float),
               shift = 2 * static_cast<size_t>(d) * sizeof(T);
  constexpr int kStateBytes = kN * kN * (kHalfState ? 2 : 4);
  const ValuePart value(l);
  for (int next = 0; next < layers; ++next) {
    if (lane == 0)
      for (int looks = 0; sequence.get_layer() < next - 1; ++looks) {
        if (looks > kMostLooks) __trap();
        __nanosleep(200);
      }
    __syncwarp();
    prefetch_lines(reinterpret_cast<const std::byte*>(a.params) + next * params,
                   ranges.begin[Ranges::kParamLines], ranges.end[Ranges::kParamLines], lane);
    prefetch_lines(a.shift + (static_cast<size_t>(slot) * layers + next) * shift,
                   ranges.begin[Ranges::kShiftLines], ranges.end[Ranges::kShiftLines], lane);
    if (head >= 0)
      prefetch_lines(
          a.wkv +
              ((static_cast<size_t>(slot) * layers + next) * l.shape.heads() + head) * kStateBytes,
          0, kStateBytes / 128, lane);
    // So that this multiprocessor knows where the pages are.
    if (!a.stream_value && value.is_mine && lane == 0)
      prefetch_line(a.weights + static_cast<size_t>(next) * l.layer_bytes + value.at(l));
  }
}

template <class T, int kPairs, bool kHalfState>
class Step {
  static constexpr int kPack = kPackOf<T>, kRowPacks = packs_of_row(kPairs, kPack);
  static constexpr int kStateBytes = kN * kN * (kHalfState ? 2 : 4);

 public:
  __device__ __forceinline__ Step(const Args& a, std::byte* shared, const Slots& slots,
                                  const Ranges& ranges, int head, int t)
      : a_(a),
        l_(a.l),
        d_(a.l.shape.width),
        block_(static_cast<int>(blockIdx.x)),
        blocks_(static_cast<int>(gridDim.x)),
        t_(t),
        group_(t / 32 / a.row_warps),
        part_(t / 32 % a.row_warps),
        norm_(*reinterpret_cast<NormMemory*>(shared + kNormAt)),
        head_memory_(*reinterpret_cast<HeadMemory*>(shared + kHeadAt)),
        sequence_(*reinterpret_cast<Sequence*>(shared + kSequenceAt)),
        residual_(reinterpret_cast<float2*>(shared + a.residual_at)),
        kept_(reinterpret_cast<float2*>(shared + a.kept_at)),
        low_(reinterpret_cast<float*>(shared + a.lora_at)),
        x_(reinterpret_cast<float*>(shared + a.x_at)),
        sums_(reinterpret_cast<float*>(shared + a.sums_at)),
        head_(head),
        ranges_(ranges),
        stream_(slots, shared + a.ring_at, t % 32) {}

  __device__ __forceinline__ void run() {
    const int token = *a_.token, layers = l_.shape.layers;
    if (t_ == 0) {
      const int slot = *a_.slot;
      const int64_t states = static_cast<int64_t>(slot) * layers;
      sequence_.launch = fetch_word(a_.epoch);
      sequence_.elapsed = fetch_word(a_.elapsed + slot);
      sequence_.shift = a_.shift + states * 2 * d_ * static_cast<int64_t>(sizeof(T));
      sequence_.value = ValuePart(l_);
      sequence_.first_section = first_section();
      sequence_.inputs = inputs_of(sequence_.first_section);
      sequence_.wkv = a_.wkv + (states * l_.shape.heads() + max(head_, 0)) * int64_t{kStateBytes};
    }
    for (int i = t_; i < l_.padded_ranks(); i += kThreads) low_[i] = 0.0f;
    const T* const row =
        reinterpret_cast<const T*>(a_.weights + l_.embedding_at) + static_cast<int64_t>(token) * d_;
#pragma unroll
    for (int i = 0; i < kPairs; ++i)
      residual(i) = RawPair<T>::value(RawPair<T>::get(at_pair(row, i)));
    sync();
    tag_ = sequence_.launch * static_cast<uint32_t>(layers);
    for (int layer = 0; layer < layers; ++layer) {
      ++tag_;
      if (t_ == 0) sequence_.put_layer(layer);
      in(layer);
      if (head_ >= 0) lora(layer);
      out(layer);
      key(layer);
      value(layer);
    }
    if (t_ == 0) sequence_.put_layer(layers);
    head(layers);
    if (block_ == 0 && t_ == 0) {
      store_word(a_.epoch, sequence_.launch + 1u);
      store_word(a_.elapsed + *a_.slot, sequence_.elapsed + 1u);
    }
  }

 private:
  __device__ __forceinline__ int warp() const {
    return static_cast<int>(static_cast<unsigned>(t_) / 32u);
  }
  __device__ __forceinline__ int lane() const {
    return t_ & 31;
  }
  /// Keeps the compiler from computing what a stage needs ahead of all layers: that would not fit
  /// registers.
  __device__ __forceinline__ void begin_stage() {
    asm volatile("" : "+r"(t_), "+r"(group_), "+r"(part_));
  }
  /// The section of this block's first row of stage in, and inputs of its rows.
  __device__ __forceinline__ int first_section() const {
    int n = 0;
    while (ranges_.begin[Ranges::kIn] >= l_.section[n + 1]) ++n;
    return n;
  }
  __device__ __forceinline__ int inputs_of(int first) const {
    int n = 1;
    while (n < kMostInputs && first + n < rwkv::decode::kSections &&
           l_.section[first + n] < ranges_.end[Ranges::kIn])
      ++n;
    return n;
  }
  /// This thread has an i-th pair of channels.
  __device__ __forceinline__ bool mine(int i) const {
    return t_ + kThreads * i < d_ / 2;
  }
  /// Channels of the residual stream that a warp has.
  __device__ __forceinline__ float pairs_of(int warp) const {
    int n = 0;
#pragma unroll
    for (int i = 0; i < kPairs; ++i) n += min(max(d_ / 2 - kThreads * i - 32 * warp, 0), 32);
    return static_cast<float>(2 * n);
  }
  /// Bytes from an f32 vector's beginning to this thread's i-th pair; a thread that has none reads
  /// the last one.
  __device__ __forceinline__ uint32_t at(int i) const {
    return 8u * static_cast<uint32_t>(min(t_ + kThreads * i, d_ / 2 - 1));
  }
  __device__ __forceinline__ float2& residual(int i) const {
    return residual_[kThreads * i + t_];
  }
  /// This thread's i-th pair of a vector.
  __device__ __forceinline__ const T* at_pair(const T* vector, int i) const {
    return at_bytes(vector, at(i) / 8u * 2u * static_cast<uint32_t>(sizeof(T)));
  }
  __device__ __forceinline__ void stamp(int layer, int what) {
    if (a_.stamps == nullptr || t_ != 0) return;
    a_.stamps[(static_cast<int64_t>(block_) * (l_.shape.layers + 1) + layer) *
                  rwkv::decode::kStamps +
              what] = clock64();
  }
  __device__ __forceinline__ const float* param(int layer, int p) const {
    return a_.params + (layer * static_cast<int>(rwkv::decode::kParams) + p) * d_;
  }

  /// Mean and 1 / sqrt(variance + epsilon) of the residual stream r; a barrier of the block.
  __device__ __forceinline__ float2 statistics(const float2 (&r)[kPairs]) {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kPairs; ++i) sum += mine(i) ? r[i].x + r[i].y : 0.0f;
    const float mean = __fdividef(warp_sum(sum), fmaxf(pairs_of(warp()), 1.0f));
    float squares = 0;
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      const float dx = r[i].x - mean, dy = r[i].y - mean;
      squares += mine(i) ? dx * dx + dy * dy : 0.0f;
    }
    squares = warp_sum(squares);
    if (lane() == 0) {
      norm_.mean[warp()] = mean;
      norm_.squares[warp()] = squares;
    }
    sync();
    const int entry = lane() % kWarps;
    const float n = lane() < kWarps ? pairs_of(lane()) : 0.0f, m = norm_.mean[entry],
                s = lane() < kWarps ? norm_.squares[entry] : 0.0f;
    const auto width = static_cast<float>(d_);
    const float all = __fdividef(warp_sum(n * m), width);
    const float off = m - all;
    const float variance = __fdividef(warp_sum(s + n * off * off), width);
    return {all, rsqrtf(variance + 1e-5f)};
  }

  /// The residual stream takes in what the value stage of the layer before has left.
  __device__ __forceinline__ void take_parts(uint32_t tag, float2 (&r)[kPairs]) {
#pragma unroll
    for (int i = 0; i < kPairs; ++i) r[i] = residual(i);
    constexpr int kAtOnce = kPairs < 4 ? 4 : 2;
    for (int s = 0; s < l_.splits; s += kAtOnce) {
      float2 x[kAtOnce * kPairs];
      bool wanted[kAtOnce * kPairs];
#pragma unroll
      for (int i = 0; i < kAtOnce * kPairs; ++i) wanted[i] = s + i % kAtOnce < l_.splits;
      get_pairs(
          x, tag, a_.nap, wanted,
          [&](int i) { return a_.parts + static_cast<int64_t>(s + i % kAtOnce) * d_; },
          [&](int i) { return 2u * at(i / kAtOnce); });
#pragma unroll
      for (int i = 0; i < kAtOnce * kPairs; ++i) {
        r[i / kAtOnce].x += x[i].x;
        r[i / kAtOnce].y += x[i].y;
      }
    }
#pragma unroll
    for (int i = 0; i < kPairs; ++i) residual(i) = r[i];
  }
  __device__ __forceinline__ void take(const Tagged* vector, float2 (&x)[kPairs]) {
    bool all[kPairs];
#pragma unroll
    for (int i = 0; i < kPairs; ++i) all[i] = true;
    get_pairs(
        x, tag_, a_.nap, all, [&](int) { return vector; }, [&](int i) { return 2u * at(i); });
  }

  __device__ __forceinline__ T* shift_of(int layer, int which) const {
    return reinterpret_cast<T*>(sequence_.shift) + static_cast<int64_t>(layer * 2 + which) * d_;
  }
  /// Stores this block's part of a shift state, kept aside until everybody has read the old one.
  __device__ __forceinline__ void put_shift(int layer, int which) {
    const int first = ranges_.begin[Ranges::kOwnPairs], n = ranges_.end[Ranges::kOwnPairs] - first;
    for (int i = t_; i < n; i += kThreads)
      RawPair<T>::put(shift_of(layer, which) + 2 * (first + i), kept_[which * n + i]);
  }

  /// The normalised stream; the part that is this block's to store is kept aside.
  __device__ __forceinline__ void normalise(const float2 (&r)[kPairs],
                                            const float2 (&weight)[kPairs],
                                            const float2 (&bias)[kPairs], float2 (&h)[kPairs],
                                            int which) {
    const float2 s = statistics(r);
    const int first = ranges_.begin[Ranges::kOwnPairs], n = ranges_.end[Ranges::kOwnPairs] - first;
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      h[i].x = (r[i].x - s.x) * s.y * weight[i].x + bias[i].x;
      h[i].y = (r[i].y - s.x) * s.y * weight[i].y + bias[i].y;
      const auto own = static_cast<unsigned>(t_ + kThreads * i - first);
      if (which >= 0 && own < static_cast<unsigned>(n)) kept_[which * n + own] = h[i];
    }
  }
  __device__ __forceinline__ void fetch_all(const float* from, float2 (&x)[kPairs]) {
#pragma unroll
    for (int i = 0; i < kPairs; ++i) x[i] = fetch(from, at(i));
  }
  /// Weight and bias of a layer norm: before waiting for what is normalised, if registers suffice.
  static constexpr bool kEarly = kPairs <= 2;
  __device__ __forceinline__ void get_norm(int layer, int first, float2 (&weight)[kPairs],
                                           float2 (&bias)[kPairs]) {
    fetch_all(param(layer, first), weight);
    fetch_all(param(layer, first + 1), bias);
  }
  __device__ __forceinline__ float2& input_pair(float* x, int i) const {
    return *reinterpret_cast<float2*>(const_cast<float*>(at_bytes(x, at(i))));
  }
  using Before = typename RawPair<T>::Type;
  __device__ __forceinline__ void get_before(int layer, int which, Before (&before)[kPairs]) {
    const T* const from = shift_of(layer, which);
#pragma unroll
    for (int i = 0; i < kPairs; ++i) before[i] = RawPair<T>::get(at_pair(from, i));
  }
  /// A vector of mixing weights on its way to where the mixed input will be: by the time of
  /// copies_done(), for the thread's own pairs.
  __device__ __forceinline__ void copy_mix(float* x, const float* mix) {
#pragma unroll
    for (int i = 0; i < kPairs; ++i)
      if (mine(i)) copy_pair(&input_pair(x, i).x, at_bytes(mix, at(i)));
  }
  __device__ __forceinline__ void put_mixed(float* x, const float2 (&h)[kPairs],
                                            const Before (&before)[kPairs]) {
#pragma unroll
    for (int i = 0; i < kPairs; ++i)
      if (mine(i)) {
        float2& to = input_pair(x, i);
        const float2 b = RawPair<T>::value(before[i]), mix = to;
        to = {h[i].x + (b.x - h[i].x) * mix.x, h[i].y + (b.y - h[i].y) * mix.y};
      }
  }

  // Products of rows of the stream (step_products.cuh).
  static constexpr int kPieces = 2, kBatch = kPieces * kSlotPasses;
  using Raw = uint4[kBatch][kRowPacks];
  __device__ __forceinline__ void get_columns(const float* x, float (&mine)[kRowPacks][kPack]);
  __device__ __forceinline__ int pack_of(int k) const {
    return (k * a_.row_warps + part_) * 32 + lane();
  }
  __device__ __forceinline__ bool has_pack(int k) const {
    return group_ < a_.groups && pack_of(k) * kPack < d_;
  }
  __device__ __forceinline__ void get_rows(int left, Raw& raw);
  template <bool kInputs, class Done>
  __device__ __forceinline__ void products(int begin, int end, const Done& done);

  /// Layer norm, token shift, rows of r, k, v and of the first low-rank matrices.
  __device__ __forceinline__ void in(int layer) {
    begin_stage();
    // Few blocks have rows of more than one input.
    const int first = sequence_.first_section, inputs = sequence_.inputs;
#pragma unroll 1
    for (int n = 0; n < inputs; ++n) copy_mix(x_ + n * d_, param(layer, mix_of(first + n)));
    Before before[kPairs];
    get_before(layer, 0, before);
    float2 weight[kPairs], bias[kPairs], r[kPairs];
    if (kEarly) get_norm(layer, kLn1Weight, weight, bias);
    if (layer > 0) {
      take_parts(tag_ - 1u, r);
      put_shift(layer - 1, 1);
    } else {
#pragma unroll
      for (int i = 0; i < kPairs; ++i) r[i] = residual(i);
    }
    if (!kEarly) get_norm(layer, kLn1Weight, weight, bias);
    float2 h[kPairs];
    stamp(layer, 0);
    normalise(r, weight, bias, h, 0);
    copies_done();
#pragma unroll 1
    for (int n = 0; n < inputs; ++n) put_mixed(x_ + n * d_, h, before);
    sync();
    products<true>(ranges_.begin[Ranges::kIn], ranges_.end[Ranges::kIn],
                   [&](int row, float sum) { put(a_.in + row, sum, tag_); });
    stamp(layer, 1);
  }
  static __device__ __forceinline__ int mix_of(int section) {
    using namespace rwkv::decode;
    constexpr int kOf[kSections] = {kMixR, kMixK, kMixV, kMixW, kMixA, kMixV, kMixG};
    constexpr auto kPacked = [=] {
      uint32_t all = 0;  // four bits each: an array would lie in memory
      for (int i = 0; i < kSections; ++i) all |= static_cast<uint32_t>(kOf[i]) << (4 * i);
      return all;
    }();
    static_assert(kMixG < 16);
    return static_cast<int>(kPacked >> (4 * section) & 15u);
  }

  /// Exponents of the rows of a head's f16 state: they lie as the rows do.
  __device__ __forceinline__ int8_t* exponents_of(const std::byte* state) const {
    return a_.exponents + (state - a_.wkv) / (2 * kN);
  }
  __device__ __forceinline__ void advance_half(fp16::Pack* packs, std::byte* state);
  __device__ __forceinline__ void follow(const fp16::Pack* packs, std::byte* state);
  /// The block's head (step_head.cuh): everything between the two products with D x D matrices.
  __device__ __forceinline__ void lora(int layer);
  __device__ __forceinline__ void get_products(int base);

  __device__ __forceinline__ void out(int layer) {
    begin_stage();
    float2 x[kPairs];
    take(a_.gated, x);
#pragma unroll
    for (int i = 0; i < kPairs; ++i) input_pair(x_, i) = x[i];
    sync();
    stamp(layer, 4);
    products<false>(ranges_.begin[Ranges::kOut], ranges_.end[Ranges::kOut],
                    [&](int row, float sum) { put(a_.added + row, sum, tag_); });
    stamp(layer, 5);
  }

  __device__ __forceinline__ void key(int layer) {
    begin_stage();
    copy_mix(x_, param(layer, rwkv::decode::kMixFfn));
    Before before[kPairs];
    get_before(layer, 1, before);
    float2 weight[kPairs], bias[kPairs], r[kPairs];
    if (kEarly) get_norm(layer, kLn2Weight, weight, bias);
    take(a_.added, r);
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      r[i].x += residual(i).x;
      r[i].y += residual(i).y;
      residual(i) = r[i];
    }
    put_shift(layer, 0);
    if (!kEarly) get_norm(layer, kLn2Weight, weight, bias);
    float2 h[kPairs];
    stamp(layer, 6);
    normalise(r, weight, bias, h, 1);
    copies_done();
    put_mixed(x_, h, before);
    sync();
    products<false>(ranges_.begin[Ranges::kKey], ranges_.end[Ranges::kKey],
                    [&](int row, float sum) {
                      const float y = fmaxf(sum, 0.0f);
                      put(a_.hidden + row, y * y, tag_);
                    });
    stamp(layer, 7);
  }

  // The value matrix of the channel mix (step_value.cuh).
  __device__ __forceinline__ void value(int layer);
  static constexpr int kHiddenPairs = 4;
  __device__ __forceinline__ void take_hidden(int first, int begin, int rows,
                                              float2 (&x)[kHiddenPairs]);
  __device__ __forceinline__ void value_of_stream(int layer, float (&sum)[kPack]);
  __device__ __forceinline__ void value_of_memory(int layer, float (&sum)[kPack]);

  __device__ __forceinline__ void head(int layers) {
    begin_stage();
    float2 r[kPairs];
    take_parts(tag_, r);
    put_shift(layers - 1, 1);
    float2 weight[kPairs], bias[kPairs], h[kPairs];
    get_norm(layers, 0, weight, bias);
    stamp(layers, 0);
    normalise(r, weight, bias, h, -1);
#pragma unroll
    for (int i = 0; i < kPairs; ++i) input_pair(x_, i) = h[i];
    sync();
    products<false>(ranges_.begin[Ranges::kHead], ranges_.end[Ranges::kHead],
                    [&](int row, float sum) { a_.logits[row] = sum; });
    stamp(layers, 1);
  }

  const Args& a_;
  const Layout& l_;
  const int d_, block_, blocks_;
  int t_;
  int group_, part_;  ///< this warp's among the rows of a piece and the columns of a row
  NormMemory& norm_;
  HeadMemory& head_memory_;
  Sequence& sequence_;
  float2* const residual_;  ///< this thread's pairs t, t + kThreads, ...
  float2* const kept_;      ///< of the shift states: this block's pairs, time mix and channel mix
  float* const low_;        ///< activated low-rank vectors of the head, padded
  float* const x_;          ///< inputs of products; lists of the value stage
  float* const sums_;       ///< of the value stage, per warp
  const int head_;
  const Ranges& ranges_;
  Stream<kRowPacks> stream_;
  uint32_t tag_ = 0;
};

}  // namespace rwkv::cuda::decode
