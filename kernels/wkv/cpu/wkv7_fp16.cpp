// WKV-7 with a binary16 state. The order of operations is in the header.
//
// Work split: one (sequence, head) per worker item. The state is kept as floats, transposed to
// [key j][value i]: the chains over j of u and y then run over vectors of rows, and no sum of the
// forward crosses lanes. About 30 vector instructions stand for one binary16 fma.
#include "kernels/wkv/cpu/wkv7_fp16.h"

#include "kernels/wkv/cpu/wkv7_common.h"
#include "kernels/wkv/dither.h"
#include "kernels/wkv/row_exponent.h"

namespace rwkv::cpu {
namespace {

constexpr int kHead = 64;              // head size
constexpr int kState = kHead * kHead;  // numbers of a state
constexpr int kSegment = 16;           // tokens between two saved states
constexpr int kHeadSizes[] = {kHead};

constexpr size_t kForwardFloats = kState + 8 * kHead;
// lambda, states, inputs r w' k v a b and u of a segment, one token's gradients and dy twice, y
constexpr size_t kBackwardFloats =
    (kSegment + 2) * kState + 7 * kSegment * kHead + 9 * kHead + kHead * kLanes;

int64_t segments(int64_t tokens) {
  return (tokens + kSegment - 1) / kSegment;
}
// Two binary16 numbers, or four exponents, to a float, after one float with the bits of the
// counter.
constexpr int64_t kSavedStateFloats = kState / 2 + kHead / 4;
int64_t saved_per_head(int64_t tokens) {
  return 1 + segments(tokens) * kSavedStateFloats;
}

void round_row(const float* from, float* to, float scale = 1) {
  for (int j = 0; j < kHead; ++j) to[j] = round_to_half(from[j] * scale);
}

void scale_row(const float* from, float* to, float scale, int n = kHead) {
  for (int j = 0; j < n; ++j) to[j] = from[j] * scale;
}

// Exponents of the rows of a state, and 2^e.
struct Exponents {
  int8_t e[kHead] = {};
  float up[kHead];
  Exponents() { std::fill(up, up + kHead, 1.0f); }

