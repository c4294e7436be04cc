#include <algorithm>
#include <map>
#include <numeric>

#include "model/graph/plan.h"

namespace rwkv {

/// Works on one graph; fills one plan.
class Planner {
 public:
  Planner(const Graph& graph, const PlanOptions& options) : graph_(graph), options_(options) {
    plan_.graph_ = &graph;
    plan_.training_ = options.training;
    value_buffer_.assign(graph.values().size(), -1);
    recomputed_.assign(graph.values().size(), -1);
    grad_buffer_.assign(graph.values().size(), -1);
    saved_buffers_.resize(graph.nodes().size());
    recomputed_saved_.resize(graph.nodes().size());
  }

  Plan run() {
    plan_forward();
    if (options_.training) {
      find_gradient_paths();
      plan_backward();
    }
    keep_named_values();
    pack();
    for (const auto& n : graph_.nodes())
      plan_.workspace_bytes_ = std::max(plan_.workspace_bytes_, n.workspace_bytes);
    return std::move(plan_);
  }

 private:
  const Graph::Node& node(int32_t i) const { return graph_.nodes()[static_cast<size_t>(i)]; }
  const Graph::ValueInfo& info(Value v) const { return graph_.value(v); }
  /// Of the gradient of a value: those of binary16 states are f32 (kernels/wkv/wkv.h).
  TensorSpec gradient_spec(Value v) const {
    TensorSpec spec = info(v).spec;
    if (spec.dtype == DType::kF16) spec.dtype = DType::kF32;
    return spec;
  }
  /// Counters and exponents have no gradient.
  bool counts(Value v) const {
    return info(v).spec.dtype == DType::kI32 || info(v).spec.dtype == DType::kI8;
  }
  static size_t idx(Value v) { return static_cast<size_t>(v.id); }
  int32_t now() const { return static_cast<int32_t>(plan_.steps_.size()); }

  int32_t new_buffer(std::string label, const TensorSpec& spec) {
    plan_.buffers_.push_back(
        {.label = std::move(label), .spec = spec, .first = now(), .last = now()});
    return static_cast<int32_t>(plan_.buffers_.size() - 1);
  }

  /// The step that is being made reads or writes this buffer.
  int32_t touch(int32_t buffer) {
    auto& b = plan_.buffers_[static_cast<size_t>(buffer)];
    b.last = std::max(b.last, now());
    return buffer;
  }

  void plan_forward() {
    for (const auto& named : graph_.inputs())
      value_buffer_[idx(named.value)] = new_buffer(named.name, info(named.value).spec);
    for (size_t i = 0; i < graph_.nodes().size(); ++i) {
      const auto id = static_cast<int32_t>(i);
      const auto& n = node(id);
      PlanStep step{.kind = PlanStep::Kind::kForward, .node = id, .block = n.block};
      for (const Value v : n.in) step.in.push_back(touch(value_buffer_[idx(v)]));
      for (const Value v : n.out)
        step.out.push_back(value_buffer_[idx(v)] = new_buffer(info(v).name, info(v).spec));
      if (options_.training || !n.op->saved_optional)
        saved_buffers_[i] = new_saved(n, "");
      else
        saved_buffers_[i].assign(n.saved.size(), -1);
      step.saved = saved_buffers_[i];
      plan_.steps_.push_back(std::move(step));
      plan_.model_flops_ += n.forward_flops;
    }
    plan_.forward_steps_ = plan_.steps_.size();
  }

  std::vector<int32_t> new_saved(const Graph::Node& n, const char* suffix) {
    std::vector<int32_t> out;
    for (size_t k = 0; k < n.saved.size(); ++k)
      out.push_back(new_buffer(str(n.label, ".saved", k, suffix), n.saved[k]));
    return out;
  }

  bool trains(ParamId p) const {
    return options_.frozen.empty() || !options_.frozen[static_cast<size_t>(p)];
  }

