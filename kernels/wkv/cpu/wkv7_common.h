#pragma once
/// Shared by the CPU variants of WKV-7: unpacked calls, decays, gradient stores, scratch per
/// worker.

#include <algorithm>
#include <cstdint>

#include "kernels/core/parallel.h"
#include "kernels/wkv/cpu/vec.h"
#include "kernels/wkv/wkv.h"

namespace rwkv::cpu {

/// exp(-1/2): log(decay) = -kDecayScale * sigmoid(w_logit) (spec rwkv7 2.3).
inline constexpr float kDecayScale = 0.60653065971263342f;

/// One call with typed pointers. Token rows of a head are `stride` floats apart.
struct Wkv7Call {
  int64_t batch, tokens, heads, stride;
  float state_scale;   ///< of Wkv7Attrs
  bool row_exponents;  ///< likewise
  const float *r, *w, *k, *v, *a, *b;
  bool has_state;   ///< the call has an s0
  const float* s0;  ///< null without a state, in the backward, and if the state is f16
  float *y, *s_out;
  float* saved;  ///< null in a forward without backward: nothing is saved
  // backward only; order of the gradients: r, w, k, v, a, b, s0
  const float *dy, *ds_out;
  float* grad[7];
  Accum mode[7];

  /// Offset of the head's first channel at the sequence's first token.
  int64_t origin(int64_t head_index) const {
    return head_index / heads * tokens * stride + head_index % heads * (stride / heads);
  }
};

Wkv7Call unpack_forward(const OpCall& call);
Wkv7Call unpack_backward(const OpCall& call);

/// dst = or += v, or nothing.
RWKV_INLINE void put(float* dst, Accum mode, Vec v) {
  if (mode == Accum::kWrite)
    store(dst, v);
  else if (mode == Accum::kAdd)
    store(dst, load(dst) + v);
}

/// (n, N) rows of a tile into token rows of a gradient.
template <int N>
inline void put_rows(float* dst, int64_t stride, Accum mode, const float* tile, int64_t n) {
  if (mode == Accum::kSkip) return;
  for (int64_t t = 0; t < n; ++t)
    for (int j = 0; j < N; j += kLanes) put(dst + t * stride + j, mode, load(tile + t * N + j));
}

/// Asks for one token row of a head. Rows of a head are too far apart for hardware prefetchers.
template <int N>
RWKV_INLINE void prefetch_row(const float* p) {
  for (int j = 0; j < N; j += 16) __builtin_prefetch(p + j, 0, 2);
}

/// Runs fn(head_index, scratch) for every (sequence, head), each worker with its own scratch of
/// `floats` floats. Heads are independent: results do not depend on the number of workers.
template <class Fn>
void for_each_head(Context& ctx, int64_t count, size_t floats, const Fn& fn) {
  const size_t bytes = align_up(floats * sizeof(float));
  const auto slots = static_cast<int64_t>(ctx.workspace_bytes() / bytes);
  // Threads may have been added since the workspace was planned; one slot always has to be there.
  const int64_t workers = std::max<int64_t>(1, std::min<int64_t>({count, num_threads(), slots}));
  std::byte* base = ctx.workspace(bytes * static_cast<size_t>(workers));
  parallel_for(workers, 1, [&](int64_t first, int64_t) {
    auto* scratch = reinterpret_cast<float*>(base + bytes * static_cast<size_t>(first));
    for (int64_t i = first; i < count; i += workers) fn(i, scratch);
  });
}

/// What `for_each_head` wants.
inline size_t workers_bytes(const WkvShape& shape, size_t floats) {
  const int64_t workers = std::min<int64_t>(shape.batch * shape.heads, num_threads());
  return align_up(floats * sizeof(float)) * static_cast<size_t>(std::max<int64_t>(1, workers));
}

/// Calls fn with the head size as a compile-time constant.
template <class Fn>
auto with_head_size(int64_t n, const Fn& fn) {
  if (n == 32) return fn(std::integral_constant<int, 32>{});
  if (n == 128) return fn(std::integral_constant<int, 128>{});
  RWKV_CHECK(n == 64, ShapeError, "wkv7 on the CPU: head size ", n,
             " is not supported; use 32, 64 or 128");
  return fn(std::integral_constant<int, 64>{});
}
inline constexpr int kCpuHeadSizes[] = {32, 64, 128};

/// One token per sequence from and to a given state; s_out may be s0 itself. Without a state, or
/// with more than one token, use a forward.
void wkv7_step_f32(Context& ctx, const OpCall& call);

}  // namespace rwkv::cpu
