#pragma once
/// Parameters, gradients and moments of one of several ranks, and what the ranks exchange.

#include <array>
#include <functional>
#include <string>
#include <vector>

#include "kernels/core/arena.h"
#include "kernels/core/memory.h"
#include "kernels/core/stream_event.h"
#include "kernels/ops/exchange.h"
#include "model/graph/plan.h"
#include "model/params.h"
#include "trainer/comm/comm.h"
#include "trainer/optimizer.h"
#include "trainer/shard_layout.h"
#include "trainer/value_pattern.h"

namespace rwkv {

/// What is divided among the ranks.
enum class ZeroStage : uint8_t {
  kPlain,      ///< nothing: every rank updates everything, with gathered gradients
  kOptimizer,  ///< ZeRO-1: moments and f32 masters; updated parameters are gathered
  kGradients,  ///< ZeRO-2: gradients as well
};

struct ShardOptions {
  ZeroStage zero = ZeroStage::kOptimizer;
  DType exchange = DType::kF32;  ///< type in which gradients travel and are added: f32 or bf16
  DType activations = DType::kF32;
  bool overlap = true;       ///< exchanges run beside the kernels (CUDA), not after them
  bool accumulates = false;  ///< several micro-batches: ZeRO-2 keeps whole gradients meanwhile
  int64_t parcel_elements = kChosenParcels;
  bool copy_engines = false;   ///< of the communicator, which then uses them
  bool adds_on_host = false;   ///< ranks of the CPU, without copy engines
  int32_t early_parcels = -1;  ///< CUDA, for tests: sent by update(); -1: by the number of ranks
  AdamWOptions optimizer;
};

/// What a rank holds of the parameters and their moments.
enum class StatePart : uint8_t { kValues, kM, kV };
inline constexpr std::array kStateParts = {StatePart::kValues, StatePart::kM, StatePart::kV};

/// One consumer of memory.
struct MemoryItem {
  std::string name;
  size_t bytes;
};

/// The counterpart of DeviceParams for several ranks, on either device.
///
/// A step: forward and backward with hooks(), which sum each bucket's gradients over the ranks
/// (reduce-scatter: every rank gets its shard) as soon as they are complete; update(), in which
/// every rank updates its shard; and the next forward gathers the parameters of each bucket ahead
/// of their use. On CUDA the exchanges run on the communicator's stream beside the kernels, and all
/// of it can be recorded into launch graphs. On the CPU each is done when its call returns, and
/// parameters are gathered by update().
///
/// All stages compute the same bits: shards, their sums, the order of the norm's partial sums
/// (shard by shard, in the order of ranks) and the update's arithmetic are the same.
class ShardedParams {
 public:
  /// `trained` as for AdamW. `ctx`, `comm` and `params` must outlive this. Throws DeviceError.
  ShardedParams(Context& ctx, Communicator& comm, const ParamRegistry& params,
                const ShardOptions& options, const std::vector<bool>& trained);

  std::span<const TensorView> values() const { return views_; }
  std::span<const TensorView> grads() const { return grad_views_; }
  const ShardLayout& layout() const { return layout_; }

  /// After the plan was bound to values() and grads(): tells it of the groups.
  void attach(Plan& plan);
  /// From now on the timeline (null: none) is told of exchanges and of the update.
  void watch(Timeline* timeline) { timeline_ = timeline; }
  /// Before a step's first forward: on CUDA queues the gathering of what update() changed and did
  /// not send itself. May be recorded.
  void begin_step();
  /// Before that, never recorded: the context waits for what update() is still sending.
  void await_update();
  /// For the forward and the backward of the step's first, last or any micro-batch: the first waits
  /// for parameters that are being gathered, the last exchanges gradients.
  const PlanHooks& hooks(bool first, bool last) const {
    return hooks_[first ? 1 : 0][last ? 1 : 0];
  }
  /// After each backward, `last` being the step's last: the context waits for all exchanges.
  void end_backward(bool last);

  /// Sum of the step's losses, on this rank: kWrite for the first micro-batch, then kAdd.
  void add_loss(const TensorView& loss, Accum mode);
  /// Norm, clipping and update number `update` (from 1); nothing is updated if the norm or a loss
  /// is not finite. `stop` reaches the outcome of all ranks.
  void update(double lr, int64_t update, bool stop);
  /// Of the last update; waits for it. loss_sum is over all ranks.
  RankOutcome read_outcome();

  /// Before collectives are recorded: runs each kind once. Gradients are lost. A collective.
  void warm_up();
  /// Gathers the parameters, if that is still to be done, outside of a step. A collective.
  void gather();
  /// Collectives: from rank 0's host copies (elsewhere they are not looked at) to all ranks, and
  /// from all ranks to rank 0's.
  void upload(const ParamStore& values, const ParamStore& m, const ParamStore& v);
  void download(ParamStore& values, ParamStore& m, ParamStore& v);
  /// A collective: every rank brings the parameters that it has computed (`mine`, by ParamId; every
  /// one is of one rank), moments become zero.
  void upload_initial(const ParamStore& values, const std::vector<bool>& mine);
  /// A collective: `read` fills this rank's shards (ShardLayout::parts; padding is zero) of one
  /// part after the other. It may throw if it does so on all ranks.
  using ReadShards = std::function<void(StatePart, std::span<float>)>;
  void upload_shards(const ReadShards& read);
  /// The reverse; no collective. Takes the memory of one part on the host.
  using WriteShards = std::function<void(StatePart, std::span<const float>)>;
  void download_shards(const WriteShards& write);
  void fill(const ValuePattern& pattern);  ///< as DeviceParams::fill; no collective

