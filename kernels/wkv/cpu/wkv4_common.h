#pragma once
/// Shared by the CPU variants of WKV-4: unpacked calls, the stabilised recurrence forward and
/// backward over a segment of tokens for kLanes channels side by side, sums of parameter gradients.
/// source: spec rwkv4 3 (recurrence), 4.1 and 4.2 (backward)

#include <algorithm>
#include <cstdint>

#include "kernels/core/parallel.h"
#include "kernels/wkv/cpu/vec.h"
#include "kernels/wkv/wkv.h"

namespace rwkv::cpu {

/// One call with typed pointers.
struct Wkv4Call {
  int64_t batch, tokens, channels;
  int segment;  ///< tokens between two saved states, at most kWkv4Segment
  const float *k, *v, *tau, *u;
  const float* state[3];  ///< a0, b0, p0 (B, C); null without a state
  float* y;               ///< written by the forward, read by the backward
  float* state_out[3];    ///< forward only
  float* saved;           ///< null: nothing is saved
  // backward only
  const float *dy, *da_out, *db_out, *p_out;
  float *dk, *dv, *dstate[3], *dtau, *du;
  Accum mode_k, mode_v, mode_state[3], mode_tau, mode_u;

  bool has_state() const { return state[0] != nullptr; }
  int64_t blocks() const { return (channels + kLanes - 1) / kLanes; }
  int64_t segments() const { return (tokens + segment - 1) / segment; }
};

Wkv4Call unpack_wkv4_forward(const OpCall& call, int segment);
Wkv4Call unpack_wkv4_backward(const OpCall& call, int segment);

/// A block of up to kLanes neighbouring channels. Lanes beyond the last channel hold zeros.
struct Lanes {
  int64_t first;
  int count;

  Lanes(const Wkv4Call& c, int64_t block)
      : first(block * kLanes),
        count(static_cast<int>(std::min<int64_t>(kLanes, c.channels - first))) {}

  RWKV_INLINE Vec get(const float* p) const {
    if (count == kLanes) return load(p);
    Vec x{};
    std::memcpy(&x, p, static_cast<size_t>(count) * sizeof(float));
    return x;
  }
  RWKV_INLINE void set(float* p, Vec x) const {
    if (count == kLanes)
      store(p, x);
    else
      std::memcpy(p, &x, static_cast<size_t>(count) * sizeof(float));
  }
  /// dst = or += x, or nothing.
  RWKV_INLINE void put(float* dst, Accum mode, Vec x) const {
    if (mode == Accum::kWrite)
      set(dst, x);
    else if (mode == Accum::kAdd)
      set(dst, get(dst) + x);
  }
};

RWKV_INLINE Vec vmax(Vec a, Vec b) {
  return a > b ? a : b;
}

/// e^(x - max(x, y)) and e^(y - max(x, y)): one of the two is exactly 1.
struct Weights {
  Vec first, second;
  RWKV_INLINE Weights(Vec x, Vec y) {
    const Vec diff = x - y, one = splat(1.0f);
    const Vec e = vexp(diff > 0 ? -diff : diff);
    first = diff > 0 ? one : e;
    second = diff > 0 ? e : one;
  }
};

/// A log scale that falls (or, seen backward, grows) by `step` per token: base + age * step. Kept
/// as a product, so that long runs without a new maximum do not collect rounding errors.
struct Scale {
  Vec base, age{};
  RWKV_INLINE Vec at(Vec step) const { return base + age * step; }
  /// The scale after another token becomes max(it, x).
  RWKV_INLINE Weights raise(Vec step, Vec x) {
    const Vec older = base + (age + 1.0f) * step;
    const Weights w(older, x);
    const auto newer = older < x;
    base = newer ? x : base;
    age = newer ? Vec{} : age + 1.0f;
    return w;
  }
};

/// A log scale below that of any token.
inline constexpr float kNoScale = -1e38f;

/// Decay and bonus of a block: d = -exp(time_decay), u.
struct Wkv4Params {
  Vec d, u;
  Wkv4Params(const Wkv4Call& c, const Lanes& lanes);
};

/// Sums over past tokens, a e^p and b e^p, decayed up to the last of them.
struct Past {
  Vec a{}, b{};
  Scale scale{splat(kNoScale)};

  RWKV_INLINE void push(Vec d, Vec k, Vec v) {
    const Weights w = scale.raise(d, k);
    a = w.first * a + w.second * v;
    b = w.first * b + w.second;
  }
  /// Puts a later run of `tokens` tokens behind this one (spec 5.1).
  RWKV_INLINE void append(Vec d, float tokens, const Past& later) {
    const Vec mine = scale.base + (scale.age + tokens) * d, theirs = later.scale.at(d);
    const Weights w(mine, theirs);
    a = w.first * a + w.second * later.a;
    b = w.first * b + w.second * later.b;
    scale = {vmax(mine, theirs)};
  }
};

/// Sums over future tokens, spec rwkv4 4.1 and 4.2: X = x e^p, Z = z e^p, and their derivatives by
/// d.
struct Future {
  Vec x{}, z{}, xd{}, zd{};
  Scale scale{splat(kNoScale)};

