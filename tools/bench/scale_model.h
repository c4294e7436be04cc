#pragma once
/// A model of a training step on many ranks: what exchanges cost, and what of them computation
/// hides. docs/scaling.md explains it.

#include <cstdint>
#include <span>
#include <vector>

namespace rwkv::bench {

/// Seconds of a collective: latency + bytes over a rank's link / bandwidth.
struct LatencyBandwidth {
  double latency = 0;       ///< seconds
  double bandwidth = 1e30;  ///< bytes per second, one way
  double worst_error = 0;   ///< of the fit: largest |model / measured - 1|
  double operator()(double bytes) const { return latency + bytes / bandwidth; }
};
struct MeasuredCollective {
  double bytes, seconds;  ///< bytes: over a rank's link, one way
};
/// Least squares of the relative errors; latency and bandwidth are positive. Wants two sizes.
LatencyBandwidth fit_collective(std::span<const MeasuredCollective> points);

/// Ranks in nodes. Rings go through all ranks of a node before they leave it, and use all of its
/// network cards at the same time.
struct Cluster {
  LatencyBandwidth reduce_scatter, all_gather;  ///< as measured within a node
  int measured_ranks = 2;                       ///< that the fits come from
  int ranks_per_node = 8;
  double hop = 2e-6;        ///< seconds more for each further rank of a ring within nodes
  double node_hop = 8e-6;   ///< the same between nodes
  double card = 50e9;       ///< bytes per second and direction of a network card: 400 Gb/s
  double card_share = 0.9;  ///< of it that is reached
  int cards_per_node = 8;
};
/// Seconds of a reduce-scatter (gather: an all-gather) of `bytes` in all on `ranks` ranks.
double ring_seconds(const Cluster& cluster, int ranks, double bytes, bool gather);

/// What a rank computes in a step, in seconds; buckets in order: embedding, blocks, head.
struct StepProfile {
  double forward = 0, backward = 0;
  double optimizer = 0;          ///< clipping and AdamW of all parameters
  double other = 0;              ///< launches and the host between steps
  std::vector<double> need;      ///< when the forward first reads a bucket, from its beginning
  std::vector<double> ready;     ///< when the backward completes its gradients
  std::vector<double> elements;  ///< of each bucket
  std::vector<int> parcels;      ///< first bucket of each that travels as one; empty: each alone
  double alone() const { return forward + backward + optimizer + other; }
};

struct ScaleCase {
  int ranks = 8;
  int zero = 1;
  double gradient_bytes = 4;   ///< of an element on its way
  double parameter_bytes = 2;  ///< of an element when parameters are gathered
  bool overlap = true;         ///< exchanges beside the kernels
  double slowdown = 0;         ///< part of the kernels' speed that an exchange beside them takes
  double stall = 0;  ///< what each costs them besides: this part of a block's backward, but not
                     ///< more than the exchange takes
};

struct ScalePrediction {
  double step = 0;        ///< seconds
  double exchange = 0;    ///< that exchanges are under way
  double efficiency = 1;  ///< time alone / step
  double waiting = 0;     ///< that kernels wait for exchanges
};
/// Replays one step: parcels of buckets gathered in order, the first of them while the optimizer
/// works (1 / (ranks - 1) of all, as ShardedParams does it); kernels that wait for the parameters
/// they read; gradients that leave as their parcel is complete; the norm; the optimizer's share.
ScalePrediction predict_step(const StepProfile& profile, const Cluster& cluster,
                             const ScaleCase& what);

/// The stall with which predictions are closest to measured seconds per step, in least squares of
/// relative differences, between 0 and 0.2.
struct MeasuredStep {
  const StepProfile* profile;
  ScaleCase what;
  double seconds;
};
double fit_stall(const Cluster& cluster, std::span<const MeasuredStep> steps);

}  // namespace rwkv::bench
