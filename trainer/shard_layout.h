#pragma once
/// Where parameters lie when several ranks share the optimizer's work.

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/ops/adamw.h"
#include "model/params.h"
#include "trainer/optimizer.h"

namespace rwkv {

/// Neighbouring buckets travel together while they have fewer elements than a twelfth of all,
/// within [64M, 128M]: of what docs/multi-gpu.md measured, the best for each size of model.
inline constexpr int64_t kChosenParcels = -1;

/// One flat memory of all parameters in segments: for every bucket of the registry (the embedding,
/// a block, the head) its matrices, then its vectors. Every segment is padded so that it divides
/// into equal shards, one per rank, whose bounds are multiples of 256 bytes; collectives work on
/// whole segments. Matrices and vectors are apart because products read copies of matrices in
/// another type.
class ShardLayout {
 public:
  struct Segment {
    int32_t group;  ///< the bucket
    bool matrices;
    int64_t offset, elements;  ///< in the flat memory
    int64_t shard;             ///< elements / ranks
    int64_t state;             ///< where this rank's part begins in memory of one shard per segment
    int64_t vectors;           ///< where a segment of vectors begins in memory of those only
  };

  /// The registry must outlive this.
  ShardLayout(const ParamRegistry& params, int ranks, int64_t parcel_elements = kChosenParcels);

  std::span<const Segment> segments() const { return segments_; }
  int32_t groups() const { return groups_; }
  const std::vector<int32_t>& group_of_param() const { return group_of_param_; }
  int ranks() const { return ranks_; }
  int64_t elements() const { return elements_; }  ///< of the flat memory
  int64_t shard_elements() const { return elements_ / ranks_; }
  int64_t vector_elements() const { return vector_elements_; }
  int64_t largest_parcel() const;
  int64_t largest_segment() const;
  /// Buckets with fewer elements than this travel together: what was given or chosen.
  int64_t parcel_elements() const { return parcel_elements_; }
  int64_t offset(ParamId id) const { return offsets_[static_cast<size_t>(id)]; }
  const Segment& segment_of(ParamId id) const {
    return segments_[static_cast<size_t>(segment_of_param_[static_cast<size_t>(id)])];
  }
  /// The segments of a group, one after the other in memory.
  std::span<const Segment> group(int32_t g) const { return segments_of(g, g + 1); }
  /// Of groups [begin, end).
  std::span<const Segment> segments_of(int32_t begin, int32_t end) const;

  /// Neighbouring groups that travel together, because small exchanges reach less bandwidth. In the
  /// order of groups; the first ones, whose gradients are the last to be complete, travel alone.
  struct Parcel {
    int32_t begin, end;  ///< groups
    int64_t elements;
  };
  std::span<const Parcel> parcels() const { return parcels_; }
  int32_t parcel_of(int32_t group) const { return parcel_of_group_[static_cast<size_t>(group)]; }
  /// How many of the first parcels are worth sending while others are still being updated: updating
  /// a share of the elements takes about as long as gathering 1 / (ranks - 1) of them.
  int32_t early_parcels() const;

  /// Neighbouring parcels that are updated by one launch and, if they are early ones, sent as one.
  struct UpdateBatch {
    int32_t begin, end;  ///< parcels
    bool early;
    int64_t first_piece, last_piece;  ///< of this rank's: [first_piece, last_piece)
  };
  /// `pieces` as from pieces(), of any rank: the parcels of a batch are the same for all ranks, as
  /// collectives demand. The late parcels are one batch.
  std::vector<UpdateBatch> update_batches(std::span<const AdamWPiece> pieces,
                                          int32_t early_parcels) const;

  /// Elements [begin, begin + count) of a parameter, and where they lie in memory of one shard per
  /// segment.
  struct Part {
    ParamId id;
    int64_t begin, count, at;
  };
  /// All that `rank` holds of the parameters, in the order of memory.
  std::vector<Part> parts(int rank) const;

  /// What AdamW of `rank` is responsible for, at most kAdamWPieceElements each, in flat indices.
  /// With `sharded` their shift leads into memory of one shard per segment.
  std::vector<AdamWPiece> pieces(int rank, const AdamWOptions& options,
                                 const std::vector<bool>& trained, bool sharded) const;

 private:
  void make_parcels();
  const ParamRegistry* params_;
  int ranks_;
  int64_t parcel_elements_;
  int32_t groups_ = 0;
  int64_t elements_ = 0, vector_elements_ = 0;
  std::vector<Segment> segments_;
  std::vector<int64_t> offsets_;
  std::vector<int32_t> segment_of_param_, group_of_param_;
  std::vector<int32_t> first_segment_;  ///< by group, and one more
  std::vector<Parcel> parcels_;
  std::vector<int32_t> parcel_of_group_;
};

}  // namespace rwkv
