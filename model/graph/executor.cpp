#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdio>

#include "kernels/core/memory.h"
#include "model/graph/plan.h"

namespace rwkv {

TensorView Plan::view(int32_t b) const {
  if (b < 0) return {};
  const auto& buf = buffers_[static_cast<size_t>(b)];
  return arena_.at(buf.offset, buf.spec);
}

void Plan::bind(Context& ctx, std::span<const TensorView> values,
                std::span<const TensorView> grads) {
  RWKV_ASSERT(values.size() == graph_->params().size(), values.size(), " parameters");
  RWKV_ASSERT(!training_ || grads.size() == values.size(), grads.size(), " gradients");
  for (size_t p = 0; p < values.size(); ++p)
    RWKV_ASSERT(values[p].spec == graph_->params()[p].spec, graph_->params()[p].name);
  ctx.reserve_workspace(workspace_bytes_);
  arena_ = Arena(ctx.device(), arena_bytes_, "activations");
  exec_.clear();
  exec_.reserve(2 * steps_.size());  // calls point into their own elements
  const auto views = [this](const std::vector<int32_t>& buffers) {
    std::vector<TensorView> out;
    for (const int32_t b : buffers) out.push_back(view(b));
    return out;
  };
  enum class Part { kAll, kInputs, kParams };
  const auto add = [&](const PlanStep& s, Part part) {
    const auto& n = graph_->nodes()[static_cast<size_t>(s.node)];
    const bool backward = s.kind == PlanStep::Kind::kBackward;
    ExecStep& e = exec_.emplace_back();
    e.kind = s.kind;
    e.op = n.op;
    e.node = &n;
    e.finishes_block = part == Part::kInputs ? -1 : s.finishes_block;
    e.trace_name = str(n.op->name, backward ? " backward" : "");
    e.in = views(s.in);
    e.out = views(s.out);
    e.saved = views(s.saved);
    e.dout = views(s.dout);
    e.din = views(s.din);
    e.din_mode = s.din_mode;
    e.first_mode = s.dparam_mode;
    if (part == Part::kParams) e.din_mode.assign(e.din_mode.size(), Accum::kSkip);
    if (part == Part::kInputs) e.first_mode.assign(e.first_mode.size(), Accum::kSkip);
    for (const Accum m : e.first_mode)
      e.later_mode.push_back(m == Accum::kSkip ? Accum::kSkip : Accum::kAdd);
    for (const ParamId p : n.params) {
      e.param.push_back(values[static_cast<size_t>(p)]);
      if (backward) e.dparam.push_back(grads[static_cast<size_t>(p)]);
    }
    if (s.kind == PlanStep::Kind::kZero) return;
    const auto& kernels = backward ? n.op->backward : n.op->forward;
    e.fn = kernels[static_cast<size_t>(ctx.device())];
    RWKV_CHECK(e.fn != nullptr, DeviceError, "op ", n.op->name, " has no ",
               device_name(ctx.device()), backward ? " backward" : " forward",
               " kernel in this build");
    e.call = {.in = e.in,
              .param = e.param,
              .out = e.out,
              .saved = e.saved,
              .dout = e.dout,
              .din = e.din,
              .dparam = e.dparam,
              .din_mode = e.din_mode,
              .dparam_mode = e.first_mode,
              .attrs = n.attrs.get()};
  };
  const auto wanted = [](const std::vector<Accum>& modes) {
    return std::ranges::any_of(modes, [](Accum m) { return m != Accum::kSkip; });
  };
  for (size_t i = 0; i < steps_.size(); ++i) {
    const PlanStep& s = steps_[i];
    const auto& n = graph_->nodes()[static_cast<size_t>(s.node)];
    if (i == forward_steps_) forward_exec_ = exec_.size();
    const bool split = ctx.device() == Device::kCuda && s.kind == PlanStep::Kind::kBackward &&
                       n.op->backward_splits != nullptr && n.op->backward_splits(n.attrs.get()) &&
                       wanted(s.din_mode) && wanted(s.dparam_mode);
    if (!split) {
      add(s, Part::kAll);
      continue;
    }
    add(s, Part::kInputs);  // the gradients that others wait for come first
    add(s, Part::kParams);
  }
  if (!training_) forward_exec_ = exec_.size();
  forward_lanes_ = backward_lanes_ = {};
  loss_scale_.reset();
}

namespace {

template <class Named>
int32_t find_named(const std::vector<Named>& list, std::string_view name, const char* what) {
  std::string known;
  for (const auto& n : list) {
    if (n.name == name) return n.buffer;
    known += str(known.empty() ? "" : ", ", n.name);
  }
  throw ConfigError(str("the plan has no ", what, " called '", name, "'; there are: ", known));
}

}  // namespace

TensorView Plan::input(std::string_view name) const {
  return view(find_named(inputs_, name, "input"));
}
TensorView Plan::output(std::string_view name) const {
  return view(find_named(outputs_, name, "output"));
}
TensorView Plan::input_grad(std::string_view name) const {
  return view(find_named(input_grads_, name, "input gradient"));
}
bool Plan::has_output(std::string_view name) const {
  return std::ranges::find(outputs_, name, &NamedBuffer::name) != outputs_.end();
}

void Plan::use_lanes(int count) {
  forward_lanes_ = lane_schedule(0, forward_exec_, count);
  backward_lanes_ = lane_schedule(forward_exec_, exec_.size(), count);
}

Plan::Lanes Plan::lane_schedule(size_t begin, size_t end, int count) const {
  std::vector<LaneStep> steps;
  for (size_t i = begin; i < end; ++i) {
    const ExecStep& e = exec_[i];
    LaneStep& s = steps.emplace_back();
    double bytes = 0;
    const auto use = [&](const std::vector<TensorView>& views, std::vector<MemoryRange>& ranges,
                         const std::vector<Accum>* modes) {
      for (size_t k = 0; k < views.size(); ++k) {
        if (!views[k] || (modes != nullptr && (*modes)[k] == Accum::kSkip)) continue;
        const auto at = reinterpret_cast<uintptr_t>(views[k].data);
        ranges.push_back({at, at + views[k].bytes()});
        bytes += static_cast<double>(views[k].bytes());
      }
    };
    const bool backward = e.kind == PlanStep::Kind::kBackward;
    use(e.in, s.reads, nullptr);
    use(e.out, backward ? s.reads : s.writes, nullptr);
    use(e.saved, s.writes, nullptr);  // a backward may use up what its forward saved
    use(e.dout, s.reads, nullptr);
    use(e.din, s.writes, &e.din_mode);
    if (backward) use(e.dparam, s.writes, &e.first_mode);
    for (const TensorView& p : e.param) bytes += static_cast<double>(p.bytes());
    // A GPU's bandwidth and tensor rate, and what a kernel costs at least: only their ratio counts.
    const double flops = e.kind == PlanStep::Kind::kZero ? 0
                         : backward                      ? e.node->backward_flops / 2
                                                         : e.node->forward_flops;
    s.seconds = 3e-6 + bytes / 3e12 + flops / 5e14;
  }
  return {count, schedule_lanes(steps, count)};
}

void Plan::use_groups(const std::vector<int32_t>& group_of_param) {
  RWKV_ASSERT(group_of_param.size() == graph_->params().size(), group_of_param.size(), " groups");
  const int32_t groups = group_of_param.empty() ? 0 : std::ranges::max(group_of_param) + 1;
  std::vector<ExecStep*> first(static_cast<size_t>(groups)), last(first.size());
  gradient_spans_.assign(first.size(), {});
  for (size_t i = 0; i < exec_.size(); ++i) {
    ExecStep& e = exec_[i];
    e.uses.clear();
    e.completes.clear();
    if (e.kind == PlanStep::Kind::kZero) continue;
    for (size_t k = 0; k < e.node->params.size(); ++k) {
      const auto p = static_cast<size_t>(e.node->params[k]);
      const auto g = static_cast<size_t>(group_of_param[p]);
      if (i < forward_exec_ && first[g] == nullptr) first[g] = &e;
      if (i >= forward_exec_ && e.kind == PlanStep::Kind::kBackward &&
          e.first_mode[k] != Accum::kSkip) {
        if (last[g] == nullptr) gradient_spans_[g].first = i;
        gradient_spans_[g].last = i;
        last[g] = &e;
      }
    }
  }
  for (int32_t g = 0; g < groups; ++g) {
    if (ExecStep* e = first[static_cast<size_t>(g)]) e->uses.push_back(g);
    if (ExecStep* e = last[static_cast<size_t>(g)]) e->completes.push_back(g);
  }
}

void Plan::forward(Context& ctx, const PlanHooks* hooks) {
  run(ctx, 0, forward_exec_, true, nullptr, hooks);
}

void Plan::backward(Context& ctx, float scale, bool first_micro_batch,
                    const std::function<void(int32_t)>& grads_ready) {
  set_loss_scale(ctx, scale);
  run(ctx, forward_exec_, exec_.size(), first_micro_batch, grads_ready ? &grads_ready : nullptr,
      nullptr);
  if (grads_ready) grads_ready(-1);
}

void Plan::backward(Context& ctx, float scale, bool first_micro_batch, const PlanHooks& hooks) {
  set_loss_scale(ctx, scale);
  run(ctx, forward_exec_, exec_.size(), first_micro_batch, nullptr, &hooks);
}

void Plan::set_loss_scale(Context& ctx, float scale) {
  RWKV_ASSERT(training_);
  if (loss_scale_ != scale || ctx.device() == Device::kCpu) {
    // Stays in its buffer: later steps with the same scale copy nothing. A recording must not
    // contain the copy: it would read this frame of the stack at every replay.
    RWKV_ASSERT(!ctx.recording(), "the loss scale changed within a launch graph");
    copy(ctx, view(loss_grad_), TensorView(&scale, TensorSpec{}));
    loss_scale_ = scale;
  }
}

void Plan::before_step(const ExecStep& e, const PlanHooks* hooks) {
  if (hooks == nullptr || !hooks->before_use) return;
  for (const int32_t g : e.uses) hooks->before_use(g);
}

void Plan::after_step(const ExecStep& e, const PlanHooks* hooks) {
  if (hooks == nullptr || !hooks->grads_ready) return;
  for (const int32_t g : e.completes) hooks->grads_ready(g);
}

TimelineKind Plan::timeline_kind(const ExecStep& e) {
  return e.kind == PlanStep::Kind::kForward     ? TimelineKind::kForward
         : e.kind == PlanStep::Kind::kRecompute ? TimelineKind::kRecompute
                                                : TimelineKind::kBackward;
}

std::string_view Plan::part_name(const ExecStep& e) const {
  if (e.node->block < 0) return e.op->name;
  return graph_->blocks()[static_cast<size_t>(e.node->block)];
}

void Plan::run_step(Context& ctx, int lane, ExecStep& e, bool first_micro_batch) {
  if (timeline_ != nullptr) timeline_->enter(lane, ctx.stream(), timeline_kind(e), part_name(e));
  if (e.kind == PlanStep::Kind::kZero) {
    fill_zero(ctx, e.out[0]);
    return;
  }
  const TraceScope trace(ctx.tracer(), e.trace_name);
  e.call.dparam_mode = first_micro_batch ? e.first_mode : e.later_mode;
  e.fn(ctx, e.call);
}

void Plan::run(Context& ctx, size_t begin, size_t end, bool first_micro_batch,
               const std::function<void(int32_t)>* grads_ready, const PlanHooks* hooks) {
  RWKV_ASSERT(exec_.size() >= steps_.size(), "the plan was not bound");
  const Lanes& lanes = begin == 0 ? forward_lanes_ : backward_lanes_;
  if (lanes.count > 1 && grads_ready == nullptr && !check_finite_ && !ctx.tracer().enabled()) {
    run_lanes(ctx, begin, lanes, first_micro_batch, hooks);
    return;
  }
  for (size_t i = begin; i < end; ++i) {
    ExecStep& e = exec_[i];
    before_step(e, hooks);
    run_step(ctx, 0, e, first_micro_batch);
    after_step(e, hooks);
    if (check_finite_ && e.kind != PlanStep::Kind::kZero) check_step(ctx, e);
    if (grads_ready != nullptr && e.finishes_block >= 0) (*grads_ready)(e.finishes_block);
  }
  leave_lanes();
}

void Plan::run_lanes(Context& ctx, size_t begin, const Lanes& lanes, bool first_micro_batch,
                     const PlanHooks* hooks) {
  RWKV_ASSERT(ctx.lanes() >= lanes.count, "open_lanes was not called");
  fork_.record(ctx);
  for (int l = 1; l < lanes.count; ++l) fork_.wait(ctx.lane(l));
  if (lane_events_.size() < exec_.size()) lane_events_.resize(exec_.size());
  for (size_t i = 0; i < lanes.slots.size(); ++i) {
    const LaneSlot& slot = lanes.slots[i];
    Context& lane = ctx.lane(slot.lane);
    ExecStep& e = exec_[begin + i];
    if (timeline_ != nullptr)
      timeline_->leave_unless(slot.lane, lane.stream(), timeline_kind(e), part_name(e));
    for (const int32_t j : slot.waits) lane_events_[begin + static_cast<size_t>(j)].wait(lane);
    before_step(e, hooks);
    run_step(lane, slot.lane, e, first_micro_batch);
    if (slot.awaited) lane_events_[begin + i].record(lane);
    after_step(e, hooks);
  }
  leave_lanes();
  for (int l = 1; l < lanes.count; ++l) {
    join_.record(ctx.lane(l));
    join_.wait(ctx);
  }
}

void Plan::check_step(Context& ctx, const ExecStep& e) const {
  std::vector<float> values;
  std::vector<uint16_t> halves;
  const auto check = [&](const TensorView& v, const char* what, size_t k) {
    if (!v || (v.spec.dtype != DType::kF32 && v.spec.dtype != DType::kBF16)) return;
    values.resize(static_cast<size_t>(v.numel()));
    if (v.spec.dtype == DType::kF32) {
      copy(ctx, TensorView(values.data(), v.spec), v);
    } else {
      halves.resize(values.size());
      copy(ctx, TensorView(halves.data(), v.spec), v);
      for (size_t i = 0; i < values.size(); ++i)
        values[i] = std::bit_cast<float>(static_cast<uint32_t>(halves[i]) << 16);
    }
    for (size_t i = 0; i < values.size(); ++i)
      RWKV_CHECK(std::isfinite(values[i]), NonFiniteError, e.node->label, ": ", what, " ", k,
                 " is ", values[i], " at element ", i, " of ", to_string(v.spec));
  };
  if (e.kind == PlanStep::Kind::kBackward) {
    for (size_t k = 0; k < e.din.size(); ++k) check(e.din[k], "gradient of input", k);
    for (size_t k = 0; k < e.dparam.size(); ++k)
      if (e.first_mode[k] != Accum::kSkip) check(e.dparam[k], "gradient of parameter", k);
  } else {
    for (size_t k = 0; k < e.out.size(); ++k) check(e.out[k], "output", k);
  }
}

size_t Plan::unpacked_bytes() const {
  size_t sum = 0;
  for (const auto& b : buffers_) sum += align_up(b.spec.bytes());
  return sum;
}

std::string Plan::dump() const {
  std::string out;
  const auto one = [&](int32_t b) {
    const auto& buf = buffers_[static_cast<size_t>(b)];
    char text[64];
    std::snprintf(text, sizeof text, "[%.2f MiB @%.2f]",
                  static_cast<double>(buf.spec.bytes()) / (1 << 20),
                  static_cast<double>(buf.offset) / (1 << 20));
    return buf.label + " " + text;
  };
  const auto many = [&](const char* title, const std::vector<int32_t>& buffers) {
    std::string s;
    for (const int32_t b : buffers)
      if (b >= 0) s += str(s.empty() ? str("  ", title, " ") : ", ", one(b));
    return s;
  };
  constexpr const char* kKinds[] = {"forward", "recompute", "zero", "backward"};
  constexpr const char* kModes[] = {"skip", "write", "add"};
  for (size_t i = 0; i < steps_.size(); ++i) {
    const PlanStep& s = steps_[i];
    const auto& n = graph_->nodes()[static_cast<size_t>(s.node)];
    out += str(i, " ", kKinds[static_cast<size_t>(s.kind)], " ", n.label, " (", n.op->name, ")");
    if (s.block >= 0) out += " in " + graph_->blocks()[static_cast<size_t>(s.block)];
    out += many("in", s.in) + many("out", s.out) + many("saved", s.saved) + many("dout", s.dout);
    for (size_t k = 0; k < s.din.size(); ++k)
      if (s.din[k] >= 0)
        out += str("  ", kModes[static_cast<size_t>(s.din_mode[k])], " ", one(s.din[k]));
    for (size_t k = 0; k < s.dparam_mode.size(); ++k)
      if (s.dparam_mode[k] != Accum::kSkip)
        out += str("  ", kModes[static_cast<size_t>(s.dparam_mode[k])], " d",
                   graph_->params()[static_cast<size_t>(n.params[k])].name);
    if (s.finishes_block >= 0)
      out += "  (gradients of " + graph_->blocks()[static_cast<size_t>(s.finishes_block)] +
             " complete)";
    out += "\n";
  }
  out += str(steps_.size(), " steps, ", buffers_.size(), " buffers of ",
             format_bytes(unpacked_bytes()), " packed into ", format_bytes(arena_bytes_),
             ", workspace ", format_bytes(workspace_bytes_), "\n");
  return out;
}

}  // namespace rwkv
