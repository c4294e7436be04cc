#pragma once
/// From a recorded graph to a flat list of kernel calls over one arena.
///
/// The planner derives the backward order, sets write or add on every gradient, inserts block
/// recomputation, drops recomputed results that nobody reads, computes the lifetime of every
/// buffer and packs all of them into one arena. The executor walks the list and allocates nothing.

#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/core/arena.h"
#include "kernels/core/context.h"
#include "kernels/core/stream_event.h"
#include "kernels/core/timeline.h"
#include "model/graph/graph.h"
#include "model/graph/lanes.h"

namespace rwkv {

enum class GradCheckpointing : uint8_t {
  kNone,   ///< every forward result that a backward reads stays in memory
  kBlock,  ///< inside a block only its inputs and outputs stay; the rest is computed again
};

struct PlanOptions {
  bool training = true;  ///< false: forward only
  GradCheckpointing grad_checkpointing = GradCheckpointing::kNone;
  /// With kBlock: only the first so many blocks; 0: all. The first, because by the time that they
  /// are computed again the others' memory is free.
  int64_t recompute_blocks = 0;
  std::string loss = "loss";  ///< name of the scalar output that is differentiated
  std::vector<bool> frozen;   ///< by ParamId; empty: every parameter is trained
  /// Memory of buffers that were read for the last time is not reused for this many steps, so that
  /// steps on several lanes do not wait for each other's memory.
  int32_t linger_steps = 0;
};

/// Called while the steps of a forward or backward are queued; see Plan::use_groups.
struct PlanHooks {
  /// Before the first step of a forward that reads parameters of the group.
  std::function<void(int32_t group)> before_use;
  /// After the last step of a backward that adds to a gradient of the group.
  std::function<void(int32_t group)> grads_ready;
};

/// One buffer of the activation arena.
struct PlanBuffer {
  std::string label;
  TensorSpec spec;
  int32_t first = 0, last = 0;  ///< steps during which it must not be overwritten
  size_t offset = 0;
};

/// What a step does, with buffers by index (-1: none).
struct PlanStep {
  enum class Kind : uint8_t { kForward, kRecompute, kZero, kBackward };
  Kind kind = Kind::kForward;
  int32_t node = -1;
  int32_t block = -1;
  std::vector<int32_t> in, out, saved, dout, din;
  std::vector<Accum> din_mode;
  std::vector<Accum> dparam_mode;  ///< of the first micro-batch; later ones add
  int32_t finishes_block = -1;     ///< all parameter gradients of this block are complete after it
};

class Plan {
 public:
  /// Sizes everything; allocates nothing. The graph must outlive the plan.
  /// Throws ConfigError if the loss is missing or no parameter reaches it.
  static Plan build(const Graph& graph, const PlanOptions& options);

  /// Allocates the arena, reserves the context's workspace, resolves kernels and addresses.
  /// values and grads are indexed by ParamId and must stay where they are; grads may be empty when
  /// not training. Throws DeviceError if memory or a kernel is missing.
  void bind(Context& ctx, std::span<const TensorView> values, std::span<const TensorView> grads);

  /// The tensor of a graph input or output. Inputs keep their content between runs. Throws
  /// ConfigError for unknown names, InternalError before bind().
  TensorView input(std::string_view name) const;
  TensorView output(std::string_view name) const;
  bool has_output(std::string_view name) const;
  /// The gradient of a differentiable input after backward().
  TensorView input_grad(std::string_view name) const;

  void forward(Context& ctx, const PlanHooks* hooks = nullptr);
  /// Gradients of loss * scale. first_micro_batch: parameter gradients are overwritten, otherwise
  /// added to. grads_ready(block) is called as soon as all parameter gradients of that block are
  /// complete; block -1 stands for parameters outside of all blocks and comes last.
  void backward(Context& ctx, float scale, bool first_micro_batch,
                const std::function<void(int32_t block)>& grads_ready = {});

  /// The same, told of groups of parameters as they are complete.
  void backward(Context& ctx, float scale, bool first_micro_batch, const PlanHooks& hooks);

  /// Puts every parameter into a group (by ParamId), for PlanHooks: this is where an exchange of
  /// gradients and parameters between processes starts and ends without the model knowing of it.
  /// Hooks are called in the order of steps. Whatever a hook queues on other streams waits for all
  /// lanes of the context, and the other way round. Call after bind().
  void use_groups(const std::vector<int32_t>& group_of_param);
  /// By group, after use_groups: the first and the last step that writes one of its gradients
  /// (first > last: none does).
  struct GradientSpan {
    size_t first = 1, last = 0;
  };
  std::span<const GradientSpan> gradient_spans() const { return gradient_spans_; }

