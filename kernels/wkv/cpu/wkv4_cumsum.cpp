// WKV-4 by cumulative sums of exponentially weighted values (spec rwkv4 6): "wkv4.cpu.cumsum.f32",
// in pieces of 32 tokens with an anchor each, and "wkv4.cpu.cumsum-naive.f32", one piece as long as
// the sequence.
//
// Work split: one (sequence, block of kLanes channels) per worker item, pieces in order. With i the
// index in the piece and c the anchor, E_i = exp(k_i + i rate - c): one exponential per token, none
// of which waits for another, then additions only. The incoming state joins the sums as a token
// before the first; the outgoing one is scaled by a power of two so that b lies in [1, 2).
//
// Backward by reversed cumulative sums R of h = dy / denominator and -h y. The decay gradient takes
// sums of these sums: sum over j > i of R_j = sum over s > i of (s - 1 - i) h_s, in which nothing
// cancels.
//
// Range: a piece of a block whose exponents (tokens, tokens with their bonus, incoming state) span
// more than 80 in any channel is computed by the stabilised recurrence.
#include <vector>

#include "kernels/wkv/cpu/wkv4_common.h"
#include "kernels/wkv/cpu/wkv4_cpu.h"
#include "kernels/wkv/wkv4_range.h"

namespace rwkv::cpu {
namespace {

constexpr int kPiece = 32;
constexpr float kLargestSpan = 80;
constexpr float kLn2 = 0.69314718055994531f;

Vec vmin(Vec a, Vec b) {
  return a < b ? a : b;
}

struct Range {
  Vec low, high;
};

/// Power of two that x > 0 holds: x = m 2^e with m in [1, 2).
struct Power {
  Vec inverse;  ///< 2^-e
  Vec log;      ///< e ln 2
};
Power power_of(Vec x) {
  VecBits bits;
  std::memcpy(&bits, &x, sizeof bits);
  const VecBits e = ((bits >> 23) & 255u) - 127u;
  VecIndex signed_e;
  std::memcpy(&signed_e, &e, sizeof e);
  return {detail::pow2(-e), __builtin_convertvector(signed_e, Vec) * kLn2};
}

/// Exponents of a piece before an anchor is taken off. The incoming state, decayed once, counts
/// with the size of its sums where it is large; where it is small it may vanish beside the tokens.
Range range_of(const Wkv4Call& c, const Lanes& lanes, const Wkv4Params& param, const Wkv4Span& span,
               int64_t tokens, const Past& past) {
  int64_t o = span.origin(c, lanes);
  const Vec bonus = param.u + param.d;
  const Vec up = bonus > 0 ? bonus : Vec{}, down = bonus < 0 ? bonus : Vec{};
  Range r{splat(3e38f), splat(-3e38f)};
  for (int64_t i = 0; i < tokens; ++i, o += c.channels) {
    const Vec x = lanes.get(c.k + o) - static_cast<float>(i) * param.d;
    r.low = vmin(r.low, x + down);
    r.high = vmax(r.high, x + up);
  }
  const Vec size = power_of(vmax(splat(1.0f), vmax(past.b, vmax(past.a, -past.a)))).log;
  r.high = vmax(r.high, past.scale.at(param.d) + param.d + size);
  return r;
}

bool fits(const Range& r, const Lanes& lanes) {
  const Vec span = r.high - r.low;
  for (int i = 0; i < lanes.count; ++i)
    if (!(span[i] <= kLargestSpan)) return false;
  return true;
}

void forward_piece(const Wkv4Call& c, const Lanes& lanes, const Wkv4Params& param,
                   const Wkv4Span& span, int64_t tokens, Vec anchor, Past& past) {
  const Vec bonus = vexp(param.u + param.d);
  const Vec start = vexp(past.scale.at(param.d) + param.d - anchor);
  Vec sum_v = past.a * start, sum = past.b * start;
  int64_t o = span.origin(c, lanes);
  for (int64_t i = 0; i < tokens; ++i, o += c.channels) {
    const Vec v = lanes.get(c.v + o);
    const Vec e = vexp(lanes.get(c.k + o) - static_cast<float>(i) * param.d - anchor);
    const Vec own = bonus * e;
    lanes.set(c.y + o, (sum_v + own * v) / (sum + own));
    sum_v += e * v;
    sum += e;
  }
  const Power power = power_of(sum);
  past.a = sum_v * power.inverse;
  past.b = sum * power.inverse;
  past.scale = {anchor + static_cast<float>(tokens - 1) * param.d + power.log};
}

/// `e` and `h`: room for one vector per token.
void backward_piece(const Wkv4Call& c, const Lanes& lanes, const Wkv4Params& param,
                    const Wkv4Span& span, int64_t tokens, Vec anchor, const Past& past, float* e,
                    float* h, Future& future, ParamTotals& totals) {
  const Vec bonus = vexp(param.u + param.d);
  Vec sum = past.b * vexp(past.scale.at(param.d) + param.d - anchor);
  Vec smallest = splat(3e38f);
  int64_t o = span.origin(c, lanes);
  for (int64_t i = 0; i < tokens; ++i, o += c.channels) {
    const Vec ei = vexp(lanes.get(c.k + o) - static_cast<float>(i) * param.d - anchor);
    const Vec denominator = sum + bonus * ei;
    smallest = vmin(smallest, denominator);
    store(e + i * kLanes, ei);
    store(h + i * kLanes, lanes.get(c.dy + o) / denominator);
    sum += ei;
  }
  smallest = vmin(smallest, sum);

  const Vec start =
      vexp(anchor + static_cast<float>(tokens - 1) * param.d + future.scale.at(param.d));
  Vec r = start * future.x, rz = start * future.z, rd = start * future.xd, rzd = start * future.zd;
  ParamSums sums;
  for (int64_t i = tokens - 1; i >= 0; --i) {
    o -= c.channels;
    const Vec v = lanes.get(c.v + o), y = lanes.get(c.y + o);
    const Vec ei = load(e + i * kLanes), hi = load(h + i * kLanes);
    const Vec f = bonus * ei * hi, own = f * (v - y);
    lanes.put(c.dk + o, c.mode_k, own + ei * (r * v + rz));
    lanes.put(c.dv + o, c.mode_v, f + ei * r);
    sums.u += own;
    sums.d += ei * (rd * v + rzd);
    rd += r;
    rzd += rz;
    r += hi;
    rz -= hi * y;
    if (i % kPiece == 0) {
      totals.add(sums);
      sums = {};
    }
  }
  // In units of the smallest denominator no earlier token weighs more than 2.
  const Power power = power_of(smallest);
  const Vec scale = 1.0f / power.inverse;
  future = {r * scale, rz * scale, rd * scale, rzd * scale, {param.d - anchor - power.log}};
}

Vec centre(const Range& r) {
  return 0.5f * (r.low + r.high);
}

// --- pieces
// ---------------------------------------------------------------------------------------

size_t saved_bytes(const WkvShape& s) {
  return wkv4_saved_bytes(s, kPiece);
}

size_t workspace_bytes(const WkvShape& s) {
  return ParamPartials::bytes(s, s.batch);
}

/// A single token needs no sums: the recurrence gives y = v exactly. Not counted as replaced.
bool uses_sums(const Wkv4Span& span, const Range& range, const Lanes& lanes) {
  return span.n > 1 && fits(range, lanes);
}

void forward(Context&, const OpCall& call) {
  const Wkv4Call c = unpack_wkv4_forward(call, kPiece);
  parallel_for(c.batch * c.blocks(), 1, [&](int64_t item, int64_t) {
    const int64_t b = item / c.blocks();
    const Lanes lanes(c, item % c.blocks());
    const Wkv4Params param(c, lanes);
    Past past = first_past(c, lanes, b);
    for (int64_t s = 0; s < c.segments(); ++s) {
      const Wkv4Span span(c, b, s);
      if (c.saved != nullptr) store_saved(c, lanes, b, s, past, param.d);
      const Range range = range_of(c, lanes, param, span, span.n, past);
      if (uses_sums(span, range, lanes))
        forward_piece(c, lanes, param, span, span.n, centre(range), past);
      else
        wkv4_forward_span(c, lanes, param, span, past);
    }
    store_last(c, lanes, b, past, param.d);
  });
}

void backward(Context& ctx, const OpCall& call) {
  const Wkv4Call c = unpack_wkv4_backward(call, kPiece);
  ParamPartials partials(ctx.workspace(workspace_bytes({c.batch, c.tokens, c.channels, 1})), c,
                         c.batch);
  parallel_for(c.batch * c.blocks(), 1, [&](int64_t item, int64_t) {
    const int64_t b = item / c.blocks();
    const Lanes lanes(c, item % c.blocks());
    const Wkv4Params param(c, lanes);
    Future future = last_future(c, lanes, b);
    ParamTotals totals;
    Readouts read;
    alignas(64) float e[kPiece * kLanes], h[kPiece * kLanes];
    for (int64_t s = c.segments() - 1; s >= 0; --s) {
      const Wkv4Span span(c, b, s);
      Past past = load_saved(c, lanes, b, s);
      const Range range = range_of(c, lanes, param, span, span.n, past);
      if (uses_sums(span, range, lanes)) {
        backward_piece(c, lanes, param, span, span.n, centre(range), past, e, h, future, totals);
      } else {
        wkv4_readouts(c, lanes, param, span, past, read);
        ParamSums sums;
        wkv4_backward_span(c, lanes, param, span, read, future, sums);
        totals.add(sums);
      }
    }
    ParamSums sums;
    wkv4_backward_state(c, lanes, param, b, future, sums);
    totals.add(sums);
    partials.put(lanes, b, totals.d, totals.u);
  });
  partials.reduce(c);
}

double replaced_share(Context&, const OpCall& call) {
  const Wkv4Call c = unpack_wkv4_forward(call, kPiece);
  RWKV_ASSERT(c.saved != nullptr, "wkv4 cumsum: the share of replaced pieces needs saved states");
  std::vector<int64_t> replaced(static_cast<size_t>(c.batch * c.blocks()));
  parallel_for(c.batch * c.blocks(), 1, [&](int64_t item, int64_t) {
    const int64_t b = item / c.blocks();
    const Lanes lanes(c, item % c.blocks());
    const Wkv4Params param(c, lanes);
    for (int64_t s = 0; s < c.segments(); ++s) {
      const Wkv4Span span(c, b, s);
      const Past past = load_saved(c, lanes, b, s);
      if (!fits(range_of(c, lanes, param, span, span.n, past), lanes))
        replaced[static_cast<size_t>(item)] += span.n * lanes.count;
    }
  });
  double sum = 0;
  for (const int64_t n : replaced) sum += static_cast<double>(n);
  return sum / static_cast<double>(c.batch * c.tokens * c.channels);
}

// --- one piece
// ------------------------------------------------------------------------------------

size_t naive_saved_bytes(const WkvShape& s) {
  return wkv4_saved_bytes(s, static_cast<int>(std::min<int64_t>(s.tokens, 1 << 30)));
}

/// One vector per token, twice, for every sequence and block.
size_t naive_floats(const WkvShape& s) {
  const int64_t blocks = (s.heads * s.head_size + kLanes - 1) / kLanes;
  return static_cast<size_t>(2 * s.batch * s.tokens * blocks * kLanes);
}

size_t naive_workspace_bytes(const WkvShape& s) {
  return align_up(ParamPartials::bytes(s, s.batch)) + naive_floats(s) * sizeof(float);
}

/// The anchor of a whole sequence. Throws ConfigError if its exponents leave the range.
Vec naive_anchor(const Wkv4Call& c, const Lanes& lanes, const Wkv4Params& param,
                 const Wkv4Span& span, const Past& past) {
  const Range r = range_of(c, lanes, param, span, c.tokens, past);
  for (int i = 0; i < lanes.count; ++i)
    wkv4_check_naive_range(span.b, lanes.first + i, c.tokens, r.high[i] - r.low[i], param.d[i],
                           param.u[i]);
  return centre(r);
}

void naive_forward(Context&, const OpCall& call) {
  const Wkv4Call c =
      unpack_wkv4_forward(call, static_cast<int>(std::min<int64_t>(call.in[0].dim(1), 1 << 30)));
  parallel_for(c.batch * c.blocks(), 1, [&](int64_t item, int64_t) {
    const int64_t b = item / c.blocks();
    const Lanes lanes(c, item % c.blocks());
    const Wkv4Params param(c, lanes);
    const Wkv4Span span(c, b, 0);
    Past past = first_past(c, lanes, b);
    if (c.saved != nullptr) store_saved(c, lanes, b, 0, past, param.d);
    if (c.tokens == 1)
      wkv4_forward_span(c, lanes, param, span, past);
    else
      forward_piece(c, lanes, param, span, c.tokens, naive_anchor(c, lanes, param, span, past),
                    past);
    store_last(c, lanes, b, past, param.d);
  });
}

void naive_backward(Context& ctx, const OpCall& call) {
  const Wkv4Call c =
      unpack_wkv4_backward(call, static_cast<int>(std::min<int64_t>(call.in[0].dim(1), 1 << 30)));
  const WkvShape shape{c.batch, c.tokens, c.channels, 1, c.has_state()};
  std::byte* memory = ctx.workspace(naive_workspace_bytes(shape));
  ParamPartials partials(memory, c, c.batch);
  auto* rows = reinterpret_cast<float*>(memory + align_up(ParamPartials::bytes(shape, c.batch)));
  parallel_for(c.batch * c.blocks(), 1, [&](int64_t item, int64_t) {
    const int64_t b = item / c.blocks();
    const Lanes lanes(c, item % c.blocks());
    const Wkv4Params param(c, lanes);
    const Wkv4Span span(c, b, 0);
    Future future = last_future(c, lanes, b);
    ParamTotals totals;
    Past past = load_saved(c, lanes, b, 0);
    ParamSums sums;
    if (c.tokens == 1) {
      Readouts read;
      wkv4_readouts(c, lanes, param, span, past, read);
      wkv4_backward_span(c, lanes, param, span, read, future, sums);
    } else {
      float* e = rows + 2 * item * c.tokens * kLanes;
      backward_piece(c, lanes, param, span, c.tokens, naive_anchor(c, lanes, param, span, past),
                     past, e, e + c.tokens * kLanes, future, totals);
    }
    wkv4_backward_state(c, lanes, param, b, future, sums);
    totals.add(sums);
    partials.put(lanes, b, totals.d, totals.u);
  });
  partials.reduce(c);
}

}  // namespace

constinit const WkvKernel kWkv4CpuCumsum = {
    .name = "wkv4.cpu.cumsum.f32",
    .op = "wkv4",
    .family = "cumsum",
    .saved_bytes = saved_bytes,
    .workspace_bytes = workspace_bytes,
    .forward = forward,
    .backward = backward,
    .step = wkv4_serial_forward,
    .replaced_share = replaced_share,
    .note = "cumulative sums in pieces of 32 tokens; slow decays",
};

constinit const WkvKernel kWkv4CpuCumsumNaive = {
    .name = "wkv4.cpu.cumsum-naive.f32",
    .op = "wkv4",
    .family = "cumsum-naive",
    .saved_bytes = naive_saved_bytes,
    .workspace_bytes = naive_workspace_bytes,
    .forward = naive_forward,
    .backward = naive_backward,
    .step = wkv4_serial_forward,
    .note = "for comparison: one cumulative sum; refuses what leaves the range of f32",
};

}  // namespace rwkv::cpu