  /// Which values carry a gradient: they depend on something trained, and the loss on them.
  void find_gradient_paths() {
    const auto loss = std::ranges::find(graph_.outputs(), options_.loss, &Graph::Named::name);
    RWKV_CHECK(loss != graph_.outputs().end(), ConfigError, "planning a training step: the graph ",
               "has no output called '", options_.loss, "'");
    loss_ = loss->value;
    RWKV_CHECK(info(loss_).spec.numel() == 1, ConfigError, "planning a training step: output '",
               options_.loss, "' has shape ", to_string(info(loss_).spec), ", expected a scalar");
    std::vector<bool> depends(graph_.values().size(), false);
    for (const auto& named : graph_.inputs())
      depends[idx(named.value)] = info(named.value).differentiable;
    for (const auto& n : graph_.nodes()) {
      const bool any = std::ranges::any_of(n.in, [&](Value v) { return depends[idx(v)]; }) ||
                       std::ranges::any_of(n.params, [&](ParamId p) { return trains(p); });
      for (const Value v : n.out) depends[idx(v)] = any && !counts(v);
    }
    std::vector<bool> feeds(graph_.values().size(), false);
    feeds[idx(loss_)] = true;
    runs_backward_.assign(graph_.nodes().size(), false);
    plan_.reached_params_.assign(graph_.params().size(), false);
    for (size_t i = graph_.nodes().size(); i-- > 0;) {
      const auto& n = graph_.nodes()[i];
      const bool any = std::ranges::any_of(n.out, [&](Value v) { return feeds[idx(v)]; });
      if (!any) continue;
      for (const Value v : n.in) feeds[idx(v)] = true;
      runs_backward_[i] = std::ranges::any_of(n.out, [&](Value v) { return depends[idx(v)]; });
      if (runs_backward_[i])
        for (const ParamId p : n.params)
          if (trains(p)) plan_.reached_params_[static_cast<size_t>(p)] = true;
    }
    carries_.resize(graph_.values().size());
    for (size_t v = 0; v < carries_.size(); ++v) carries_[v] = depends[v] && feeds[v];
    RWKV_CHECK(carries_[idx(loss_)], ConfigError, "planning a training step: output '",
               options_.loss, "' depends on no trained parameter");
  }

  bool recomputes(int32_t block) const {
    return block >= 0 && options_.grad_checkpointing == GradCheckpointing::kBlock &&
           (options_.recompute_blocks == 0 || block < options_.recompute_blocks);
  }

  /// Values of a block that stay after the forward although it is recomputed: those that other
  /// blocks read, and named outputs.
  bool kept(Value v) const {
    const auto& i = info(v);
    if (i.node < 0) return true;
    const int32_t block = node(i.node).block;
    if (!recomputes(block)) return true;
    for (const auto& named : graph_.outputs())
      if (named.value == v) return true;
    for (const auto& n : graph_.nodes())
      if (n.block != block && std::ranges::find(n.in, v) != n.in.end()) return true;
    return false;
  }

  /// Emits the forward of a block again, as far as the block's backward needs its results.
  void plan_recompute(int32_t block) {
    std::vector<bool> value_needed(graph_.values().size(), false);
    std::vector<int32_t> todo;
    const auto need = [&](Value v) {
      if (!kept_[idx(v)]) value_needed[idx(v)] = true;
    };
    for (size_t i = graph_.nodes().size(); i-- > 0;) {
      const auto& n = graph_.nodes()[i];
      if (n.block != block) continue;
      bool rerun = runs_backward_[i] && !n.saved.empty();
      if (runs_backward_[i]) {
        for (size_t k = 0; k < n.in.size(); ++k)
          if (n.op->backward_reads_in >> k & 1) need(n.in[k]);
        for (size_t k = 0; k < n.out.size(); ++k)
          if (n.op->backward_reads_out >> k & 1) need(n.out[k]);
      }
      for (const Value v : n.out) rerun = rerun || value_needed[idx(v)];
      if (!rerun) continue;
      todo.push_back(static_cast<int32_t>(i));
      for (const Value v : n.in) need(v);
    }
    std::ranges::reverse(todo);
    for (const int32_t id : todo) {
      const auto& n = node(id);
      PlanStep step{.kind = PlanStep::Kind::kRecompute, .node = id, .block = block};
      for (const Value v : n.in) step.in.push_back(touch(current(v)));
      for (const Value v : n.out) {
        const int32_t b = new_buffer(info(v).name + "'", info(v).spec);
        step.out.push_back(b);
        if (!kept_[idx(v)]) recomputed_[idx(v)] = b;
      }
      recomputed_saved_[static_cast<size_t>(id)] = new_saved(n, "'");
      step.saved = recomputed_saved_[static_cast<size_t>(id)];
      plan_.steps_.push_back(std::move(step));
    }
  }

  /// Where a value lives for the backward.
  int32_t current(Value v) const {
    return recomputed_[idx(v)] >= 0 ? recomputed_[idx(v)] : value_buffer_[idx(v)];
  }

