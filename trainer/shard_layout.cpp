#include "trainer/shard_layout.h"

#include <algorithm>

#include "kernels/core/error.h"

namespace rwkv {
namespace {

constexpr int64_t kAlign = static_cast<int64_t>(kArenaAlignment / sizeof(float));

int64_t round_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

}  // namespace

ShardLayout::ShardLayout(const ParamRegistry& params, int ranks, int64_t parcel_elements)
    : params_(&params),
      ranks_(ranks),
      parcel_elements_(parcel_elements),
      offsets_(params.size()),
      segment_of_param_(params.size()),
      group_of_param_(params.size()) {
  RWKV_ASSERT(ranks >= 1, ranks, " ranks");
  for (const Bucket& bucket : params.buckets()) {
    first_segment_.push_back(static_cast<int32_t>(segments_.size()));
    for (const bool matrices : {true, false}) {
      Segment s{.group = groups_, .matrices = matrices, .offset = elements_};
      int64_t n = 0;
      for (ParamId id = bucket.begin; id < bucket.end; ++id) {
        if (params[id].matrix != matrices) continue;
        const auto i = static_cast<size_t>(id);
        offsets_[i] = elements_ + n;
        segment_of_param_[i] = static_cast<int32_t>(segments_.size());
        group_of_param_[i] = groups_;
        n += round_up(params[id].spec.numel(), kAlign);
      }
      if (n == 0) continue;
      s.elements = round_up(n, kAlign * ranks);
      s.shard = s.elements / ranks;
      s.state = elements_ / ranks;
      s.vectors = vector_elements_;
      if (!matrices) vector_elements_ += s.elements;
      elements_ += s.elements;
      segments_.push_back(s);
    }
    ++groups_;
  }
  first_segment_.push_back(static_cast<int32_t>(segments_.size()));
  if (parcel_elements < 0)
    parcel_elements_ = std::clamp(elements_ / 12, int64_t{64} << 20, int64_t{128} << 20);
  make_parcels();
}

std::span<const ShardLayout::Segment> ShardLayout::segments_of(int32_t first, int32_t last) const {
  const auto begin = static_cast<size_t>(first_segment_[static_cast<size_t>(first)]);
  const auto end = static_cast<size_t>(first_segment_[static_cast<size_t>(last)]);
  return std::span(segments_).subspan(begin, end - begin);
}

void ShardLayout::make_parcels() {
  constexpr int32_t kAlone = 3;
  parcel_of_group_.resize(static_cast<size_t>(groups_));
  Parcel open{groups_, groups_, 0};
  for (int32_t g = groups_; g-- > 0;) {
    open.begin = g;
    for (const Segment& s : group(g)) open.elements += s.elements;
    if (open.elements < parcel_elements_ && g > kAlone) continue;
    parcels_.push_back(open);
    open = {g, g, 0};
  }
  std::ranges::reverse(parcels_);
  for (size_t p = 0; p < parcels_.size(); ++p)
    for (int32_t g = parcels_[p].begin; g < parcels_[p].end; ++g)
      parcel_of_group_[static_cast<size_t>(g)] = static_cast<int32_t>(p);
}

int32_t ShardLayout::early_parcels() const {
  int32_t count = 0;
  for (int64_t sent = 0; sent < elements_ / std::max(1, ranks_ - 1); ++count)
    sent += parcels_[static_cast<size_t>(count)].elements;
  return count;
}

std::vector<ShardLayout::UpdateBatch> ShardLayout::update_batches(
    std::span<const AdamWPiece> pieces, int32_t early_parcels) const {
  // A launch should fill the device. Elements count, not this rank's pieces: ranks divide the same
  // elements into different numbers of those.
  const int64_t least = 512 * kAdamWPieceElements * ranks_;
  const auto count = static_cast<int32_t>(parcels_.size());
  // Pieces come in the order of parameters, which is that of groups.
  const auto first_piece = [&](int32_t parcel) {
    if (parcel == count) return static_cast<int64_t>(pieces.size());
    const int64_t begin = group(parcels_[static_cast<size_t>(parcel)].begin)[0].offset;
    const auto at = std::ranges::find_if(pieces, [&](const auto& p) { return p.begin >= begin; });
    return static_cast<int64_t>(at - pieces.begin());
  };
  std::vector<UpdateBatch> out;
  int64_t elements = 0;
  for (int32_t begin = 0, p = 0; p < count; ++p) {
    const bool early = p < early_parcels, last = p + 1 == (early ? early_parcels : count);
    elements += parcels_[static_cast<size_t>(p)].elements;
    if (!last && (!early || elements < least)) continue;
    out.push_back({begin, p + 1, early, first_piece(begin), first_piece(p + 1)});
    begin = p + 1;
    elements = 0;
  }
  return out;
}

int64_t ShardLayout::largest_parcel() const {
  int64_t most = 0;
  for (const Parcel& p : parcels_) most = std::max(most, p.elements);
  return most;
}

int64_t ShardLayout::largest_segment() const {
  return std::ranges::max(segments_, {}, &Segment::elements).elements;
}

std::vector<ShardLayout::Part> ShardLayout::parts(int rank) const {
  std::vector<Part> out;
  for (size_t i = 0; i < params_->size(); ++i) {
    const Segment& s = segments_[static_cast<size_t>(segment_of_param_[i])];
    const int64_t first = s.offset + rank * s.shard;
    const int64_t begin = std::max(offsets_[i], first);
    const int64_t end = std::min(offsets_[i] + params_->specs()[i].spec.numel(), first + s.shard);
    if (begin < end)
      out.push_back(
          {static_cast<ParamId>(i), begin - offsets_[i], end - begin, s.state + begin - first});
  }
  std::ranges::sort(out, {}, &Part::at);
  return out;
}

std::vector<AdamWPiece> ShardLayout::pieces(int rank, const AdamWOptions& options,
                                            const std::vector<bool>& trained, bool sharded) const {
  std::vector<AdamWPiece> out;
  for (size_t i = 0; i < params_->size(); ++i) {
    if (!trained.empty() && !trained[i]) continue;
    const ParamSpec& spec = params_->specs()[i];
    const Segment& s = segments_[static_cast<size_t>(segment_of_param_[i])];
    const int64_t shard_begin = s.offset + rank * s.shard;
    const int64_t begin = std::max(offsets_[i], shard_begin);
    const int64_t end = std::min(offsets_[i] + spec.spec.numel(), shard_begin + s.shard);
    const float decay = spec.weight_decay ? static_cast<float>(options.weight_decay) : 0.0f;
    for (int64_t b = begin; b < end; b += kAdamWPieceElements)
      out.push_back({.begin = b,
                     .end = std::min(end, b + kAdamWPieceElements),
                     .lr_scale = spec.lr_scale,
                     .decay = decay,
                     .shift = sharded ? s.state - shard_begin : 0});
  }
  return out;
}

}  // namespace rwkv
