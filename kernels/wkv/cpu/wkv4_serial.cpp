// WKV-4 token by token: "wkv4.cpu.serial.f32".
//
// Work split: one (sequence, block of kLanes channels) per worker item. Forward: two exponentials
// per token, each e^-|difference| with the other weight exactly 1. Saved: the state ahead of every
// 64 tokens. Backward: segments from last to first, each run forward again from its saved state for
// the scales and gradients of its denominators, then backward; five exponentials per token. The
// state of a lane is a chain of dependent operations: their latency, not their number, is what
// limits it.
#include "kernels/wkv/cpu/wkv4_common.h"
#include "kernels/wkv/cpu/wkv4_cpu.h"

namespace rwkv::cpu {
namespace {

void backward(Context& ctx, const OpCall& call) {
  const Wkv4Call c = unpack_wkv4_backward(call);
  ParamPartials partials(ctx, c, c.batch);
  parallel_for(c.batch * c.blocks(), 1, [&](int64_t item, int64_t) {
    const int64_t b = item / c.blocks();
    const Lanes lanes(c, item % c.blocks());
    const Wkv4Params param(c, lanes);
    Future future = last_future(c, lanes, b);
    ParamTotals totals;
    Readouts read;
    for (int64_t s = wkv4_segments(c.tokens) - 1; s >= 0; --s) {
      const int64_t t0 = s * kWkv4Segment;
      const Wkv4Span span{b, t0, static_cast<int>(std::min<int64_t>(kWkv4Segment, c.tokens - t0))};
      Past past = load_saved(c, lanes, b, s);
      wkv4_readouts(c, lanes, param, span, past, read);
      ParamSums sums;
      wkv4_backward_span(c, lanes, param, span, read, future, sums);
      if (s == 0) wkv4_backward_state(c, lanes, param, b, future, sums);
      totals.add(sums);
    }
    partials.put(lanes, b, totals.d, totals.u);
  });
  partials.reduce(c);
}

size_t workspace_bytes(const WkvShape& s) {
  return ParamPartials::bytes(s, s.batch);
}

}  // namespace

void wkv4_serial_forward(Context&, const OpCall& call) {
  const Wkv4Call c = unpack_wkv4_forward(call);
  parallel_for(c.batch * c.blocks(), 1, [&](int64_t item, int64_t) {
    const int64_t b = item / c.blocks();
    const Lanes lanes(c, item % c.blocks());
    const Wkv4Params param(c, lanes);
    Past past = first_past(c, lanes, b);
    for (int64_t s = 0; s < wkv4_segments(c.tokens); ++s) {
      const int64_t t0 = s * kWkv4Segment;
      if (c.saved != nullptr) store_saved(c, lanes, b, s, past, param.d);
      wkv4_forward_span(c, lanes, param,
                        {b, t0, static_cast<int>(std::min<int64_t>(kWkv4Segment, c.tokens - t0))},
                        past);
    }
    if (c.state_out[0] != nullptr) {
      const int64_t o = b * c.channels;
      store_past(lanes, past, param.d, c.state_out[0] + o, c.state_out[1] + o, c.state_out[2] + o);
    }
  });
}

constinit const WkvKernel kWkv4CpuSerial = {
    .name = "wkv4.cpu.serial.f32",
    .op = "wkv4",
    .family = "serial",
    .saved_bytes = wkv4_saved_bytes,
    .workspace_bytes = workspace_bytes,
    .forward = wkv4_serial_forward,
    .backward = backward,
    .step = wkv4_serial_forward,
    .note = "token by token; decode, many sequences",
};

}  // namespace rwkv::cpu
