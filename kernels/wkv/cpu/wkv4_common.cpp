#include "kernels/wkv/cpu/wkv4_common.h"

#include <cmath>

namespace rwkv::cpu {
namespace {

Wkv4Call unpack_inputs(const OpCall& call, int segment) {
  Wkv4Call c{};
  c.segment = segment;
  const TensorView& k = call.in[0];
  c.batch = k.dim(0);
  c.tokens = k.dim(1);
  c.channels = k.dim(2);
  c.k = k.f32();
  c.v = call.in[1].f32();
  if (call.in.size() > 2)
    for (size_t i = 0; i < 3; ++i) c.state[i] = call.in[2 + i].f32();
  c.tau = call.param[0].f32();
  c.u = call.param[1].f32();
  c.y = call.out[0].f32();
  if (!call.saved.empty()) c.saved = call.saved[0].f32();
  return c;
}

/// Tokens ahead that are asked for: rows of a block lie too far apart for hardware prefetchers.
constexpr int kAhead = 8;

}  // namespace

Wkv4Call unpack_wkv4_forward(const OpCall& call, int segment) {
  Wkv4Call c = unpack_inputs(call, segment);
  if (call.out.size() > 1)
    for (size_t i = 0; i < 3; ++i) c.state_out[i] = call.out[1 + i].f32();
  return c;
}

Wkv4Call unpack_wkv4_backward(const OpCall& call, int segment) {
  Wkv4Call c = unpack_inputs(call, segment);
  RWKV_ASSERT(c.saved != nullptr, "wkv4 backward without the tensor that the forward saved");
  c.dy = call.dout[0].f32();
  if (c.has_state()) {
    c.da_out = call.dout[1].f32();
    c.db_out = call.dout[2].f32();
    c.p_out = call.out[3].f32();
  }
  const auto gradient = [](const TensorView& view, Accum mode) {
    return mode == Accum::kSkip ? nullptr : view.f32();
  };
  c.mode_k = call.din_mode[0];
  c.mode_v = call.din_mode[1];
  c.dk = gradient(call.din[0], c.mode_k);
  c.dv = gradient(call.din[1], c.mode_v);
  if (c.has_state()) {
    for (size_t i = 0; i < 3; ++i) {
      c.mode_state[i] = call.din_mode[2 + i];
      c.dstate[i] = gradient(call.din[2 + i], c.mode_state[i]);
    }
  }
  c.mode_tau = call.dparam_mode[0];
  c.mode_u = call.dparam_mode[1];
  c.dtau = gradient(call.dparam[0], c.mode_tau);
  c.du = gradient(call.dparam[1], c.mode_u);
  return c;
}

Wkv4Params::Wkv4Params(const Wkv4Call& c, const Lanes& lanes)
    : d{}, u(lanes.get(c.u + lanes.first)) {
  for (int i = 0; i < lanes.count; ++i) {
    const float rate = std::exp(c.tau[lanes.first + i]);
    d[i] = rate > 1e30f ? -1e30f : -rate;  // an infinite one would make 0 * d a NaN
  }
}

Past load_past(const Lanes& lanes, const float* a, const float* b, const float* p) {
  return {lanes.get(a + lanes.first), lanes.get(b + lanes.first), {lanes.get(p + lanes.first)}};
}

void store_past(const Lanes& lanes, const Past& past, Vec d, float* a, float* b, float* p) {
  lanes.set(a + lanes.first, past.a);
  lanes.set(b + lanes.first, past.b);
  lanes.set(p + lanes.first, past.scale.at(d));
}

Past first_past(const Wkv4Call& c, const Lanes& lanes, int64_t b) {
  if (!c.has_state()) return {};
  const int64_t o = b * c.channels;
  return load_past(lanes, c.state[0] + o, c.state[1] + o, c.state[2] + o);
}

Future last_future(const Wkv4Call& c, const Lanes& lanes, int64_t b) {
  Future f;
  if (!c.has_state()) return f;
  const int64_t o = b * c.channels + lanes.first;
  f.x = lanes.get(c.da_out + o);
  f.z = lanes.get(c.db_out + o);
  f.scale = {-lanes.get(c.p_out + o)};
  return f;
}

Past load_saved(const Wkv4Call& c, const Lanes& lanes, int64_t b, int64_t s) {
  const float* p = c.saved + (b * c.segments() + s) * 3 * c.channels;
  return load_past(lanes, p, p + c.channels, p + 2 * c.channels);
}

void store_saved(const Wkv4Call& c, const Lanes& lanes, int64_t b, int64_t s, const Past& past,
                 Vec d) {
  float* p = c.saved + (b * c.segments() + s) * 3 * c.channels;
  store_past(lanes, past, d, p, p + c.channels, p + 2 * c.channels);
}

size_t wkv4_saved_bytes(const WkvShape& s, int segment) {
  const int64_t segments = (s.tokens + segment - 1) / segment;
  return static_cast<size_t>(s.batch * segments * 3 * s.heads * s.head_size) * sizeof(float);
}

void store_last(const Wkv4Call& c, const Lanes& lanes, int64_t b, const Past& past, Vec d) {
  if (c.state_out[0] == nullptr) return;
  const int64_t o = b * c.channels;
  store_past(lanes, past, d, c.state_out[0] + o, c.state_out[1] + o, c.state_out[2] + o);
}

void wkv4_forward_span(const Wkv4Call& c, const Lanes& lanes, const Wkv4Params& param,
                       const Wkv4Span& span, Past& past) {
  int64_t o = span.origin(c, lanes);
  for (int i = 0; i < span.n; ++i, o += c.channels) {
    __builtin_prefetch(c.k + o + kAhead * c.channels);
    __builtin_prefetch(c.v + o + kAhead * c.channels);
    __builtin_prefetch(c.y + o + kAhead * c.channels, 1);
    const Vec k = lanes.get(c.k + o), v = lanes.get(c.v + o);
    const Weights w(past.scale.at(param.d), param.u + k);
    lanes.set(c.y + o, (w.first * past.a + w.second * v) / (w.first * past.b + w.second));
    past.push(param.d, k, v);
  }
}

void wkv4_readouts(const Wkv4Call& c, const Lanes& lanes, const Wkv4Params& param,
                   const Wkv4Span& span, Past& past, Readouts& out) {
  int64_t o = span.origin(c, lanes);
  for (int i = 0; i < span.n; ++i, o += c.channels) {
    const Vec k = lanes.get(c.k + o), v = lanes.get(c.v + o);
    const Vec p = past.scale.at(param.d), own = param.u + k;
    const Weights w(p, own);
    out.q[i] = vmax(p, own);
    out.h[i] = lanes.get(c.dy + o) / (w.first * past.b + w.second);
    past.push(param.d, k, v);
  }
}

void wkv4_backward_span(const Wkv4Call& c, const Lanes& lanes, const Wkv4Params& param,
                        const Wkv4Span& span, const Readouts& read, Future& future,
                        ParamSums& sums) {
  int64_t o = span.origin(c, lanes) + (span.n - 1) * c.channels;
  for (int i = span.n - 1; i >= 0; --i, o -= c.channels) {
    const Vec k = lanes.get(c.k + o), v = lanes.get(c.v + o), y = lanes.get(c.y + o);
    const Vec q = read.q[i], h = read.h[i];
    const Vec f1 = h * vexp(param.u + k - q), f2 = vexp(k + future.scale.at(param.d));
    const Vec own = f1 * (v - y);
    lanes.put(c.dk + o, c.mode_k, own + f2 * (future.x * v + future.z));
    lanes.put(c.dv + o, c.mode_v, f1 + f2 * future.x);
    sums.u += own;
    sums.d += f2 * (future.xd * v + future.zd);
    future.push(param.d, q, h, y);
  }
}

void wkv4_backward_state(const Wkv4Call& c, const Lanes& lanes, const Wkv4Params& param, int64_t b,
                         const Future& future, ParamSums& sums) {
  if (!c.has_state()) return;
  const int64_t o = b * c.channels + lanes.first;
  const Vec f = vexp(lanes.get(c.state[2] + o) + future.scale.at(param.d));
  sums.d += f * (future.xd * lanes.get(c.state[0] + o) + future.zd * lanes.get(c.state[1] + o));
  lanes.put(c.dstate[0] + o, c.mode_state[0], f * future.x);
  lanes.put(c.dstate[1] + o, c.mode_state[1], f * future.z);
  if (c.mode_state[2] == Accum::kWrite) lanes.set(c.dstate[2] + o, Vec{});
}

size_t ParamPartials::bytes(const WkvShape& s, int64_t parts) {
  return static_cast<size_t>(2 * parts * s.heads * s.head_size) * sizeof(double);
}

void ParamPartials::put(const Lanes& lanes, int64_t part, const double (&d)[kLanes],
                        const double (&u)[kLanes]) {
  double* row = at_ + 2 * part * channels_ + lanes.first;
  std::copy(d, d + lanes.count, row);
  std::copy(u, u + lanes.count, row + channels_);
}

void ParamPartials::reduce(const Wkv4Call& c) const {
  if (c.mode_tau == Accum::kSkip && c.mode_u == Accum::kSkip) return;
  parallel_for(c.blocks(), 4, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const Lanes lanes(c, block);
      const Vec step = Wkv4Params(c, lanes).d;
      double d[kLanes] = {}, u[kLanes] = {};
      for (int64_t part = 0; part < parts_; ++part) {
        const double* row = at_ + 2 * part * channels_ + lanes.first;
        for (int i = 0; i < lanes.count; ++i) {
          d[i] += row[i];
          u[i] += row[channels_ + i];
        }
      }
      Vec dtau{}, du{};
      for (int i = 0; i < lanes.count; ++i) {
        dtau[i] = static_cast<float>(d[i] * static_cast<double>(step[i]));
        du[i] = static_cast<float>(u[i]);
      }
      lanes.put(c.dtau + lanes.first, c.mode_tau, dtau);
      lanes.put(c.du + lanes.first, c.mode_u, du);
    }
  });
}

}  // namespace rwkv::cpu
