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

size_t saved_bytes(const WkvShape& s) {
  return wkv4_saved_bytes(s, kWkv4Segment);
}

size_t workspace_bytes(const WkvShape& s) {
  return ParamPartials::bytes(s, s.batch);
}

void backward(Context& ctx, const OpCall& call) {
  const Wkv4Call c = unpack_wkv4_backward(call, kWkv4Segment);
  ParamPartials partials(ctx.workspace(workspace_bytes({c.batch, c.tokens, c.channels, 1})), c,
                         c.batch);
  parallel_for(c.batch * c.blocks(), 1, [&](int64_t item, int64_t) {
    const int64_t b = item / c.blocks();
    const Lanes lanes(c, item % c.blocks());
    const Wkv4Params param(c, lanes);
    Future future = last_future(c, lanes, b);
    ParamTotals totals;
    Readouts read;
    for (int64_t s = c.segments() - 1; s >= 0; --s) {
      const Wkv4Span span(c, b, s);
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

}  // namespace

void wkv4_serial_forward(Context&, const OpCall& call) {
  const Wkv4Call c = unpack_wkv4_forward(call, kWkv4Segment);
  parallel_for(c.batch * c.blocks(), 1, [&](int64_t item, int64_t) {
    const int64_t b = item / c.blocks();
    const Lanes lanes(c, item % c.blocks());
    const Wkv4Params param(c, lanes);
    Past past = first_past(c, lanes, b);
    for (int64_t s = 0; s < c.segments(); ++s) {
      if (c.saved != nullptr) store_saved(c, lanes, b, s, past, param.d);
      wkv4_forward_span(c, lanes, param, Wkv4Span(c, b, s), past);
    }
    store_last(c, lanes, b, past, param.d);
  });
}

constinit const WkvKernel kWkv4CpuSerial = {
    .name = "wkv4.cpu.serial.f32",
    .op = "wkv4",
    .family = "serial",
    .saved_bytes = saved_bytes,
    .workspace_bytes = workspace_bytes,
    .forward = wkv4_serial_forward,
    .backward = backward,
    .step = wkv4_serial_forward,
    .note = "token by token; decode, many sequences",
};

}  // namespace rwkv::cpu
