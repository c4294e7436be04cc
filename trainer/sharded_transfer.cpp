// Parameters and moments of several ranks: from and to the host.

#include <algorithm>
#include <vector>

#include "kernels/core/error.h"
#include "trainer/sharded_params.h"

namespace rwkv {
namespace {

TensorSpec flat_spec(int64_t n, DType type = DType::kF32) {
  return TensorSpec({n}, type);
}

}  // namespace

Arena& ShardedParams::arena_of(StatePart part) {
  if (part == StatePart::kM) return m_;
  if (part == StatePart::kV) return v_;
  return masters_.bytes() > 0 ? masters_ : full_;
}

void ShardedParams::stage_params(const Segment& s, const ParamStore& host,
                                 const std::vector<bool>* only) {
  float* to = staging_at(s);
  fill_zero(ctx_, device_view(to, s.elements));
  for (size_t i = 0; i < params_.size(); ++i) {
    const auto id = static_cast<ParamId>(i);
    if (&layout_.segment_of(id) != &s || (only != nullptr && !(*only)[i])) continue;
    copy(ctx_, TensorView(to + (layout_.offset(id) - s.offset), host[id].spec, ctx_.device()),
         host[id]);
  }
}

void ShardedParams::broadcast_staged(const Segment& s) {
  on_comm([&] { comm_.broadcast(staging_at(s), s.elements, DType::kF32); });
}

void ShardedParams::install(StatePart part, const std::function<void(const Segment&)>& stage) {
  const Arena& arena = arena_of(part);
  for (const Segment& s : layout_.segments()) {
    stage(s);
    float* staged = staging_at(s);
    if (sharded())
      copy(ctx_, device_view(floats(arena) + s.state, s.shard),
           device_view(staged + comm_.rank() * s.shard, s.shard));
    else
      copy(ctx_, device_view(floats(arena) + s.offset, s.elements),
           device_view(staged, s.elements));
    if (part != StatePart::kValues) continue;
    // What kernels read.
    if (half() && s.matrices)
      narrow_to_bf16(ctx_.stream(), staged, reinterpret_cast<BF16*>(copies_.data()) + s.offset,
                     s.elements);
    else if (half() && sharded())
      copy(ctx_, device_view(floats(vectors_) + s.vectors, s.elements),
           device_view(staged, s.elements));
    else if (!half() && &arena != &full_)
      copy(ctx_, device_view(floats(full_) + s.offset, s.elements),
           device_view(staged, s.elements));
  }
  ctx_.synchronize("upload of the parameters");
  if (part == StatePart::kValues) stale_ = false;
}

void ShardedParams::upload(const ParamStore& values, const ParamStore& m, const ParamStore& v) {
  const std::array stores = {&values, &m, &v};
  for (size_t i = 0; i < kStateParts.size(); ++i)
    install(kStateParts[i], [&](const Segment& s) {
      if (comm_.rank() == 0) stage_params(s, *stores[i], nullptr);
      broadcast_staged(s);
    });
}

void ShardedParams::fill(const ValuePattern& pattern) {
  const int64_t all = layout_.elements();
  if (half()) pattern.fill(copies_.data(), 0, all, DType::kBF16);
  if (full_.bytes() > 0) pattern.fill(full_.data(), 0, all, DType::kF32);
  for (const Segment& s : layout_.segments()) {
    if (half() && sharded() && !s.matrices)
      pattern.fill(floats(vectors_) + s.vectors, s.offset, s.elements, DType::kF32);
    if (masters_.bytes() == 0) continue;
    if (sharded())
      pattern.fill(floats(masters_) + s.state, s.offset + comm_.rank() * s.shard, s.shard,
                   DType::kF32);
    else
      pattern.fill(floats(masters_) + s.offset, s.offset, s.elements, DType::kF32);
  }
  stale_ = false;
}

void ShardedParams::upload_initial(const ParamStore& values, const std::vector<bool>& mine) {
  for (const StatePart part : {StatePart::kM, StatePart::kV})
    fill_zero(ctx_, device_view(floats(arena_of(part)),
                                static_cast<int64_t>(arena_of(part).bytes() / sizeof(float))));
  // Every element is of one rank and zero elsewhere: the sum is exact.
  install(StatePart::kValues, [&](const Segment& s) {
    stage_params(s, values, &mine);
    float* mine_at = staging_at(s) + comm_.rank() * s.shard;
    on_comm([&] {
      comm_.reduce_scatter(staging_at(s), mine_at, s.shard, DType::kF32);
      comm_.all_gather(mine_at, staging_at(s), s.shard, DType::kF32);
    });
  });
}

void ShardedParams::upload_shards(const ReadShards& read) {
  std::vector<float> host;
  for (const StatePart part : kStateParts) {
    host.assign(static_cast<size_t>(layout_.shard_elements()), 0.0f);
    read(part, host);
    install(part, [&](const Segment& s) {
      float* mine = staging_at(s) + comm_.rank() * s.shard;
      copy(ctx_, device_view(mine, s.shard), TensorView(host.data() + s.state, flat_spec(s.shard)));
      on_comm([&] { comm_.all_gather(mine, staging_at(s), s.shard, DType::kF32); });
    });
  }
}

void ShardedParams::download_shards(const WriteShards& write) {
  std::vector<float> host(static_cast<size_t>(layout_.shard_elements()));
  for (const StatePart part : kStateParts) {
    const float* from = floats(arena_of(part));
    for (const Segment& s : layout_.segments())
      copy(ctx_, TensorView(host.data() + s.state, flat_spec(s.shard)),
           device_view(
               const_cast<float*>(from) + (sharded() ? s.state : s.offset + comm_.rank() * s.shard),
               s.shard));
    ctx_.synchronize("download of the parameters");
    write(part, host);
  }
}

void ShardedParams::collect(float* flat_or_shards, ParamStore& host) {
  for (const Segment& s : layout_.segments()) {
    float* from = sharded() ? staging_at(s) : flat_or_shards + s.offset;
    if (sharded())
      on_comm([&] { comm_.all_gather(flat_or_shards + s.state, from, s.shard, DType::kF32); });
    if (comm_.rank() != 0) continue;
    for (size_t i = 0; i < params_.size(); ++i) {
      const auto id = static_cast<ParamId>(i);
      if (&layout_.segment_of(id) != &s) continue;
      copy(ctx_, host[id],
           TensorView(from + (layout_.offset(id) - s.offset), host[id].spec, ctx_.device()));
    }
  }
  ctx_.synchronize("download of the parameters");
}

void ShardedParams::download(ParamStore& values, ParamStore& m, ParamStore& v) {
  const std::array stores = {&values, &m, &v};
  for (size_t i = 0; i < kStateParts.size(); ++i)
    collect(floats(arena_of(kStateParts[i])), *stores[i]);
}

}  // namespace rwkv