  void set(const void* from) {
    std::memcpy(e, from, sizeof e);
    for (int i = 0; i < kHead; ++i) up[i] = power_of_two(e[i]);
  }
  // Of half(c v), to what is added to the rows.
  void apply(float* v) const {
    for (int i = 0; i < kHead; ++i) v[i] = round_to_half(v[i] * (1 / up[i]));
  }
  // What kernels/wkv/row_exponent.h says about a (transposed) state. Whether something changed.
  bool follow(float* state) {
    uint32_t largest[kHead] = {};
    for (int j = 0; j < kHead; ++j)
      for (int i = 0; i < kHead; ++i)
        largest[i] = std::max(largest[i], float_bits(state[j * kHead + i]) & 0x7fffffffu);
    float by[kHead];
    bool changed = false;
    for (int i = 0; i < kHead; ++i) {
      const int change = exponent_change(largest[i], e[i]);
      changed |= change != 0;
      e[i] = static_cast<int8_t>(e[i] + change);
      up[i] = power_of_two(e[i]);
      by[i] = power_of_two(-change);
    }
    for (int j = 0; changed && j < kHead; ++j)
      for (int i = 0; i < kHead; ++i)
        state[j * kHead + i] = round_to_half(state[j * kHead + i] * by[i]);
    return changed;
  }
};

// m[j][i] *= by[i]
void scale_columns(float* m, const float* by) {
  for (int j = 0; j < kHead; ++j)
    for (int i = 0; i < kHead; ++i) m[j * kHead + i] *= by[i];
}

// e = fma(x, s, e) for a row of the transposed state.
RWKV_INLINE void chain(float* __restrict e, const float* __restrict s, float x) {
  for (int i = 0; i < kHead; ++i) e[i] = half_fma(x, s[i], e[i]);
}

template <bool dithered>
void decays(const float* w_logit, uint32_t t, int64_t head, float* w) {
  for (int j = 0; j < kHead; ++j) {
    const float x = round_to_half(w_logit[j]);
    w[j] = dithered ? dithered_decay(
                          x, dither_phase(t, static_cast<uint32_t>(head), static_cast<uint32_t>(j)))
                    : plain_decay(x);
  }
}

void pack(const float* state, const Exponents& x, float* saved) {
  auto* half = reinterpret_cast<unsigned char*>(saved);
  for (int64_t i = 0; i < kState; ++i) {
    const F16 h = half_bits(state[i]);
    std::memcpy(half + 2 * i, &h, 2);
  }
  std::memcpy(half + 2 * kState, x.e, sizeof x.e);
}

void unpack(const float* saved, float* state, Exponents& x) {
  const auto* half = reinterpret_cast<const unsigned char*>(saved);
  for (int64_t i = 0; i < kState; ++i) {
    F16 h;
    std::memcpy(&h, half + 2 * i, 2);
    state[i] = to_float(h);
  }
  x.set(half + 2 * kState);
}

uint32_t elapsed_of(const OpCall& call, int64_t sequence) {
  const bool given = call.in.size() > 7 && call.in[7];
  return given ? static_cast<uint32_t>(call.in[7].as<int32_t>()[sequence]) : 0u;
}

/// The states of a call that are f16 tensors, and exponents of states; null: there are none, or the
/// states are f32.
struct HalfStates {
  const F16* s0 = nullptr;
  F16* s_out = nullptr;
  const int8_t* exponent = nullptr;
  int8_t* exponent_out = nullptr;
};

HalfStates half_states(const OpCall& call) {
  HalfStates h;
  if (call.in.size() > 8) {
    h.exponent = call.in[8].as<int8_t>();
    h.exponent_out = call.out[3].as<int8_t>();
  }
  if (call.in.size() <= 6 || call.in[6].spec.dtype != DType::kF16) return h;
  h.s0 = call.in[6].as<F16>();
  if (call.out[1]) h.s_out = call.out[1].as<F16>();
  return h;
}

template <bool dithered>
void forward_head(const Wkv7Call& c, const HalfStates& half, uint32_t elapsed, int64_t head,
                  float* scratch) {
  float* st = scratch;
  float* x = st + kState;  // r, w', k, v, a, b, u, y
  const auto row = [&](int i) { return x + i * kHead; };
  const int64_t o = c.origin(head);
  float* saved = c.saved == nullptr ? nullptr : c.saved + head * saved_per_head(c.tokens);
  if (saved != nullptr) *saved++ = bits_float(elapsed);
  Exponents exponents;
  if (half.exponent != nullptr) exponents.set(half.exponent + head * kHead);
  if (half.s0 != nullptr) {
    const F16* from = half.s0 + head * kState;
    for (int i = 0; i < kState; ++i) st[i % kHead * kHead + i / kHead] = to_float(from[i]);
  } else if (c.s0 != nullptr) {
    transpose<kHead, kHead>(c.s0 + head * kState, kHead, st, kHead);
    for (int i = 0; i < kState; ++i)
      st[i] = round_to_half(st[i] * (c.state_scale / exponents.up[i % kHead]));
  } else {
    std::fill(st, st + kState, 0.0f);
  }
  const float* const in[] = {c.r, nullptr, c.k, c.v, c.a, c.b};
  for (int64_t t = 0; t < c.tokens; ++t) {
    if (saved != nullptr && t % kSegment == 0)
      pack(st, exponents, saved + t / kSegment * kSavedStateFloats);
    const int64_t at = o + t * c.stride;
    for (int i = 0; i < 6; ++i)
      if (in[i] != nullptr) round_row(in[i] + at, row(i), i == 3 ? c.state_scale : 1);
    exponents.apply(row(3));
    const uint32_t position = elapsed + static_cast<uint32_t>(t);
    decays<dithered>(c.w + at, position, head % c.heads, row(1));
    wkv7_fp16_token(st, row(1), row(0), row(2), row(3), row(4), row(5), row(6), row(7));
    for (int i = 0; i < kHead; ++i) c.y[at + i] = row(7)[i] * (exponents.up[i] / c.state_scale);
    if (c.row_exponents && exponent_due(position)) exponents.follow(st);
  }
  if (half.exponent_out != nullptr)
    std::memcpy(half.exponent_out + head * kHead, exponents.e, sizeof exponents.e);
  if (c.s_out != nullptr) {
    float* to = c.s_out + head * kState;
    transpose<kHead, kHead>(st, kHead, to, kHead);
    for (int i = 0; i < kHead; ++i)
      scale_row(to + i * kHead, to + i * kHead, exponents.up[i] / c.state_scale);
  }
  if (half.s_out == nullptr) return;
  F16* to = half.s_out + head * kState;
  for (int i = 0; i < kState; ++i) to[i] = half_bits(st[i % kHead * kHead + i / kHead]);
}

// --- backward -----------------------------------------------------------------------------------

// Sums over lanes of kHead vectors.
void sum_rows(float* parts, float* sums) {
  for (int j = 0; j < kHead; j += kLanes) {
    Vec x[kLanes];
    for (int l = 0; l < kLanes; ++l) x[l] = load(parts + (j + l) * kLanes);
    store(sums + j, sum_lanes(x));
  }
}

// sums[j] = sum over i of m[j][i] x[i]
void row_dots(const float* m, const float* x, float* parts, float* sums) {
  for (int j = 0; j < kHead; ++j) {
    Vec dot{};
    for (int i = 0; i < kHead; i += kLanes) dot += load(m + j * kHead + i) * load(x + i);
    store(parts + j * kLanes, dot);
  }
  sum_rows(parts, sums);
}

// sums[i] = sum over j of m[j][i] x[j]
void column_dots(const float* m, const float* x, float* sums) {
  for (int i = 0; i < kHead; i += kLanes) {
    Vec dot{};
    for (int j = 0; j < kHead; ++j) dot += load(m + j * kHead + i) * splat(x[j]);
    store(sums + i, dot);
  }
}

struct Token {  // rows of one token; dy in units of the state ahead of it and behind it
  const float *r, *w, *k, *v, *a, *b, *u, *dy, *dy_after;
};

// spec 3.4 with transposed matrices; `out`: dr, d(1 + w'), dk, dv, da, db and e, kHead floats each
void token_backward(const Token& x, const float* before, const float* after, float* lambda,
                    float* out, float* parts) {
  float *dr = out, *dw = out + kHead, *dk = out + 2 * kHead, *dv = out + 3 * kHead,
        *da = out + 4 * kHead, *db = out + 5 * kHead, *e = out + 6 * kHead;
  row_dots(after, x.dy_after, parts, dr);
  for (int j = 0; j < kHead; ++j) {
    const Vec rj = splat(x.r[j]);
    Vec dot{};
    for (int i = 0; i < kHead; i += kLanes) {
      float* cell = lambda + j * kHead + i;
      const Vec l = load(cell) + load(x.dy + i) * rj;
      store(cell, l);
      dot += l * load(before + j * kHead + i);
    }
    store(parts + j * kLanes, dot);
  }
  sum_rows(parts, dw);
  row_dots(lambda, x.v, parts, dk);
  row_dots(lambda, x.u, parts, db);
  column_dots(lambda, x.k, dv);
  column_dots(lambda, x.b, e);
  row_dots(before, e, parts, da);
  for (int j = 0; j < kHead; ++j) {
    const Vec decay = splat(1.0f + x.w[j]), aj = splat(x.a[j]);
    for (int i = 0; i < kHead; i += kLanes) {
      float* cell = lambda + j * kHead + i;
      store(cell, load(cell) * decay + load(e + i) * aj);
    }
  }
}

// Of X behind the last token, whose exponents are given.
void start_lambda(const Wkv7Call& c, int64_t head, const Exponents& x, float* lambda) {
  if (c.ds_out == nullptr) {
    std::fill(lambda, lambda + kState, 0.0f);
    return;
  }
  transpose<kHead, kHead>(c.ds_out + head * kState, kHead, lambda, kHead);
  float by[kHead];
  for (int i = 0; i < kHead; ++i) by[i] = x.up[i] / c.state_scale;
  scale_columns(lambda, by);
}

template <bool dithered>
void backward_head(const Wkv7Call& c, int64_t head, float* scratch) {
  float* lambda = scratch;
  float* states = lambda + kState;                 // of the segment, transposed
  float* rows = states + (kSegment + 1) * kState;  // [7][kSegment][kHead]
  float* grads = rows + 7 * kSegment * kHead;      // dr, dw', dk, dv, da, db, e
  float* dy = grads + 7 * kHead;                   // of X: that of y by c, times 2^e
  float* dy_after = dy + kHead;                    // with the exponents behind the token
  float* parts = dy_after + kHead;                 // kHead vectors, or one y
  Exponents exponents[kSegment + 1];               // ahead of every token, and behind the last
  const auto row = [&](int i, int64_t t) { return rows + (i * kSegment + t) * kHead; };
  const int64_t o = c.origin(head);
  const float* saved = c.saved + head * saved_per_head(c.tokens);
  const uint32_t elapsed = float_bits(*saved++);
  const float* const in[] = {c.r, nullptr, c.k, c.v, c.a, c.b};

  for (int64_t seg = segments(c.tokens) - 1; seg >= 0; --seg) {
    const int64_t t0 = seg * kSegment, n = std::min<int64_t>(kSegment, c.tokens - t0);
    unpack(saved + seg * kSavedStateFloats, states, exponents[0]);
    bool changed[kSegment] = {};
    for (int64_t t = 0; t < n; ++t) {
      const int64_t at = o + (t0 + t) * c.stride;
      for (int i = 0; i < 6; ++i)
        if (in[i] != nullptr) round_row(in[i] + at, row(i, t), i == 3 ? c.state_scale : 1);
      exponents[t].apply(row(3, t));
      const uint32_t position = elapsed + static_cast<uint32_t>(t0 + t);
      decays<dithered>(c.w + at, position, head % c.heads, row(1, t));
      float* to = states + (t + 1) * kState;
      std::copy(to - kState, to, to);
      wkv7_fp16_token(to, row(1, t), row(0, t), row(2, t), row(3, t), row(4, t), row(5, t),
                      row(6, t), parts);
      exponents[t + 1] = exponents[t];
      if (c.row_exponents && exponent_due(position)) changed[t] = exponents[t + 1].follow(to);
    }
    if (t0 + n == c.tokens) start_lambda(c, head, exponents[n], lambda);
    for (int64_t t = n - 1; t >= 0; --t) {
      const int64_t at = o + (t0 + t) * c.stride;
      const Token x{row(0, t), row(1, t), row(2, t), row(3, t), row(4, t),
                    row(5, t), row(6, t), dy,        dy_after};
      const float *up = exponents[t].up, *up_after = exponents[t + 1].up;
      for (int i = 0; i < kHead; ++i) {
        dy[i] = c.dy[at + i] * (up[i] / c.state_scale);
        dy_after[i] = c.dy[at + i] * (up_after[i] / c.state_scale);
        parts[i] = up[i] / up_after[i];
      }
      if (changed[t]) scale_columns(lambda, parts);
      token_backward(x, states + t * kState, states + (t + 1) * kState, lambda, grads, parts);
      float* dw = grads + kHead;
      for (int j = 0; j < kHead; j += kLanes) {
        Vec s, rest;
        alignas(64) float logit[kLanes];
        for (int l = 0; l < kLanes; ++l) logit[l] = round_to_half(c.w[at + j + l]);
        vsigmoid(load(logit), s, rest);
        store(dw + j, load(dw + j) * vexp(-kDecayScale * s) * -kDecayScale * s * rest);
      }
      for (int i = 0; i < kHead; ++i) grads[3 * kHead + i] *= c.state_scale / up[i];
      for (int g = 0; g < 6; ++g)
        if (c.mode[g] != Accum::kSkip)
          put_rows<kHead>(c.grad[g] + at, c.stride, c.mode[g], grads + g * kHead, 1);
    }
  }
  if (c.mode[6] == Accum::kSkip) return;
  transpose<kHead, kHead>(lambda, kHead, states, kHead);
  for (int i = 0; i < kHead; ++i)
    scale_row(states + i * kHead, states + i * kHead, c.state_scale / exponents[0].up[i]);
  put_rows<kHead>(c.grad[6] + head * kState, kHead, c.mode[6], states, kHead);
}

template <bool dithered>
void forward(Context& ctx, const OpCall& call) {
  const Wkv7Call c = unpack_forward(call);
  const HalfStates half = half_states(call);
  for_each_head(ctx, c.batch * c.heads, kForwardFloats, [&](int64_t head, float* scratch) {
    forward_head<dithered>(c, half, elapsed_of(call, head / c.heads), head, scratch);
  });
  // Last, because the counter may be replaced in place.
  if (call.out.size() > 2 && call.out[2])
    for (int64_t i = 0; i < c.batch; ++i)
      call.out[2].as<int32_t>()[i] =
          static_cast<int32_t>(elapsed_of(call, i) + static_cast<uint32_t>(c.tokens));
}

template <bool dithered>
void backward(Context& ctx, const OpCall& call) {
  const Wkv7Call c = unpack_backward(call);
  for_each_head(ctx, c.batch * c.heads, kBackwardFloats,
                [&](int64_t head, float* scratch) { backward_head<dithered>(c, head, scratch); });
}

size_t saved_bytes(const WkvShape& s) {
  return static_cast<size_t>(s.batch * s.heads * saved_per_head(s.tokens)) * sizeof(float);
}

size_t workspace_bytes(const WkvShape& s) {
  return workers_bytes(s, kBackwardFloats);
}

template <bool dithered>
constexpr WkvKernel variant(std::string_view name, std::string_view family, std::string_view note) {
  return {.name = name,
          .op = "wkv7",
          .family = family,
          .state = DType::kF16,
          .head_sizes = kHeadSizes,
          .saved_bytes = saved_bytes,
          .workspace_bytes = workspace_bytes,
          .forward = forward<dithered>,
          .backward = backward<dithered>,
          .step = forward<dithered>,
          .note = note};
}

}  // namespace

// Not inlined: vector code over rows, the same for every caller.
__attribute__((noinline)) void wkv7_fp16_token(float* __restrict state, const float* __restrict w,
                                               const float* __restrict r, const float* __restrict k,
                                               const float* __restrict v, const float* __restrict a,
                                               const float* __restrict b, float* __restrict u,
                                               float* __restrict y) {
  float even[kHead] = {}, odd[kHead] = {};
  for (int j = 0; j < kHead; j += 2) {
    chain(even, state + j * kHead, a[j]);
    chain(odd, state + (j + 1) * kHead, a[j + 1]);
  }
  for (int i = 0; i < kHead; ++i) {
    u[i] = half_add(even[i], odd[i]);
    even[i] = odd[i] = 0.0f;
  }
  for (int j = 0; j < kHead; ++j) {
    float* __restrict s = state + j * kHead;
    const float wj = w[j], kj = k[j], bj = b[j];
    for (int i = 0; i < kHead; ++i)
      s[i] = half_fma(s[i], wj, half_fma(kj, v[i], half_fma(u[i], bj, s[i])));
    chain(j % 2 == 0 ? even : odd, s, r[j]);
  }
  for (int i = 0; i < kHead; ++i) y[i] = half_add(even[i], odd[i]);
}

constinit const WkvKernel kWkv7CpuFp16Dithered =
    variant<true>("wkv7.cpu.fp16-dithered", "fp16-dithered",
                  "binary16 state, dithered decays, exact emulation; only when asked for");
constinit const WkvKernel kWkv7CpuFp16Plain =
    variant<false>("wkv7.cpu.fp16-plain", "fp16-plain",
                   "binary16 state without dither, for comparison; only when asked for");

}  // namespace rwkv::cpu
