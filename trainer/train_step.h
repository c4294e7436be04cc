#pragma once
/// One training step without its surroundings: model, plan, parameters, gradients, optimizer.

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kernels/core/context.h"
#include "kernels/core/launch_graph.h"
#include "kernels/core/memory.h"
#include "model/graph/plan.h"
#include "model/params.h"
#include "model/rwkv.h"
#include "trainer/device_params.h"
#include "trainer/optimizer.h"
#include "trainer/sharded_params.h"

namespace rwkv {

struct TrainStepOptions {
  int64_t batch = 1, tokens = 1;  ///< of one micro-batch
  int64_t micro_batches = 1;
  GradCheckpointing grad_checkpointing = GradCheckpointing::kNone;
  int64_t recompute_blocks = 0;  ///< kBlock: the first so many blocks, 0: all
  bool l2wrap = true;
  int64_t loss_chunk_tokens = 0;
  std::string wkv = "auto";
  bool eval = false;  ///< also plan a forward for validation losses
  AdamWOptions optimizer;
  Device device = Device::kCpu;
  DType dtype = DType::kF32;  ///< of activations and matrices; bf16 on CUDA only
  bool measure_gemms = true;  ///< CUDA: prepare() times cuBLASLt's algorithms for new shapes
  bool launch_graphs = true;  ///< CUDA: forward and backward are recorded once and replayed
  int lanes =
      0;  ///< CUDA: independent steps run side by side on so many streams; 0: chosen by size
  /// The ranks that share the work, or null; must outlive the step. `batch` and `micro_batches` are
  /// those of one rank, gradients and losses are means over all of them.
  Communicator* comm = nullptr;
  int planned_ranks = 1;  ///< without comm: what sizes are planned for; allocate() wants 1
  ZeroStage zero = ZeroStage::kOptimizer;    ///< what several ranks divide among them
  bool overlap = true;                       ///< exchanges beside the kernels, not after them
  DType exchange = DType::kF32;              ///< type of gradients on their way between ranks
  int64_t parcel_elements = kChosenParcels;  ///< smaller neighbouring buckets travel together
  bool copy_engines = true;                  ///< NCCL uses them where it can
  int32_t early_parcels = -1;                ///< see ShardOptions
  /// Several ranks: rank 0 collects parameters and moments on the host (checkpoints of one file,
  /// samples), so that sizes count them.
  bool collects = true;
  /// False, for benchmarks of large models on CUDA or several ranks: parameters and moments are on
  /// the devices only; fill() instead of upload() gives them values.
  bool host_copies = true;
};

/// What CUDA takes on the device for the code of kernels and of cuBLASLt, graphs, and rounding of
/// allocations, with room to spare.
inline constexpr size_t kDeviceOverheadBytes = size_t{256} << 20;
/// What NCCL takes of each GPU for a communicator and its buffers: docs/multi-gpu.md has what was
/// measured.
inline constexpr size_t kNcclBytes = size_t{512} << 20;

/// Plans at construction, which needs next to no memory; allocate() makes it ready to run. After
/// the first step nothing is allocated any more. One thread drives it.
class TrainStep {
 public:
  /// Throws ConfigError or ShapeError if model and options do not fit together.
  TrainStep(const ModelConfig& config, const TrainStepOptions& options);

  const Model& model() const { return *model_; }
  const Graph& graph() const { return *graph_; }
  const Plan& plan() const { return plan_; }
  const TrainStepOptions& options() const { return options_; }
  /// As they were given: options() has what was chosen by size.
  const TrainStepOptions& given_options() const { return given_; }
  const std::string& wkv_name() const { return wkv_name_; }
  /// What allocate() will take on the device, largest first. (On CUDA the host holds copies of the
  /// parameters and moments besides.)
  std::vector<MemoryItem> memory() const;
  /// CUDA: what the host holds besides, or will for a while, on this rank (planned ranks: on rank
  /// 0, initial values as on the rank that has most of them), largest first.
  std::vector<MemoryItem> host_memory() const;
  /// Of one optimiser step (recomputation not counted).
  double flops_per_step() const;

