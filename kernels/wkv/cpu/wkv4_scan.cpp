// WKV-4 as an associative scan of max-stabilised elements (spec rwkv4 5.1): "wkv4.cpu.scan.f32".
//
// Work split: segments of 64 tokens x blocks of kLanes channels x sequences. Three steps: every
// segment is folded to one element; per sequence and block the elements are combined in order,
// which gives the state ahead of every segment (what is saved); every segment runs again from its
// state and writes y. The backward does the same in reversed time, with elements that carry the
// derivatives by the decay as well. Segments depend on sizes alone, and so do the bits of the
// result. Three exponentials per token forward and eight backward, against two and five of
// `serial`: it wins where sequences x blocks are fewer than threads.
#include "kernels/wkv/cpu/wkv4_common.h"
#include "kernels/wkv/cpu/wkv4_cpu.h"

namespace rwkv::cpu {
namespace {

int64_t segments_of(const WkvShape& s) {
  return (s.tokens + kWkv4Segment - 1) / kWkv4Segment;
}

/// `kRows` rows of channels per sequence and segment.
template <int kRows>
struct Elements {
  float* at;
  int64_t segments, channels;

  static size_t bytes(const WkvShape& s) {
    return static_cast<size_t>(s.batch * segments_of(s) * kRows * s.heads * s.head_size) *
           sizeof(float);
  }
  float* row(int64_t b, int64_t s, int i) const {
    return at + ((b * segments + s) * kRows + i) * channels;
  }
};
using Pasts = Elements<3>;
using Futures = Elements<5>;

Past load_element(const Pasts& e, const Lanes& lanes, int64_t b, int64_t s) {
  return load_past(lanes, e.row(b, s, 0), e.row(b, s, 1), e.row(b, s, 2));
}
void store_element(const Pasts& e, const Lanes& lanes, int64_t b, int64_t s, const Past& past,
                   Vec d) {
  store_past(lanes, past, d, e.row(b, s, 0), e.row(b, s, 1), e.row(b, s, 2));
}

Future load_element(const Futures& e, const Lanes& lanes, int64_t b, int64_t s) {
  const auto get = [&](int i) { return lanes.get(e.row(b, s, i) + lanes.first); };
  return {get(0), get(1), get(2), get(3), {get(4)}};
}
void store_element(const Futures& e, const Lanes& lanes, int64_t b, int64_t s, const Future& f,
                   Vec d) {
  const auto set = [&](int i, Vec x) { lanes.set(e.row(b, s, i) + lanes.first, x); };
  set(0, f.x);
  set(1, f.z);
  set(2, f.xd);
  set(3, f.zd);
  set(4, f.scale.at(d));
}

/// fn(sequence, segment, channels of a block) for all of them.
template <class Fn>
void for_each_segment(const Wkv4Call& c, const Fn& fn) {
  parallel_for(c.batch * c.segments() * c.blocks(), 1, [&](int64_t item, int64_t) {
    const int64_t row = item / c.blocks();
    fn(row / c.segments(), row % c.segments(), Lanes(c, item % c.blocks()));
  });
}
template <class Fn>
void for_each_sequence(const Wkv4Call& c, const Fn& fn) {
  parallel_for(c.batch * c.blocks(), 1,
               [&](int64_t item, int64_t) { fn(item / c.blocks(), Lanes(c, item % c.blocks())); });
}

WkvShape shape_of(const Wkv4Call& c) {
  return {c.batch, c.tokens, c.channels, 1, c.has_state()};
}

size_t saved_bytes(const WkvShape& s) {
  return wkv4_saved_bytes(s, kWkv4Segment);
}

size_t partial_bytes(const WkvShape& s) {
  return ParamPartials::bytes(s, s.batch * segments_of(s));
}

size_t workspace_bytes(const WkvShape& s) {
  return partial_bytes(s) + Futures::bytes(s);
}

void forward(Context& ctx, const OpCall& call) {
  const Wkv4Call c = unpack_wkv4_forward(call, kWkv4Segment);
  const int64_t last = c.segments() - 1;
  const Pasts elements{reinterpret_cast<float*>(ctx.workspace(Pasts::bytes(shape_of(c)))),
                       c.segments(), c.channels};
  for_each_segment(c, [&](int64_t b, int64_t s, const Lanes& lanes) {
    if (s == last) return;
    const Vec d = Wkv4Params(c, lanes).d;
    const Wkv4Span span(c, b, s);
    int64_t o = span.origin(c, lanes);
    Past past;
    for (int i = 0; i < span.n; ++i, o += c.channels)
      past.push(d, lanes.get(c.k + o), lanes.get(c.v + o));
    store_element(elements, lanes, b, s, past, d);
  });
  for_each_sequence(c, [&](int64_t b, const Lanes& lanes) {
    const Vec d = Wkv4Params(c, lanes).d;
    Past past = first_past(c, lanes, b);
    for (int64_t s = 0; s <= last; ++s) {
      if (c.saved != nullptr) store_saved(c, lanes, b, s, past, d);
      const Past run = s < last ? load_element(elements, lanes, b, s) : Past{};
      store_element(elements, lanes, b, s, past, d);
      past.append(d, static_cast<float>(kWkv4Segment), run);
    }
  });
  for_each_segment(c, [&](int64_t b, int64_t s, const Lanes& lanes) {
    const Wkv4Params param(c, lanes);
    Past past = load_element(elements, lanes, b, s);
    wkv4_forward_span(c, lanes, param, Wkv4Span(c, b, s), past);
    if (s == last) store_last(c, lanes, b, past, param.d);
  });
}

void backward(Context& ctx, const OpCall& call) {
  const Wkv4Call c = unpack_wkv4_backward(call, kWkv4Segment);
  std::byte* memory = ctx.workspace(workspace_bytes(shape_of(c)));
  ParamPartials partials(memory, c, c.batch * c.segments());
  const Futures elements{reinterpret_cast<float*>(memory + partial_bytes(shape_of(c))),
                         c.segments(), c.channels};
  for_each_segment(c, [&](int64_t b, int64_t s, const Lanes& lanes) {
    if (s == 0) return;
    const Wkv4Params param(c, lanes);
    const Wkv4Span span(c, b, s);
    Past past = load_saved(c, lanes, b, s);
    Readouts read;
    wkv4_readouts(c, lanes, param, span, past, read);
    Future future;
    int64_t o = span.origin(c, lanes) + (span.n - 1) * c.channels;
    for (int i = span.n - 1; i >= 0; --i, o -= c.channels)
      future.push(param.d, read.q[i], read.h[i], lanes.get(c.y + o));
    store_element(elements, lanes, b, s, future, param.d);
  });
  for_each_sequence(c, [&](int64_t b, const Lanes& lanes) {
    const Vec d = Wkv4Params(c, lanes).d;
    Future future = last_future(c, lanes, b);
    for (int64_t s = c.segments() - 1; s >= 0; --s) {
      const Future run = s > 0 ? load_element(elements, lanes, b, s) : Future{};
      store_element(elements, lanes, b, s, future, d);
      future.prepend(d, static_cast<float>(Wkv4Span(c, b, s).n), run);
    }
  });
  for_each_segment(c, [&](int64_t b, int64_t s, const Lanes& lanes) {
    const Wkv4Params param(c, lanes);
    const Wkv4Span span(c, b, s);
    Past past = load_saved(c, lanes, b, s);
    Readouts read;
    wkv4_readouts(c, lanes, param, span, past, read);
    Future future = load_element(elements, lanes, b, s);
    ParamSums sums;
    wkv4_backward_span(c, lanes, param, span, read, future, sums);
    if (s == 0) wkv4_backward_state(c, lanes, param, b, future, sums);
    ParamTotals totals;
    totals.add(sums);
    partials.put(lanes, b * c.segments() + s, totals.d, totals.u);
  });
  partials.reduce(c);
}

}  // namespace

constinit const WkvKernel kWkv4CpuScan = {
    .name = "wkv4.cpu.scan.f32",
    .op = "wkv4",
    .family = "scan",
    .saved_bytes = saved_bytes,
    .workspace_bytes = workspace_bytes,
    .forward = forward,
    .backward = backward,
    .step = wkv4_serial_forward,
    .note = "segments of time side by side; one sequence with few channels on many threads",
};

}  // namespace rwkv::cpu
