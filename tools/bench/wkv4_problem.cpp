#include "tools/bench/wkv4_problem.h"

#include <algorithm>
#include <cmath>

#include "kernels/core/bf16.h"
#include "kernels/ref/wkv4_ref.h"
#include "tools/bench/device_values.h"

namespace rwkv::bench {
namespace {

/// Product of rate and length with which a whole sequence of normal keys fits one cumulative sum.
constexpr double kSlowReach = 30;

std::vector<double> wide(const std::vector<float>& x) {
  return {x.begin(), x.end()};
}

}  // namespace

std::string_view wkv4_rates_name(Wkv4Rates rates) {
  return rates == Wkv4Rates::kSlow ? "slow" : "model";
}

Wkv4Problem::Wkv4Problem(Context& ctx, const WkvShape& shape, DType io,
                         std::span<const WkvKernel* const> kernels)
    : ctx_(ctx), shape_(shape) {
  const int64_t channels = shape.heads * shape.head_size;
  const TensorSpec vec({shape.batch, shape.tokens, channels}, io);
  const TensorSpec state({shape.batch, channels}), param({channels});
  const std::vector<TensorSpec> params(2, param);
  std::vector<TensorSpec> inputs(2, vec);
  if (shape.has_state) inputs.insert(inputs.end(), 3, state);
  size_t saved = 0, workspace = 0;
  for (const WkvKernel* kernel : kernels) {
    const Wkv4Attrs attrs{kernel};
    ShapeCall sizes;
    sizes.in = inputs;
    sizes.param = params;
    sizes.attrs = &attrs;
    kWkv4.infer(sizes);
    saved = std::max(saved, sizes.saved[0].bytes());
    workspace = std::max(workspace, sizes.workspace_bytes);
  }
  ctx.reserve_workspace(workspace);
  const size_t states = shape.has_state ? 12 * align_up(state.bytes()) : 0;
  arena_ = Arena(ctx.device(),
                 6 * align_up(vec.bytes()) + states + 6 * align_up(param.bytes()) + align_up(saved),
                 "wkv4 benchmark");
  for (const TensorSpec& spec : inputs) {
    in_.push_back(arena_.take(spec, "input"));
    din_.push_back(arena_.take(spec, "gradient"));
  }
  const size_t outputs = shape.has_state ? 4 : 1;
  for (size_t i = 0; i < outputs; ++i) {
    out_.push_back(arena_.take(i == 0 ? vec : state, "output"));
    dout_.push_back(arena_.take(i == 0 ? vec : state, "upstream gradient"));
  }
  for (size_t i = 0; i < 2; ++i) {
    param_.push_back(arena_.take(param, "parameter"));
    slow_param_.push_back(arena_.take(param, "parameter"));
    dparam_.push_back(arena_.take(param, "parameter gradient"));
  }
  saved_ = arena_.take(TensorSpec({static_cast<int64_t>(saved / sizeof(float))}), "saved");
  modes_.assign(inputs.size(), Accum::kWrite);
}

void Wkv4Problem::fill(const Wkv4Data& data) {
  fill_values(ctx_, in_[0], data.k);
  fill_values(ctx_, in_[1], data.v);
  fill_values(ctx_, dout_[0], data.dy);
  if (shape_.has_state) {
    const std::vector<float>* from[] = {&data.a0, &data.b0, &data.p0};
    for (size_t i = 0; i < 3; ++i) fill_values(ctx_, in_[2 + i], *from[i]);
    fill_values(ctx_, dout_[1], data.da_out);
    fill_values(ctx_, dout_[2], data.db_out);
  }
  fill_values(ctx_, param_[0], data.tau);
  fill_values(ctx_, param_[1], data.u);
  // Half of the reach to all of it, over the channels.
  std::vector<float> slow(data.tau.size());
  for (size_t i = 0; i < slow.size(); ++i) {
    const double x = static_cast<double>(i + 1) / static_cast<double>(slow.size());
    slow[i] = static_cast<float>(
        std::log(0.5 * (1 + x) * kSlowReach / static_cast<double>(shape_.tokens)));
  }
  fill_values(ctx_, slow_param_[0], slow);
  fill_values(ctx_, slow_param_[1], data.u);
}

/// What forward and backward have in common; lives as long as its OpCall is used.
struct Wkv4Problem::Call {
  Call(Wkv4Problem& p, const WkvKernel& kernel, Wkv4Rates rates) : attrs{&kernel} {
    const auto floats = static_cast<int64_t>(kernel.saved_bytes(p.shape_) / sizeof(float));
    saved = TensorView(p.saved_.data, TensorSpec({floats}), p.saved_.device);
    op.in = p.in_;
    op.param = rates == Wkv4Rates::kSlow ? p.slow_param_ : p.param_;
    op.out = p.out_;
    op.saved = std::span(&saved, 1);
    op.attrs = &attrs;
  }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;
  Wkv4Attrs attrs;
  TensorView saved;
  OpCall op;
};

void Wkv4Problem::forward(const WkvKernel& kernel, Wkv4Rates rates) {
  Call call(*this, kernel, rates);
  run_forward(ctx_, kWkv4, call.op);
}

void Wkv4Problem::backward(const WkvKernel& kernel, Wkv4Rates rates) {
  Call call(*this, kernel, rates);
  // Of the outputs only y and p are read.
  std::vector<TensorView> out{out_[0]};
  if (shape_.has_state) out.insert(out.end(), {TensorView(), TensorView(), out_[3]});
  constexpr Accum kWrite[] = {Accum::kWrite, Accum::kWrite};
  call.op.out = out;
  call.op.dout = dout_;
  call.op.din = din_;
  call.op.din_mode = modes_;
  call.op.dparam = dparam_;
  call.op.dparam_mode = kWrite;
  run_backward(ctx_, kWkv4, call.op);
}

double Wkv4Problem::replaced_share(const WkvKernel& kernel, Wkv4Rates rates) {
  if (kernel.replaced_share == nullptr) return -1;
  Call call(*this, kernel, rates);
  return kernel.replaced_share(ctx_, call.op);
}

namespace {

/// Raises `worst` to the errors of one problem.
void check(Context& ctx, const WkvKernel& kernel, Wkv4Kind kind, int64_t tokens,
           Wkv4Errors& worst) {
  const WkvShape s{2, tokens, 40, 1, true};
  Wkv4Data d = make_wkv4_data({"check", kind, s, 3});
  if (kernel.io == DType::kBF16)
    for (auto* x : {&d.k, &d.v, &d.dy})
      for (float& value : *x) value = to_float(to_bf16(value));
  const WkvKernel* const kernels[] = {&kernel};
  Wkv4Problem problem(ctx, s, kernel.io, kernels);
  problem.fill(d);
  problem.forward(kernel);
  problem.backward(kernel);
  const auto read = [&](const TensorView& v) { return read_values(ctx, v); };
  const std::vector<double> a = read(problem.state(0)), b = read(problem.state(1)),
                            p = read(problem.state(2));
  const ref::Wkv4Inputs<double> x{s.batch,     s.tokens,  s.heads,    wide(d.k),  wide(d.v),
                                  wide(d.tau), wide(d.u), wide(d.a0), wide(d.b0), wide(d.p0)};
  const auto want = ref::wkv4_forward(x);
  // Gradients at the outgoing state hold the p that the variant left.
  const auto g = ref::wkv4_backward(x, wide(d.dy), wide(d.da_out), wide(d.db_out), p);
  std::vector<double> ratio(a.size()), want_ratio(a.size());
  double log_sum = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    ratio[i] = a[i] / b[i];
    want_ratio[i] = want.a[i] / want.b[i];
    raise_error(log_sum, std::abs(p[i] + std::log(b[i]) - want.p[i] - std::log(want.b[i])));
  }
  const Wkv4Errors errors = {relative_error(read(problem.y()), want.y),
                             relative_error(ratio, want_ratio),
                             log_sum,
                             relative_error(read(problem.gradient(0)), g.dk),
                             relative_error(read(problem.gradient(1)), g.dv),
                             relative_error(read(problem.gradient(2)), g.da0),
                             relative_error(read(problem.gradient(3)), g.db0),
                             relative_error(read(problem.tau_gradient()), g.dtau),
                             relative_error(read(problem.u_gradient()), g.du)};
  for (size_t i = 0; i < kW4Errors; ++i) raise_error(worst[i], errors[i]);
}

}  // namespace

Wkv4Errors wkv4_errors(Context& ctx, const WkvKernel& kernel) {
  Wkv4Errors worst;
  worst.fill(-1);
  if (kernel.family != "cumsum-naive") {
    check(ctx, kernel, Wkv4Kind::kModel, 200, worst);
    check(ctx, kernel, Wkv4Kind::kSpread, 200, worst);
  }
  check(ctx, kernel, Wkv4Kind::kSlow, 200, worst);
  return worst;
}

Wkv4Errors wkv4_error_limits(DType io) {
  Wkv4Errors limits;
  limits.fill(io == DType::kBF16 ? 4e-3 : 1e-5);
  limits[kW4Ratio] = 1e-5;
  limits[kW4LogSum] = 5e-4;
  return limits;
}

std::string wkv4_error_violations(const Wkv4Errors& errors, const Wkv4Errors& limits) {
  std::string text;
  for (size_t i = 0; i < kW4Errors; ++i)
    if (!(errors[i] <= limits[i]))
      text += str(text.empty() ? "" : ", ", kWkv4ErrorNames[i], " ", errors[i], " > ", limits[i]);
  return text;
}

}  // namespace rwkv::bench