  void plan_backward() {
    const bool recompute = options_.grad_checkpointing == GradCheckpointing::kBlock;
    kept_.assign(graph_.values().size(), true);
    if (recompute)
      for (size_t v = 0; v < kept_.size(); ++v) kept_[v] = kept({static_cast<int32_t>(v)});
    std::vector<bool> block_done(graph_.blocks().size(), false);
    std::vector<bool> param_written(graph_.params().size(), false);
    plan_.loss_grad_ = grad_buffer_[idx(loss_)] =
        new_buffer("d" + info(loss_).name, gradient_spec(loss_));

    for (size_t i = graph_.nodes().size(); i-- > 0;) {
      if (!runs_backward_[i]) continue;
      const auto id = static_cast<int32_t>(i);
      const auto& n = node(id);
      if (recomputes(n.block) && !block_done[static_cast<size_t>(n.block)]) {
        block_done[static_cast<size_t>(n.block)] = true;
        plan_recompute(n.block);
      }
      for (const Value v : n.out) {
        if (grad_buffer_[idx(v)] >= 0 || counts(v)) continue;
        // An output that the loss does not depend on: its gradient is zero.
        PlanStep zero{.kind = PlanStep::Kind::kZero, .node = id, .block = n.block};
        zero.out = {grad_buffer_[idx(v)] = new_buffer("d" + info(v).name, gradient_spec(v))};
        plan_.steps_.push_back(std::move(zero));
      }
      plan_.model_flops_ += n.backward_flops;
      pass_gradient(id);
      if (PlanStep step = backward_step(id, param_written); has_work(step))
        plan_.steps_.push_back(std::move(step));
    }
    mark_finished_blocks();
  }

  static bool has_work(const PlanStep& s) {
    const auto works = [](const std::vector<Accum>& modes) {
      return std::ranges::any_of(modes, [](Accum m) { return m != Accum::kSkip; });
    };
    return works(s.din_mode) || works(s.dparam_mode);
  }

  /// Inputs whose gradient is that of output 0 take over its buffer, as long as nobody adds to the
  /// one while the other is still to be read. Gradients are read last by the node that made the
  /// value, and added to by the nodes that use it; backward steps run in falling order of nodes.
  void pass_gradient(int32_t id) {
    const auto& n = node(id);
    const int32_t dout = grad_buffer_[idx(n.out[0])];
    if (n.op->passes_gradient == 0 || dout < 0 || dout == plan_.loss_grad_) return;
    std::vector<Value>& sharing = sharing_[dout];
    for (size_t k = 0; k < n.in.size(); ++k) {
      const Value v = n.in[k];
      if (!(n.op->passes_gradient >> k & 1) || !carries_[idx(v)] || grad_buffer_[idx(v)] >= 0 ||
          info(v).node < 0 || info(v).spec != info(n.out[0]).spec)
        continue;
      // Sums of sums: the buffer may already serve values whose makers are still to come.
      if (!std::ranges::all_of(sharing, [&](Value u) {
            return info(u).node >= id || (apart(u, v, id) && apart(v, u, id));
          }))
        continue;
      sharing.push_back(v);
      grad_buffer_[idx(v)] = dout;
      passed_.push_back({id, v});
    }
  }

  /// All users of u before node `id` come before the maker of v: they add to du after dv was read.
  bool apart(Value u, Value v, int32_t id) const {
    for (int32_t c = info(v).node; c < id; ++c)
      if (std::ranges::find(node(c).in, u) != node(c).in.end()) return false;
    return true;
  }

  bool passed(int32_t id, Value v) const {
    return std::ranges::any_of(passed_,
                               [&](const auto& p) { return p.first == id && p.second == v; });
  }

  PlanStep backward_step(int32_t id, std::vector<bool>& param_written) {
    const auto& n = node(id);
    PlanStep s{.kind = PlanStep::Kind::kBackward, .node = id, .block = n.block};
    for (size_t k = 0; k < n.in.size(); ++k)
      s.in.push_back(n.op->backward_reads_in >> k & 1 ? touch(current(n.in[k])) : -1);
    for (size_t k = 0; k < n.out.size(); ++k)
      s.out.push_back(n.op->backward_reads_out >> k & 1 ? touch(current(n.out[k])) : -1);
    const auto i = static_cast<size_t>(id);
    for (const int32_t b : recomputed_saved_[i].empty() ? saved_buffers_[i] : recomputed_saved_[i])
      s.saved.push_back(touch(b));
    for (const Value v : n.out)
      s.dout.push_back(grad_buffer_[idx(v)] >= 0 ? touch(grad_buffer_[idx(v)]) : -1);
    for (const Value v : n.in) {
      if (!carries_[idx(v)] || passed(id, v)) {
        s.din.push_back(-1);
        s.din_mode.push_back(Accum::kSkip);
      } else if (grad_buffer_[idx(v)] >= 0) {
        s.din.push_back(touch(grad_buffer_[idx(v)]));
        s.din_mode.push_back(Accum::kAdd);
      } else {
        grad_buffer_[idx(v)] = new_buffer("d" + info(v).name, gradient_spec(v));
        s.din.push_back(grad_buffer_[idx(v)]);
        s.din_mode.push_back(Accum::kWrite);
      }
    }
    for (const ParamId p : n.params) {
      const auto k = static_cast<size_t>(p);
      s.dparam_mode.push_back(!trains(p)         ? Accum::kSkip
                              : param_written[k] ? Accum::kAdd
                                                 : Accum::kWrite);
      param_written[k] = true;
    }
    return s;
  }

