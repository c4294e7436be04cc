#include "trainer/sharded_params.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/core/bf16.h"
#include "kernels/core/error.h"
#include "kernels/core/parallel.h"

namespace rwkv {
namespace {

TensorSpec flat_spec(int64_t n, DType type = DType::kF32) {
  return TensorSpec({n}, type);
}

size_t f32_bytes(int64_t n) {
  return static_cast<size_t>(n) * sizeof(float);
}

}  // namespace

std::vector<MemoryItem> ShardedParams::memory(const ShardLayout& layout, const ShardOptions& o) {
  const bool sharded = o.zero != ZeroStage::kPlain, half = o.activations == DType::kBF16;
  const int64_t state = sharded ? layout.shard_elements() : layout.elements();
  std::vector<MemoryItem> items;
  const auto add = [&](const char* name, size_t bytes) {
    if (bytes > 0) items.push_back({name, bytes});
  };
  const bool separate = sharded || half;  // masters are not what kernels read
  add("parameters", separate ? 0 : f32_bytes(layout.elements()));
  add("parameters that kernels read", !separate ? 0
                                      : half
                                          ? static_cast<size_t>(layout.elements()) * sizeof(BF16) +
                                                (sharded ? f32_bytes(layout.vector_elements()) : 0)
                                          : f32_bytes(layout.elements()));
  add(sharded ? "f32 parameters of this rank" : "f32 parameters", separate ? f32_bytes(state) : 0);
  add(sharded ? "optimizer moments of this rank" : "optimizer moments", 2 * f32_bytes(state));
  add(rotates(o) ? "gradients of two parcels" : "gradients",
      f32_bytes(rotates(o) ? 2 * layout.largest_parcel() : layout.elements()));
  add("gradients of this rank", rotates(o) ? f32_bytes(layout.shard_elements()) : 0);
  add("bf16 gradients on their way",
      o.exchange == DType::kBF16 ? static_cast<size_t>(layout.largest_parcel()) * 2 : 0);
  add("gradients from all ranks",
      o.copy_engines   ? static_cast<size_t>(layout.largest_parcel()) * dtype_bytes(o.exchange)
      : o.adds_on_host ? reduction_bytes(layout)
                       : 0);
  return items;
}

size_t ShardedParams::reduction_bytes(const ShardLayout& layout) {
  return align_up(f32_bytes(layout.largest_segment()));
}

Arena ShardedParams::allocate_for_exchanges(size_t bytes, const char* purpose) {
  if (copy_engines()) return comm_.allocate(bytes, purpose);
  return Arena(ctx_.device(), bytes, purpose);
}

ShardedParams::ShardedParams(Context& ctx, Communicator& comm, const ParamRegistry& params,
                             const ShardOptions& options, const std::vector<bool>& trained)
    : ctx_(ctx),
      comm_(comm),
      params_(params),
      options_(options),
      layout_(params, comm.size(), options.parcel_elements) {
  RWKV_ASSERT(comm.device() == ctx.device(), "ranks of another device");
  options_.copy_engines = options.copy_engines && comm.uses_copy_engines();
  const Device device = ctx.device();
  const int64_t all = layout_.elements();
  const int64_t state = sharded() ? layout_.shard_elements() : all;
  if (half())
    copies_ = allocate_for_exchanges(static_cast<size_t>(all) * sizeof(BF16),
                                     "bf16 copies of the matrices");
  else
    full_ = allocate_for_exchanges(f32_bytes(all), "parameters");
  if (half() && sharded())
    vectors_ = Arena(device, f32_bytes(layout_.vector_elements()), "vectors");
  if (!half() && sharded())
    masters_ = allocate_for_exchanges(f32_bytes(state), "f32 parameters");  // are sent themselves
  else if (half())
    masters_ = Arena(device, f32_bytes(state), "f32 parameters");
  m_ = Arena(device, f32_bytes(state), "first moments");
  v_ = Arena(device, f32_bytes(state), "second moments");
  grads_ = allocate_for_exchanges(f32_bytes(rotates() ? 2 * layout_.largest_parcel() : all),
                                  "gradients");
  if (rotates()) grad_shards_ = Arena(device, f32_bytes(state), "gradients of this rank");
  const auto parcel = static_cast<size_t>(layout_.largest_parcel());
  if (options.exchange == DType::kBF16)
    half_grads_ = allocate_for_exchanges(parcel * sizeof(BF16), "bf16 gradients");
  if (copy_engines())
    scratch_ =
        allocate_for_exchanges(parcel * dtype_bytes(options.exchange), "gradients from all ranks");
  else if (!cuda())
    comm_.reserve_reductions(reduction_bytes(layout_));
  make_views(params);

  norm_pieces_ = layout_.pieces(comm.rank(), options.optimizer, trained, sharded());
  if (sharded()) {
    update_pieces_ = norm_pieces_;
  } else {
    for (int r = 0; r < comm.size(); ++r) {
      const auto more = layout_.pieces(r, options.optimizer, trained, false);
      update_pieces_.insert(update_pieces_.end(), more.begin(), more.end());
    }
  }
  if (rotates())  // the norm looks at the shards only
    for (AdamWPiece& p : norm_pieces_) p = {p.begin + p.shift, p.end + p.shift, 1, 0, 0};
  partial_.assign(norm_pieces_.size(), 0.0);
  cpu_records_.resize(static_cast<size_t>(comm.size()));
  norm_piece_count_ = static_cast<int64_t>(norm_pieces_.size());
  update_piece_count_ = static_cast<int64_t>(update_pieces_.size());
  gathered_.resize(layout_.parcels().size());
  reduced_.resize(layout_.parcels().size());
  if (options.overlap || rotates())
    for (auto& of_first : hooks_)
      of_first[1].grads_ready = [this](int32_t g) { complete_group(g); };
  if (!cuda()) return;

  const auto table = [&](const std::vector<AdamWPiece>& pieces, const char* what) {
    const TensorSpec spec =
        flat_spec(static_cast<int64_t>(pieces.size() * sizeof(AdamWPiece)), DType::kI8);
    const TensorView view = small_.take(spec, what);
    copy(ctx_, view, TensorView(const_cast<AdamWPiece*>(pieces.data()), spec));
    return view;
  };
  const auto ranks = static_cast<size_t>(comm.size());
  small_ = Arena(device,
                 align_up(norm_pieces_.size() * sizeof(AdamWPiece)) +
                     align_up(update_pieces_.size() * sizeof(AdamWPiece)) +
                     align_up(ranks * sizeof(RankRecord)) + 2 * kArenaAlignment,
                 "optimizer pieces");
  device_norm_pieces_ = table(norm_pieces_, "pieces of the norm");
  device_update_pieces_ = table(update_pieces_, "pieces of the update");
  records_ = small_.take(flat_spec(static_cast<int64_t>(ranks * sizeof(RankRecord)), DType::kI8),
                         "records of the ranks");
  outcome_ = small_.take(flat_spec(sizeof(RankOutcome), DType::kI8), "norm and loss");
  read_ = HostBuffer(device, sizeof(RankOutcome));
  stop_flag_ = HostBuffer(device, sizeof(double));
  ctx_.synchronize("optimizer set-up");
  ctx_.reserve_workspace(grad_norm_workspace_bytes(norm_pieces_.size()));
  if (!sharded()) return;
  early_parcels_ =
      options.early_parcels < 0
          ? layout_.early_parcels()
          : std::min(options.early_parcels, static_cast<int32_t>(layout_.parcels().size()));
  update_batches_ = layout_.update_batches(update_pieces_, early_parcels_);
  for (PlanHooks& h : hooks_[1])
    h.before_use = [this](int32_t g) {
      const int32_t p = layout_.parcel_of(g);
      if (p < early_parcels_) return;  // see await_update
      leave_lanes();
      for (int l = 0; l < ctx_.lanes(); ++l) gathered_[static_cast<size_t>(p)].wait(ctx_.lane(l));
    };
}

void ShardedParams::make_views(const ParamRegistry& params) {
  for (size_t i = 0; i < params.size(); ++i) {
    const auto id = static_cast<ParamId>(i);
    const ParamSpec& p = params.specs()[i];
    const int64_t at = layout_.offset(id);
    const Segment& s = layout_.segment_of(id);
    if (half() && p.matrix) {
      TensorSpec spec = p.spec;
      spec.dtype = DType::kBF16;
      views_.push_back(copies_.at(static_cast<size_t>(at) * sizeof(BF16), spec));
    } else if (!half()) {
      views_.push_back(full_.at(f32_bytes(at), p.spec));
    } else if (sharded()) {
      views_.push_back(vectors_.at(f32_bytes(s.vectors + at - s.offset), p.spec));
    } else {
      views_.push_back(masters_.at(f32_bytes(at), p.spec));
    }
    grad_views_.push_back(TensorView(grad_at(s) + (at - s.offset), p.spec, ctx_.device()));
  }
}

float* ShardedParams::grad_at(const Segment& s) const {
  if (!rotates()) return floats(grads_) + s.offset;
  // Neighbours, which follow each other in the backward, never share a slot.
  const int32_t p = layout_.parcel_of(s.group);
  return floats(grads_) + p % 2 * layout_.largest_parcel() + offset_in_parcel(s);
}

int64_t ShardedParams::offset_in_parcel(const Segment& s) const {
  const auto& parcel = layout_.parcels()[static_cast<size_t>(layout_.parcel_of(s.group))];
  return s.offset - layout_.group(parcel.begin)[0].offset;
}

float* ShardedParams::grad_shard_at(const Segment& s) const {
  if (rotates()) return floats(grad_shards_) + s.state;
  return floats(grads_) + s.offset + comm_.rank() * s.shard;
}

TensorView ShardedParams::device_view(void* p, int64_t n, DType type) const {
  return TensorView(p, flat_spec(n, type), ctx_.device());
}

void ShardedParams::add_loss(const TensorView& loss, Accum mode) {
  if (cuda()) {
    auto* mine = static_cast<RankRecord*>(records_.data) + comm_.rank();
    rwkv::add_loss(ctx_, loss.f32(), &mine->loss_sum, mode);
    return;
  }
  if (mode == Accum::kWrite) record_.loss_sum = 0;
  record_.loss_sum += static_cast<double>(*loss.f32());
}

void ShardedParams::update(double lr, int64_t update, bool stop) {
  if (cuda())
    update_cuda(lr, update, stop);
  else
    update_cpu(lr, update, stop);
}

void ShardedParams::update_cpu(double lr, int64_t update, bool stop) {
  const float* norm_grads = rotates() ? floats(grad_shards_) : floats(grads_);
  enter("gradient norm");
  parallel_for(norm_piece_count_, 1, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      const AdamWPiece& p = norm_pieces_[static_cast<size_t>(k)];
      partial_[static_cast<size_t>(k)] = sum_of_squares(norm_grads + p.begin, p.end - p.begin);
    }
  });
  record_.squares = 0;
  for (const double s : partial_) record_.squares += s;
  record_.stop = stop ? 1 : 0;
  leave_lanes();
  begin_exchange(TimelineKind::kGather, "norm", sizeof record_ * cpu_records_.size());
  comm_.group().all_gather(&record_, sizeof record_, cpu_records_.data());
  end_exchange();
  enter("AdamW");
  cpu_outcome_ = combine_records(cpu_records_.data(), cpu_records_.size());
  if (!std::isfinite(cpu_outcome_.norm)) {
    leave_lanes();
    return;
  }
  const AdamWRates rates = adamw_rates(options_.optimizer, update, cpu_outcome_.norm);
  float* p = sharded() ? floats(masters_) : floats(full_);
  float *m = floats(m_), *v = floats(v_);
  parallel_for(update_piece_count_, 1, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      const AdamWPiece& piece = update_pieces_[static_cast<size_t>(k)];
      const int64_t at = piece.begin + piece.shift;
      const float* g = norm_grads + (rotates() ? at : piece.begin);
      adamw_elements(p + at, m + at, v + at, g, piece.end - piece.begin, rates,
                     static_cast<float>(lr * piece.lr_scale), piece.decay);
    }
  });
  leave_lanes();
  stale_ = sharded();
  gather();
}