  /// CUDA: from now on steps that do not depend on each other run on up to `count` lanes, which
  /// ctx.open_lanes() must have opened, except where results are watched (tracer, check_finite,
  /// grads_ready). Results stay bit-equal. Call after bind().
  void use_lanes(int count);

  /// From now on the timeline (null: none) is told of every block's work. Call after bind().
  void watch(Timeline* timeline) { timeline_ = timeline; }

  /// Parameters that the loss depends on (training plans). The others' gradients stay untouched.
  const std::vector<bool>& reached_params() const { return reached_params_; }

  size_t activation_bytes() const { return arena_bytes_; }  ///< the packed arena
  size_t unpacked_bytes() const;                            ///< sum of all buffers
  size_t workspace_bytes() const { return workspace_bytes_; }
  /// Floating-point operations of one forward and, when training, one backward (recomputation not
  /// counted): what model-flops utilisation is measured against.
  double model_flops() const { return model_flops_; }
  std::span<const PlanStep> steps() const { return steps_; }
  std::span<const PlanBuffer> buffers() const { return buffers_; }

  /// Every step with its buffers, sizes and modes, then the totals.
  std::string dump() const;

  /// After every step, throws NonFiniteError naming the first output or gradient that is NaN or
  /// infinite. Slow; for debugging.
  void check_finite(bool on) { check_finite_ = on; }

 private:
  friend class Planner;
  /// A step with everything resolved. The spans in `call` point into the vectors beside it.
  struct ExecStep {
    PlanStep::Kind kind;
    const Op* op;
    const Graph::Node* node;
    KernelFn fn = nullptr;
    std::string trace_name;
    std::vector<TensorView> in, out, saved, dout, din, param, dparam;
    std::vector<Accum> din_mode, first_mode, later_mode;
    int32_t finishes_block;
    std::vector<int32_t> uses, completes;  ///< groups: first use in a forward, last gradient
    OpCall call;
  };
  struct NamedBuffer {
    std::string name;
    int32_t buffer;
  };
  Plan() = default;
  TensorView view(int32_t buffer) const;
  void run(Context& ctx, size_t begin, size_t end, bool first_micro_batch,
           const std::function<void(int32_t)>* grads_ready, const PlanHooks* hooks);
  void set_loss_scale(Context& ctx, float scale);
  void check_step(Context& ctx, const ExecStep& step) const;

  const Graph* graph_ = nullptr;
  std::vector<PlanBuffer> buffers_;
  std::vector<PlanStep> steps_;
  size_t forward_steps_ = 0;
  std::vector<NamedBuffer> inputs_, outputs_, input_grads_;
  int32_t loss_grad_ = -1;
  std::vector<bool> reached_params_;
  size_t arena_bytes_ = 0, workspace_bytes_ = 0;
  double model_flops_ = 0;
  bool training_ = false, check_finite_ = false;
  std::optional<float> loss_scale_;  ///< what the loss gradient's buffer holds

  struct Lanes {
    int count = 1;
    std::vector<LaneSlot> slots;  ///< by step, indices within the run
  };
  Lanes lane_schedule(size_t begin, size_t end, int count) const;
  void run_lanes(Context& ctx, size_t begin, const Lanes& lanes, bool first_micro_batch,
                 const PlanHooks* hooks);
  void run_step(Context& ctx, int lane, ExecStep& e, bool first_micro_batch);
  static TimelineKind timeline_kind(const ExecStep& e);
  std::string_view part_name(const ExecStep& e) const;  ///< the block, or the op outside of all
  void leave_lanes() const {
    if (timeline_ != nullptr) timeline_->leave_lanes();
  }
  static void before_step(const ExecStep& e, const PlanHooks* hooks);
  static void after_step(const ExecStep& e, const PlanHooks* hooks);

  Arena arena_;
  std::vector<ExecStep> exec_;
  size_t forward_exec_ = 0;  ///< of exec_, as forward_steps_ is of steps_
  Lanes forward_lanes_, backward_lanes_;
  std::vector<GradientSpan> gradient_spans_;
  std::vector<StreamEvent> lane_events_;  ///< by exec_ step
  StreamEvent fork_, join_;
  Timeline* timeline_ = nullptr;
};

}  // namespace rwkv