  /// A block's parameter gradients are complete after the last backward step that writes one.
  void mark_finished_blocks() {
    std::vector<int32_t> last(graph_.params().size(), -1), block(graph_.params().size(), -1);
    for (size_t s = plan_.forward_steps_; s < plan_.steps_.size(); ++s) {
      if (plan_.steps_[s].kind != PlanStep::Kind::kBackward) continue;
      for (const ParamId p : node(plan_.steps_[s].node).params) {
        last[static_cast<size_t>(p)] = static_cast<int32_t>(s);
        // A parameter used by two blocks belongs to none.
        block[static_cast<size_t>(p)] = plan_.steps_[s].block;
      }
    }
    for (size_t b = 0; b < graph_.blocks().size(); ++b) {
      int32_t end = -1;
      for (size_t p = 0; p < last.size(); ++p)
        if (block[p] == static_cast<int32_t>(b)) end = std::max(end, last[p]);
      if (end >= 0) plan_.steps_[static_cast<size_t>(end)].finishes_block = static_cast<int32_t>(b);
    }
  }

  void keep_named_values() {
    const auto end = static_cast<int32_t>(plan_.steps_.size());
    const auto keep = [&](int32_t b) {
      plan_.buffers_[static_cast<size_t>(b)].first = 0;
      plan_.buffers_[static_cast<size_t>(b)].last = end;
    };
    for (const auto& n : graph_.inputs()) {
      keep(value_buffer_[idx(n.value)]);
      plan_.inputs_.push_back({n.name, value_buffer_[idx(n.value)]});
      const int32_t g = grad_buffer_[idx(n.value)];
      if (g < 0) continue;
      plan_.buffers_[static_cast<size_t>(g)].last = end;
      plan_.input_grads_.push_back({n.name, g});
    }
    for (const auto& n : graph_.outputs()) {
      plan_.buffers_[static_cast<size_t>(value_buffer_[idx(n.value)])].last = end;
      plan_.outputs_.push_back({n.name, value_buffer_[idx(n.value)]});
    }
    if (plan_.loss_grad_ >= 0) keep(plan_.loss_grad_);
  }

  /// Places buffers, largest first, at the lowest offset that is free during their lifetime.
  void pack() {
    if (options_.linger_steps > 0)
      for (size_t b = 0; b < plan_.buffers_.size(); ++b)
        plan_.buffers_[b].last = std::min(plan_.buffers_[b].last + options_.linger_steps,
                                          std::max(now(), plan_.buffers_[b].last));
    std::vector<size_t> order(plan_.buffers_.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::ranges::stable_sort(order, [&](size_t a, size_t b) {
      return plan_.buffers_[a].spec.bytes() > plan_.buffers_[b].spec.bytes();
    });
    std::vector<size_t> by_offset;  // placed buffers, ascending offset
    for (const size_t o : order) {
      auto& buf = plan_.buffers_[o];
      const size_t bytes = align_up(buf.spec.bytes());
      size_t at = 0;
      for (const size_t p : by_offset) {
        const auto& other = plan_.buffers_[p];
        if (other.last < buf.first || other.first > buf.last) continue;
        if (other.offset >= at + bytes) break;  // the gap before it is large enough
        at = std::max(at, other.offset + align_up(other.spec.bytes()));
      }
      buf.offset = at;
      plan_.arena_bytes_ = std::max(plan_.arena_bytes_, at + bytes);
      by_offset.insert(std::ranges::upper_bound(by_offset, at, {},
                                                [&](size_t p) { return plan_.buffers_[p].offset; }),
                       o);
    }
  }

  const Graph& graph_;
  const PlanOptions& options_;
  Plan plan_;
  Value loss_;
  std::vector<int32_t> value_buffer_, recomputed_, grad_buffer_;        // by value
  std::vector<std::vector<int32_t>> saved_buffers_, recomputed_saved_;  // by node
  std::vector<bool> carries_;                                           // by value: has a gradient
  std::vector<bool> kept_;                         // by value: survives the forward
  std::map<int32_t, std::vector<Value>> sharing_;  // by buffer: values whose gradients passed to it
  std::vector<std::pair<int32_t, Value>> passed_;  // by node and input: shares dout's buffer
  std::vector<bool> runs_backward_;                // by node
};

Plan Plan::build(const Graph& graph, const PlanOptions& options) {
  return Planner(graph, options).run();
}

}  // namespace rwkv