  /// What the constructor allocates on the device.
  static std::vector<MemoryItem> memory(const ShardLayout& layout, const ShardOptions& options);

 private:
  using Segment = ShardLayout::Segment;
  bool cuda() const { return ctx_.device() == Device::kCuda; }
  bool sharded() const { return options_.zero != ZeroStage::kPlain; }
  bool half() const { return options_.activations == DType::kBF16; }
  /// ZeRO-2 without accumulation: two parcels' gradients in turns, and the sums of this rank.
  bool rotates() const { return options_.zero == ZeroStage::kGradients && !options_.accumulates; }
  static bool rotates(const ShardOptions& o) {
    return o.zero == ZeroStage::kGradients && !o.accumulates;
  }
  static float* floats(const Arena& arena) { return reinterpret_cast<float*>(arena.data()); }
  int64_t offset_in_parcel(const Segment& s) const;
  float* grad_at(const Segment& s) const;        ///< of a whole segment
  float* grad_shard_at(const Segment& s) const;  ///< where the sums of this rank's part go
  float* staging_at(const Segment& s) const { return grad_at(s); }
  bool copy_engines() const { return options_.copy_engines; }
  /// What ranks of the CPU add at a time: a segment, of initial values as f32.
  static size_t reduction_bytes(const ShardLayout& layout);
  Arena allocate_for_exchanges(size_t bytes, const char* purpose);
  TensorView device_view(void* p, int64_t n, DType type = DType::kF32) const;
  void on_comm(const std::function<void()>& work);
  /// Marks for the timeline, if there is one; bytes are elements times the size of their type.
  void begin_exchange(TimelineKind kind, std::string_view name, double bytes);
  void end_exchange();
  void leave_lanes() {
    if (timeline_ != nullptr) timeline_->leave_lanes();
  }
  void enter(std::string_view name) {
    if (timeline_ != nullptr) timeline_->enter(0, ctx_.stream(), TimelineKind::kOptimizer, name);
  }
  double gathered_bytes(int32_t group) const;
  /// The gradients of a group are complete; those of its parcel travel when all of them are.
  void complete_group(int32_t group);
  void exchange_parcel(int32_t parcel);
  void exchange_all();
  void reduce(std::span<const Segment> segments);
  void gather_group(int32_t group);
  void gather_parcels(int32_t begin, int32_t end);
  void update_and_send(const AdamWBuffers& buffers, const AdamWStep& step);
  void make_views(const ParamRegistry& params);
  /// Everybody's memory of one part: flat, or this rank's shards.
  Arena& arena_of(StatePart part);
  void stage_params(const Segment& s, const ParamStore& host, const std::vector<bool>* only);
  void broadcast_staged(const Segment& s);
  /// One part: stage() brings a whole segment to staging_at() on every rank.
  void install(StatePart part, const std::function<void(const Segment&)>& stage);
  void collect(float* flat_or_shards, ParamStore& host);
  void update_cpu(double lr, int64_t update, bool stop);
  void update_cuda(double lr, int64_t update, bool stop);

  Context& ctx_;
  Communicator& comm_;
  const ParamRegistry& params_;
  ShardOptions options_;
  ShardLayout layout_;
  Arena full_;             ///< f32 parameters that kernels read, flat; plain: the masters
  Arena copies_;           ///< bf16 matrices, flat
  Arena vectors_;          ///< sharded with bf16: f32 vectors that kernels read
  Arena masters_, m_, v_;  ///< flat, or this rank's shards; masters_ is empty if full_ holds them
  Arena grads_, grad_shards_, half_grads_;
  Arena scratch_;  ///< copy engines: all ranks' gradients of a parcel, for this rank's part of it
  Arena small_;
  std::vector<TensorView> views_, grad_views_;
  std::vector<AdamWPiece> norm_pieces_, update_pieces_;  ///< CPU
  std::vector<double> partial_;
  TensorView device_norm_pieces_, device_update_pieces_, records_, outcome_;
  int64_t norm_piece_count_ = 0, update_piece_count_ = 0;
  /// CUDA, sharded: parcels before this one are gathered while update() still works on the others;
  /// the rest at the beginning of the next step, beside its forward.
  int32_t early_parcels_ = 0;
  std::vector<int32_t> expected_,
      missing_;  ///< by parcel: groups that get gradients; still to come
  std::vector<ShardLayout::UpdateBatch> update_batches_;  ///< CUDA, sharded
  HostBuffer read_, stop_flag_;
  RankRecord record_;  ///< CPU
  std::vector<RankRecord> cpu_records_;
  RankOutcome cpu_outcome_;
  std::array<std::array<PlanHooks, 2>, 2> hooks_;
  std::vector<StreamEvent> gathered_, reduced_;  ///< by parcel
  StreamEvent to_comm_, from_comm_, lane_, sent_;
  Timeline* timeline_ = nullptr;
  bool stale_ = false;    ///< CUDA: parameters were updated and not all gathered yet
  bool sending_ = false;  ///< CUDA: update() sent some, and the context did not wait for them yet
};

}  // namespace rwkv