  /// Throws DeviceError if the memory cannot be had.
  void allocate();
  /// CUDA: runs forward and backward once on whatever parameters there are, to choose the
  /// algorithms of matrix products (those imported into context() before are kept), and records the
  /// launches. The first step does it if nobody did. Nothing to do on the CPU.
  void prepare();
  /// CUDA: the host copies (values(), optimizer().m() and v()) to the device, after they were set,
  /// and back, before they are read. Nothing to do on the CPU. With several ranks, on either
  /// device: from rank 0's host copies to all ranks and back; the others' are empty. All ranks
  /// call.
  void upload();
  void download();
  /// Every parameter of every rank gets `values`, repeated.
  void fill(std::span<const float> values);
  /// Initial values to the device, instead of upload(); several ranks compute a share each. The
  /// host copies of several ranks do not get them. All ranks call.
  void initialize(const InitOptions& options);
  /// The device's memory of several ranks, else null.
  ShardedParams* shards() { return shards_.get(); }
  Context& context() { return *ctx_; }
  /// From the next step on every finish() adds its step's intervals to the timeline (of context();
  /// it must outlive the watching); null: no more. CUDA: records launch graphs anew. All ranks
  /// call. With more than two micro-batches steps that are watched run without launch graphs.
  void watch(Timeline* timeline);
  ParamStore& values() { return values_; }
  ParamStore& grads() { return grads_; }
  AdamW& optimizer() { return *optimizer_; }

  /// Where the next micro-batch goes: (B, T) token ids, and the ids that follow each of them. Ask
  /// again after every accumulate().
  std::span<int32_t> tokens() const { return tokens_; }
  std::span<int32_t> targets() const { return targets_; }

  struct Result {
    double loss = 0;       ///< mean over the step's tokens, before the update
    double grad_norm = 0;  ///< before clipping
    bool finite = true;    ///< false: the update was left out
    bool stop = false;     ///< a rank was asked to stop
  };
  /// Forward and backward of micro-batch i of the step; gradients are averaged over the step.
  void accumulate(int64_t i);
  /// Norm, clipping and update with learning rate lr, if loss and gradients are finite.
  /// `stop` reaches the result on all ranks.
  Result finish(double lr, bool stop = false);
  /// Several ranks: makes all parameters present before evaluate(). All ranks call.
  void gather();
  /// Mean loss of the batch in eval_tokens, eval_targets; gradients are not touched.
  double evaluate();
  std::span<int32_t> eval_tokens() const { return eval_tokens_; }
  std::span<int32_t> eval_targets() const { return eval_targets_; }

  /// Whether copy engines move gradients. Without ranks yet: as if they could, on one machine.
  bool uses_copy_engines() const {
    return options_.copy_engines && (options_.comm == nullptr ? options_.device == Device::kCuda
                                                              : options_.comm->uses_copy_engines());
  }

 private:
  Plan build_plan(bool training) const;
  size_t initial_bytes() const;  ///< of the host, while this rank makes its share
  void bind_ids();
  void forward_backward(bool first, bool last);
  void record_graphs();
  Result finish_step(double lr, bool stop);
  int ranks() const {
    return options_.comm == nullptr ? options_.planned_ranks : options_.comm->size();
  }
  bool leads() const { return options_.comm == nullptr || options_.comm->rank() == 0; }
  ShardOptions shard_options() const;
  bool keeps_on_host() const {
    return options_.host_copies || (options_.device == Device::kCpu && ranks() == 1);
  }
  void replay(const LaunchGraph& graph);
  void send_ids(Plan& plan, const TensorView& host);
  double read_loss(Plan& plan);
  /// Tokens, then targets, of one micro-batch in host_ids_; the validation's come last.
  TensorView host_slot(int64_t i) const;

  TrainStepOptions given_, options_;
  std::unique_ptr<Model> model_;
  std::string wkv_name_;
  std::unique_ptr<Graph> graph_;
  Plan plan_;
  std::optional<Plan> eval_plan_;
  std::unique_ptr<Context> ctx_;
  ParamStore values_, grads_;
  std::unique_ptr<AdamW> optimizer_;
  std::unique_ptr<DeviceParams> device_;   ///< CUDA, one rank
  std::unique_ptr<ShardedParams> shards_;  ///< several ranks
  ParamRegistry nothing_;                  ///< what ranks other than 0 keep on the host
  HostBuffer host_ids_;                    ///< CUDA only: a slot for every micro-batch
  LaunchGraph first_graph_, later_graph_, last_graph_, eval_graph_;  ///< CUDA only
  size_t recorded_workspace_ = 0;  ///< the graphs' addresses hold while it has this size
  bool prepared_ = false, recorded_ = false;
  std::span<int32_t> tokens_, targets_, eval_tokens_, eval_targets_;
  double loss_sum_ = 0;  ///< CPU only
  Timeline* timeline_ = nullptr;
};

}  // namespace rwkv
