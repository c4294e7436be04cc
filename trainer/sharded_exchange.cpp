// What ShardedParams sends and receives, and when.

#include <algorithm>

#include "kernels/core/bf16.h"
#include "kernels/core/error.h"
#include "trainer/sharded_params.h"

namespace rwkv {
namespace {

std::string groups_name(int32_t begin, int32_t end) {
  return end == begin + 1 ? str("bucket ", begin) : str("buckets ", begin, " to ", end - 1);
}

}  // namespace

void ShardedParams::attach(Plan& plan) {
  plan.use_groups(layout_.group_of_param());
  // By parcel: the steps in which its gradients come.
  std::vector<Plan::GradientSpan> spans(layout_.parcels().size());
  expected_.assign(spans.size(), 0);
  for (int32_t g = 0; g < layout_.groups(); ++g) {
    const Plan::GradientSpan of_group = plan.gradient_spans()[static_cast<size_t>(g)];
    if (of_group.first > of_group.last) continue;
    const auto p = static_cast<size_t>(layout_.parcel_of(g));
    spans[p] = expected_[p] == 0 ? of_group
                                 : Plan::GradientSpan{std::min(spans[p].first, of_group.first),
                                                      std::max(spans[p].last, of_group.last)};
    ++expected_[p];
  }
  missing_ = expected_;
  if (!rotates()) return;
  // Parcels share memory in turns, so their gradients must come one parcel after the other, the
  // last one first.
  for (size_t p = 0; p + 1 < spans.size(); ++p)
    RWKV_ASSERT(expected_[p] == 0 || expected_[p + 1] == 0 || spans[p].first > spans[p + 1].last,
                "gradients of parcels ", p, " and ", p + 1, " overlap in time");
}

void ShardedParams::on_comm(const std::function<void()>& work) {
  if (!cuda()) {
    work();
    return;
  }
  to_comm_.record(ctx_);
  to_comm_.wait_on(comm_.stream());
  work();
  from_comm_.record_on(comm_.stream());
  from_comm_.wait(ctx_);
}

void ShardedParams::begin_exchange(TimelineKind kind, std::string_view name, double bytes) {
  if (timeline_ == nullptr) return;
  const double crossing = bytes * (1 - 1.0 / comm_.size());
  timeline_->enter(Timeline::kExchangeTrack, comm_.stream(), kind, name, crossing);
}

void ShardedParams::end_exchange() {
  if (timeline_ != nullptr) timeline_->leave(Timeline::kExchangeTrack, comm_.stream());
}

double ShardedParams::gathered_bytes(int32_t group) const {
  double bytes = 0;
  for (const Segment& s : layout_.group(group))
    bytes +=
        static_cast<double>(s.elements) * (half() && s.matrices ? sizeof(BF16) : sizeof(float));
  return bytes;
}

void ShardedParams::gather_group(int32_t group) {
  const int rank = comm_.rank();
  for (const Segment& s : layout_.group(group)) {
    if (half() && s.matrices) {
      BF16* to = reinterpret_cast<BF16*>(copies_.data()) + s.offset;
      comm_.all_gather(to + rank * s.shard, to, s.shard, DType::kBF16);
      continue;
    }
    float* to = half() ? floats(vectors_) + s.vectors : floats(full_) + s.offset;
    comm_.all_gather(floats(masters_) + s.state, to, s.shard, DType::kF32);
  }
}

void ShardedParams::begin_step() {
  if (!sharded() || !cuda()) return;
  to_comm_.record(ctx_);
  to_comm_.wait_on(comm_.stream());
  for (auto p = early_parcels_; p < static_cast<int32_t>(layout_.parcels().size()); ++p)
    gather_parcels(p, p + 1);
  if (!ctx_.recording()) stale_ = false;  // a recording only says what later launches do
}

void ShardedParams::await_update() {
  if (!sending_) return;
  sent_.wait(ctx_);
  sending_ = false;
}

void ShardedParams::gather_parcels(int32_t begin, int32_t end) {
  const auto parcels = layout_.parcels();
  const int32_t first = parcels[static_cast<size_t>(begin)].begin,
                last = parcels[static_cast<size_t>(end) - 1].end;
  double bytes = 0;
  for (int32_t g = first; g < last; ++g) bytes += gathered_bytes(g);
  begin_exchange(TimelineKind::kGather, groups_name(first, last), bytes);
  comm_.begin_group();
  for (int32_t g = first; g < last; ++g) gather_group(g);
  comm_.end_group();
  end_exchange();
  for (int32_t p = begin; p < end; ++p) gathered_[static_cast<size_t>(p)].record_on(comm_.stream());
}

void ShardedParams::gather() {
  if (!stale_) return;
  leave_lanes();
  on_comm([&] {
    if (cuda()) return gather_parcels(0, static_cast<int32_t>(layout_.parcels().size()));
    double bytes = 0;
    for (int32_t g = 0; g < layout_.groups(); ++g) bytes += gathered_bytes(g);
    begin_exchange(TimelineKind::kGather, groups_name(0, layout_.groups()), bytes);
    for (int32_t g = 0; g < layout_.groups(); ++g) gather_group(g);
    end_exchange();
  });
  stale_ = false;
}

void ShardedParams::reduce(std::span<const Segment> segments) {
  const bool whole = options_.exchange == DType::kF32;
  const auto narrow = [&](const Segment& s) {
    return reinterpret_cast<BF16*>(half_grads_.data()) + offset_in_parcel(s);
  };
  for (const Segment& s : segments) {
    if (whole) break;
    if (cuda())
      narrow_to_bf16(comm_.stream(), grad_at(s), narrow(s), s.elements);
    else
      std::transform(grad_at(s), grad_at(s) + s.elements, narrow(s), to_bf16);
  }
  comm_.begin_group();
  for (const Segment& s : segments) {
    const void* from = whole ? static_cast<void*>(grad_at(s)) : narrow(s);
    void* to = whole ? static_cast<void*>(grad_shard_at(s)) : narrow(s) + comm_.rank() * s.shard;
    if (copy_engines())
      comm_.reduce_scatter_by_copies(from,
                                     scratch_.data() + static_cast<size_t>(offset_in_parcel(s)) *
                                                           dtype_bytes(options_.exchange),
                                     to, s.shard, options_.exchange);
    else
      comm_.reduce_scatter(from, to, s.shard, options_.exchange);
  }
  comm_.end_group();
  for (const Segment& s : segments) {
    if (whole) break;
    const BF16* sums = narrow(s) + comm_.rank() * s.shard;
    if (cuda())
      widen_to_f32(comm_.stream(), sums, grad_shard_at(s), s.shard);
    else
      std::transform(sums, sums + s.shard, grad_shard_at(s), to_float);
  }
}

void ShardedParams::complete_group(int32_t group) {
  const int32_t p = layout_.parcel_of(group);
  int32_t& missing = missing_[static_cast<size_t>(p)];
  if (--missing > 0) return;
  missing = expected_[static_cast<size_t>(p)];  // of the next step
  exchange_parcel(p);
}

void ShardedParams::exchange_parcel(int32_t p) {
  if (cuda()) {
    for (int l = 0; l < ctx_.lanes(); ++l) {
      lane_.record(ctx_.lane(l));
      lane_.wait_on(comm_.stream());
    }
  } else {
    leave_lanes();  // there the exchange is done when its call returns
  }
  const ShardLayout::Parcel& parcel = layout_.parcels()[static_cast<size_t>(p)];
  const auto segments = layout_.segments_of(parcel.begin, parcel.end);
  begin_exchange(
      TimelineKind::kReduce, groups_name(parcel.begin, parcel.end),
      static_cast<double>(parcel.elements) *
          static_cast<double>(dtype_bytes(options_.exchange) + (sharded() ? 0 : sizeof(float))));
  reduce(segments);
  if (!sharded()) {
    comm_.begin_group();
    for (const Segment& s : segments)
      comm_.all_gather(grad_shard_at(s), grad_at(s), s.shard, DType::kF32);
    comm_.end_group();
  }
  end_exchange();
  if (!cuda() || !rotates()) return;
  reduced_[static_cast<size_t>(p)].record_on(comm_.stream());
  // The next parcel's gradients go where those of the one before this were.
  if (static_cast<size_t>(p) + 1 == reduced_.size()) return;
  leave_lanes();
  for (int l = 0; l < ctx_.lanes(); ++l) reduced_[static_cast<size_t>(p) + 1].wait(ctx_.lane(l));
}

void ShardedParams::exchange_all() {
  for (auto p = static_cast<int32_t>(layout_.parcels().size()); p-- > 0;) exchange_parcel(p);
}

void ShardedParams::warm_up() {
  exchange_all();
  end_backward(false);
  stale_ = sharded();
  gather();
  ctx_.synchronize("warm-up of the exchanges");
}

void ShardedParams::end_backward(bool last) {
  if (last && !options_.overlap && !rotates()) exchange_all();
  if (!cuda()) return;
  to_comm_.record(ctx_);  // so that a recording knows the stream, whatever was exchanged
  to_comm_.wait_on(comm_.stream());
  from_comm_.record_on(comm_.stream());
  from_comm_.wait(ctx_);
}

}  // namespace rwkv