  RWKV_INLINE void push(Vec d, Vec q, Vec h, Vec y) {
    const Weights w = scale.raise(d, -q);
    const Vec g = w.second * h;
    xd = w.first * (xd + x);
    zd = w.first * (zd + z);
    x = w.first * x + g;
    z = w.first * z - g * y;
  }
  /// Puts an earlier run of `tokens` tokens in front of this one.
  RWKV_INLINE void prepend(Vec d, float tokens, const Future& earlier) {
    const Vec mine = scale.base + (scale.age + tokens) * d, theirs = earlier.scale.at(d);
    const Weights w(mine, theirs);
    xd = w.first * (xd + tokens * x) + w.second * earlier.xd;
    zd = w.first * (zd + tokens * z) + w.second * earlier.zd;
    x = w.first * x + w.second * earlier.x;
    z = w.first * z + w.second * earlier.z;
    scale = {vmax(mine, theirs)};
  }
};

/// Segment length of serial and scan.
inline constexpr int kWkv4Segment = 64;

/// Some tokens of one sequence in one block of channels.
struct Wkv4Span {
  int64_t b, t0;
  int n;
  Wkv4Span(const Wkv4Call& c, int64_t sequence, int64_t segment)
      : b(sequence),
        t0(segment * c.segment),
        n(static_cast<int>(std::min<int64_t>(c.segment, c.tokens - t0))) {}
  int64_t origin(const Wkv4Call& c, const Lanes& lanes) const {
    return (b * c.tokens + t0) * c.channels + lanes.first;
  }
};

/// Three rows (a, b, p), `stride` floats apart, to and from a state.
Past load_past(const Lanes& lanes, const float* a, const float* b, const float* p);
void store_past(const Lanes& lanes, const Past& past, Vec d, float* a, float* b, float* p);
/// What comes before the first token of sequence b.
Past first_past(const Wkv4Call& c, const Lanes& lanes, int64_t b);
/// What comes after its last token: the gradients of the outgoing state.
Future last_future(const Wkv4Call& c, const Lanes& lanes, int64_t b);
/// State ahead of segment `s` of sequence b in the saved tensor.
Past load_saved(const Wkv4Call& c, const Lanes& lanes, int64_t b, int64_t s);
void store_saved(const Wkv4Call& c, const Lanes& lanes, int64_t b, int64_t s, const Past& past,
                 Vec d);
size_t wkv4_saved_bytes(const WkvShape& shape, int segment);
/// The state that leaves sequence b.
void store_last(const Wkv4Call& c, const Lanes& lanes, int64_t b, const Past& past, Vec d);

/// y of a span, and `past` moves behind it.
void wkv4_forward_span(const Wkv4Call& c, const Lanes& lanes, const Wkv4Params& param,
                       const Wkv4Span& span, Past& past);

/// Parameter gradients of a span: by d and u.
struct ParamSums {
  Vec d{}, u{};
};
/// Scale and gradient of the denominators of a span, per token.
struct Readouts {
  Vec q[kWkv4Segment], h[kWkv4Segment];
};
/// Runs the forward again from `past`, which moves behind the span.
void wkv4_readouts(const Wkv4Call& c, const Lanes& lanes, const Wkv4Params& param,
                   const Wkv4Span& span, Past& past, Readouts& out);
/// Gradients of a span, last token first; `future` moves ahead of it.
void wkv4_backward_span(const Wkv4Call& c, const Lanes& lanes, const Wkv4Params& param,
                        const Wkv4Span& span, const Readouts& read, Future& future,
                        ParamSums& sums);
/// Gradients of the incoming state, and its share of the gradient by d.
void wkv4_backward_state(const Wkv4Call& c, const Lanes& lanes, const Wkv4Params& param, int64_t b,
                         const Future& future, ParamSums& sums);

/// Where parts (a sequence or a segment of one) put their parameter gradients.
class ParamPartials {
 public:
  ParamPartials(void* memory, const Wkv4Call& c, int64_t parts)
      : at_(static_cast<double*>(memory)), parts_(parts), channels_(c.channels) {}
  static size_t bytes(const WkvShape& shape, int64_t parts);
  void put(const Lanes& lanes, int64_t part, const double (&d)[kLanes], const double (&u)[kLanes]);
  /// Sums in the order of the parts; time_decay gets d(loss)/dd * d.
  void reduce(const Wkv4Call& c) const;

 private:
  double* at_;
  int64_t parts_, channels_;
};

/// Adds the sums of a span to running sums in double.
struct ParamTotals {
  double d[kLanes] = {}, u[kLanes] = {};
  void add(const ParamSums& s) {
    for (int i = 0; i < kLanes; ++i) {
      d[i] += static_cast<double>(s.d[i]);
      u[i] += static_cast<double>(s.u[i]);
    }
  }
};

/// The recurrence from a state in place to the next, T = 1; also any other forward of `serial`.
void wkv4_serial_forward(Context& ctx, const OpCall& call);

}  // namespace rwkv::cpu
