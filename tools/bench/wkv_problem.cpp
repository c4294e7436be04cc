#include "tools/bench/wkv_problem.h"

#include <algorithm>

#include "kernels/core/bf16.h"
#include "kernels/core/parallel.h"
#include "kernels/wkv/registry.h"
#include "model/rwkv.h"
#include "tools/bench/device_values.h"

namespace rwkv::bench {
namespace {

/// As models have it.
Wkv7Attrs attrs_of(const WkvShape& shape, const WkvKernel& kernel) {
  const bool half = kernel.state == DType::kF16;
  // Exponents come with states as inputs; this problem has none for them.
  return {shape.head_size, &kernel, half && !shape.has_state ? kHalfStateScale : 1,
          half && !shape.has_state};
}

ShapeCall sizes_of(const WkvShape& shape, DType io, const Wkv7Attrs& attrs) {
  const TensorSpec vec({shape.batch, shape.tokens, shape.heads * shape.head_size}, io);
  std::vector<TensorSpec> in(6, vec);
  if (shape.has_state) in.push_back({shape.batch, shape.heads, shape.head_size, shape.head_size});
  ShapeCall sizes;
  sizes.in = in;
  sizes.attrs = &attrs;
  kWkv7.infer(sizes);
  sizes.in = {};
  return sizes;
}

}  // namespace

WkvProblem::WkvProblem(Context& ctx, const WkvShape& shape, DType io,
                       std::span<const WkvKernel* const> kernels)
    : ctx_(ctx), shape_(shape) {
  const TensorSpec vec({shape.batch, shape.tokens, shape.heads * shape.head_size}, io);
  const TensorSpec state({shape.batch, shape.heads, shape.head_size, shape.head_size});
  size_t saved = 0, workspace = 0;
  for (const WkvKernel* kernel : kernels) {
    const Wkv7Attrs attrs = attrs_of(shape, *kernel);
    const ShapeCall sizes = sizes_of(shape, io, attrs);
    saved = std::max(saved, sizes.saved[0].bytes());
    workspace = std::max(workspace, sizes.workspace_bytes);
  }
  ctx.reserve_workspace(workspace);
  const size_t states = shape.has_state ? 4 * align_up(state.bytes()) : 0;
  arena_ =
      Arena(ctx.device(), 14 * align_up(vec.bytes()) + states + align_up(saved), "wkv benchmark");
  const size_t inputs = shape.has_state ? 7 : 6;
  for (size_t i = 0; i < inputs; ++i) {
    in_.push_back(arena_.take(i < 6 ? vec : state, "input"));
    din_.push_back(arena_.take(i < 6 ? vec : state, "gradient"));
  }
  for (size_t i = 0; i + 6 <= inputs; ++i) {
    out_.push_back(arena_.take(i == 0 ? vec : state, "output"));
    dout_.push_back(arena_.take(i == 0 ? vec : state, "upstream gradient"));
  }
  saved_ = arena_.take(TensorSpec({static_cast<int64_t>(saved / sizeof(float))}), "saved");
  modes_.assign(inputs, Accum::kWrite);
}

void WkvProblem::fill(const Wkv7Data& data) {
  const std::vector<float>* from[] = {&data.r, &data.w_logit, &data.k, &data.v,
                                      &data.a, &data.b,       &data.s0};
  for (size_t i = 0; i < in_.size(); ++i) fill_values(ctx_, in_[i], *from[i]);
  fill_values(ctx_, dout_[0], data.dy);
  if (shape_.has_state) fill_values(ctx_, dout_[1], data.ds_out);
}

size_t WkvProblem::saved_bytes(const WkvKernel& kernel) const {
  return decodes() ? 0 : kernel.saved_bytes(shape_);
}

OpCall WkvProblem::base_call(const Wkv7Attrs& attrs) {
  OpCall call;
  call.in = in_;
  call.attrs = &attrs;
  if (decodes()) return call;  // saves nothing
  const auto floats = static_cast<int64_t>(attrs.kernel->saved_bytes(shape_) / sizeof(float));
  saved_call_ = TensorView(saved_.data, TensorSpec({floats}), saved_.device);
  call.saved = std::span(&saved_call_, 1);
  return call;
}

void WkvProblem::forward(const WkvKernel& kernel) {
  const Wkv7Attrs attrs = attrs_of(shape_, kernel);
  OpCall call = base_call(attrs);
  call.out = out_;
  run_forward(ctx_, kWkv7, call);
}

void WkvProblem::backward(const WkvKernel& kernel) {
  const Wkv7Attrs attrs = attrs_of(shape_, kernel);
  OpCall call = base_call(attrs);
  call.dout = dout_;
  call.din = din_;
  call.din_mode = modes_;
  run_backward(ctx_, kWkv7, call);
}

std::vector<double> WkvProblem::values(WkvResult which, int64_t most) {
  const TensorView whole = which == kY      ? out_[0]
                           : which == kSOut ? out_.at(1)
                                            : din_.at(static_cast<size_t>(which - kDr));
  return read_values(ctx_, whole, most);
}

double WkvErrors::worst() const {
  double worst = y_long;
  for (const double e : result) raise_error(worst, e);
  return worst;
}

WkvChecker::WkvChecker(Context& ctx, DType io, const WkvShape& shape) : ctx_(ctx), io_(io) {
  const int64_t n = shape.head_size;
  const auto add = [&](Wkv7Kind kind, const WkvShape& s, bool backward) {
    Check check;
    check.problem = {"check", kind, s, 3};
    check.backward = backward;
    check.is_long = s.tokens >= 4096;
    checks_.push_back(std::move(check));
  };
  if (ctx.device() == Device::kCpu) {
    // The double reference is slow.
    const WkvShape small{std::min<int64_t>(shape.batch, 2), std::min<int64_t>(shape.tokens, 200),
                         std::min<int64_t>(shape.heads, 2), n, true};
    add(Wkv7Kind::kModel, small, small.tokens > 1);
  } else {
    for (const int64_t heads : {2, 6, 12}) add(Wkv7Kind::kPlain, {1, 128, heads, n, false}, true);
    add(Wkv7Kind::kPlain, {1, 1024, 2, n, true}, true);
    add(Wkv7Kind::kPlain, {1, 4096, 2, n, false}, false);
  }
  parallel_for(static_cast<int64_t>(checks_.size()), 1,
               [&](int64_t i, int64_t) { prepare(checks_[static_cast<size_t>(i)]); });
}

void WkvChecker::prepare(Check& check) const {
  check.data = make_wkv7_data(check.problem);
  Wkv7Data& d = check.data;
  if (io_ == DType::kBF16)
    for (auto* x : {&d.r, &d.w_logit, &d.k, &d.v, &d.a, &d.b, &d.dy})
      for (float& value : *x) value = to_float(to_bf16(value));
  const auto wide = [](const std::vector<float>& x) {
    return std::vector<double>(x.begin(), x.end());
  };
  const WkvShape& s = check.problem.shape;
  const ref::Wkv7Inputs<double> x{s.batch,   s.tokens,        s.heads,   s.head_size,
                                  wide(d.r), wide(d.w_logit), wide(d.k), wide(d.v),
                                  wide(d.a), wide(d.b),       wide(d.s0)};
  check.out = ref::wkv7_forward(x);
  if (check.backward) check.grads = ref::wkv7_backward(x, wide(d.dy), wide(d.ds_out));
}

WkvErrors WkvChecker::errors(const WkvKernel& kernel) const {
  WkvErrors errors;
  for (const Check& check : checks_) {
    const WkvKernel* const kernels[] = {&kernel};
    WkvProblem problem(ctx_, check.problem.shape, io_, kernels);
    problem.fill(check.data);
    problem.forward(kernel);
    const double y = relative_error(problem.values(kY), check.out.y);
    raise_error(check.is_long ? errors.y_long : errors.result[kY], y);
    const bool state = check.problem.shape.has_state;
    if (state)
      raise_error(errors.result[kSOut], relative_error(problem.values(kSOut), check.out.s_out));
    if (!check.backward) continue;
    problem.backward(kernel);
    const ref::Wkv7Gradients& g = check.grads;
    const std::vector<double>* want[] = {&g.dr, &g.dw_logit, &g.dk, &g.dv, &g.da, &g.db, &g.ds0};
    for (int i = kDr; i <= (state ? kDs0 : kDb); ++i)
      raise_error(errors.result[static_cast<size_t>(i)],
                  relative_error(problem.values(static_cast<WkvResult>(i)), *want[i - kDr]));
  }
  return errors;
}

WkvErrors wkv_error_limits(const WkvKernel& kernel) {
  WkvErrors limits;
  if (kernel.state == DType::kF16) {
    limits.result.fill(.01);
    limits.result[kY] = limits.result[kSOut] = limits.y_long = .005;
    return limits;
  }
  if (kernel.io == DType::kBF16) {
    limits.result = {.0035, .01, .0035, .004, .0035, .0035, .005, .005, .01};
    limits.y_long = .0035;
    return limits;
  }
  limits.result.fill(kernel.device == Device::kCpu ? 1e-5 : 1e-4);
  limits.result[kY] = limits.result[kSOut] = limits.y_long = 1e-5;
  return limits;
}

std::string wkv_error_violations(const WkvErrors& errors, const WkvErrors& limits) {
  std::string text;
  const auto compare = [&](const std::string& name, double error, double limit) {
    if (!(error <= limit)) text += str(text.empty() ? "" : ", ", name, " ", error, " > ", limit);
  };
  for (size_t i = 0; i < kWkvResults; ++i)
    compare(kWkvResultNames[i], errors.result[i], limits.result[i]);
  compare("y at 4096 tokens", errors.y_long, limits.y_long);
  return text;
}

}  // namespace rwkv::bench