void ShardedParams::update_cuda(double lr, int64_t update, bool stop) {
  auto* records = static_cast<RankRecord*>(records_.data);
  RankRecord* mine = records + comm_.rank();
  const auto* norm_pieces = static_cast<const AdamWPiece*>(device_norm_pieces_.data);
  const auto* update_pieces = static_cast<const AdamWPiece*>(device_update_pieces_.data);
  float* grads = rotates() ? floats(grad_shards_) : floats(grads_);
  const double flag = stop ? 1 : 0;
  std::memcpy(stop_flag_.data(), &flag, sizeof flag);  // the last copy is done: see read_outcome
  const TensorSpec one = flat_spec(sizeof(double), DType::kI8);
  copy(ctx_, TensorView(&mine->stop, one, ctx_.device()), TensorView(stop_flag_.data(), one));
  enter("gradient norm");
  grad_squares(ctx_, grads, norm_pieces, static_cast<size_t>(norm_piece_count_), &mine->squares);
  leave_lanes();
  on_comm([&] {
    begin_exchange(TimelineKind::kGather, "norm",
                   static_cast<double>(comm_.size()) * sizeof(RankRecord));
    comm_.all_gather(mine, records, static_cast<int64_t>(sizeof(RankRecord)), DType::kI8);
    end_exchange();
  });
  enter("AdamW");
  auto* outcome = static_cast<RankOutcome*>(outcome_.data);
  combine_records(ctx_, records, static_cast<size_t>(comm_.size()), outcome);
  const AdamWBuffers buffers{.master = half() || sharded() ? floats(masters_) : floats(full_),
                             .m = floats(m_),
                             .v = floats(v_),
                             .grad = grads,
                             .copy = reinterpret_cast<BF16*>(copies_.data()),
                             .shifted_grad = rotates()};
  const AdamWStep step{.beta1 = options_.optimizer.beta1,
                       .beta2 = options_.optimizer.beta2,
                       .eps = options_.optimizer.eps,
                       .lr = lr,
                       .clip = options_.optimizer.clip,
                       .update = update};
  if (sharded())
    update_and_send(buffers, step);
  else
    adamw_update(ctx_, buffers, update_pieces, static_cast<size_t>(update_piece_count_), step,
                 &outcome->norm);
  leave_lanes();
  stale_ = sharded();
}

void ShardedParams::update_and_send(const AdamWBuffers& buffers, const AdamWStep& step) {
  const auto* pieces = static_cast<const AdamWPiece*>(device_update_pieces_.data);
  const double* norm = &static_cast<RankOutcome*>(outcome_.data)->norm;
  for (const ShardLayout::UpdateBatch& b : update_batches_) {
    adamw_update(ctx_, buffers, pieces + b.first_piece,
                 static_cast<size_t>(b.last_piece - b.first_piece), step, norm);
    if (!b.early) continue;
    to_comm_.record(ctx_);
    to_comm_.wait_on(comm_.stream());
    gather_parcels(b.begin, b.end);
  }
  sent_.record_on(comm_.stream());
  sending_ = true;
}

RankOutcome ShardedParams::read_outcome() {
  if (!cuda()) return cpu_outcome_;
  copy_later(ctx_, TensorView(read_.data(), outcome_.spec), outcome_);
  ctx_.synchronize("read loss and norm");
  RankOutcome o;
  std::memcpy(&o, read_.data(), sizeof o);
  return o;
}

}  // namespace rwkv
