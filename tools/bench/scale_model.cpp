#include "tools/bench/scale_model.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/core/error.h"

namespace rwkv::bench {
namespace {

/// One queue of exchanges beside one stream of kernels.
class Replay {
 public:
  Replay(double slowdown, double stall) : speed_(1 - slowdown), stall_(stall) {}

  double now() const { return now_; }
  double exchanges_end() const { return free_; }
  double busy() const { return busy_; }
  double waited() const { return waited_; }
  /// Queues an exchange at the current time; returns its end.
  double exchange(double seconds) {
    free_ = std::max(free_, now_) + seconds;
    busy_ += seconds;
    // A kernel with one block for each multiprocessor waits for those that the exchange holds.
    stalled_ += std::min(seconds, stall_);
    return free_;
  }
  /// Kernels that take so long by themselves.
  void compute(double seconds) {
    if (seconds <= 0) return;
    now_ += stalled_;
    stalled_ = 0;
    const double beside = std::max(0.0, free_ - now_) * speed_;
    if (seconds <= beside) {
      now_ += seconds / speed_;
      return;
    }
    if (beside > 0) now_ = free_;
    now_ += seconds - beside;
  }
  void idle(double seconds) { now_ += seconds; }
  void wait(double until) {
    waited_ += std::max(0.0, until - now_);
    if (until >= free_) stalled_ = 0;  // nothing ran beside
    now_ = std::max(now_, until);
  }

 private:
  double speed_, stall_;
  double stalled_ = 0, now_ = 0, free_ = 0, busy_ = 0, waited_ = 0;
};

struct Parcel {
  int begin, end;
  double elements, ready;
};

std::vector<Parcel> parcels_of(const StepProfile& p) {
  std::vector<Parcel> out;
  const auto buckets = static_cast<int>(p.elements.size());
  for (int b = 0; b < buckets; ++b) {
    if (p.parcels.empty() || std::ranges::find(p.parcels, b) != p.parcels.end())
      out.push_back({b, b, 0, 0});
    Parcel& x = out.back();
    x.end = b + 1;
    x.elements += p.elements[static_cast<size_t>(b)];
    x.ready = std::max(x.ready, p.ready[static_cast<size_t>(b)]);
  }
  return out;
}

}  // namespace

LatencyBandwidth fit_collective(std::span<const MeasuredCollective> points) {
  RWKV_CHECK(points.size() >= 2, ConfigError, "fitting a collective: found ", points.size(),
             " sizes, expected two at least");
  // Minimises the sum of ((a + b * bytes) / seconds - 1)^2.
  double aa = 0, ab = 0, bb = 0, a1 = 0, b1 = 0;
  for (const MeasuredCollective& p : points) {
    const double u = 1 / p.seconds, v = p.bytes / p.seconds;
    aa += u * u, ab += u * v, bb += v * v, a1 += u, b1 += v;
  }
  const double det = aa * bb - ab * ab;
  RWKV_CHECK(det > 0, ConfigError, "fitting a collective: all sizes are equal");
  double latency = (a1 * bb - b1 * ab) / det, slope = (aa * b1 - ab * a1) / det;
  if (latency < 0) latency = 0, slope = b1 / bb;
  if (slope <= 0) slope = 1e-30, latency = a1 / aa;
  LatencyBandwidth fit{.latency = latency, .bandwidth = 1 / slope};
  for (const MeasuredCollective& p : points)
    fit.worst_error = std::max(fit.worst_error, std::fabs(fit(p.bytes) / p.seconds - 1));
  return fit;
}

double ring_seconds(const Cluster& c, int ranks, double bytes, bool gather) {
  if (ranks <= 1) return 0;
  const LatencyBandwidth& fit = gather ? c.all_gather : c.reduce_scatter;
  const int nodes = (ranks + c.ranks_per_node - 1) / c.ranks_per_node;
  double bandwidth = fit.bandwidth;
  if (nodes > 1) bandwidth = std::min(bandwidth, c.card * c.card_share * c.cards_per_node);
  const double further = std::max(0, ranks - nodes - (c.measured_ranks - 1));
  return fit.latency + further * c.hop + (nodes - 1) * c.node_hop +
         bytes * (1 - 1.0 / ranks) / bandwidth;
}

ScalePrediction predict_step(const StepProfile& p, const Cluster& c, const ScaleCase& w) {
  const size_t buckets = p.elements.size();
  RWKV_CHECK(p.need.size() == buckets && p.ready.size() == buckets && buckets > 0, ConfigError,
             "predicting a step: ", buckets, " buckets, ", p.need.size(), " needs, ",
             p.ready.size(), " completions");
  const bool sharded = w.zero > 0 && w.ranks > 1;
  const std::vector<Parcel> parcels = parcels_of(p);
  const auto blocks = static_cast<double>(std::max<size_t>(buckets, 3) - 2);
  Replay r(w.slowdown, w.stall * p.backward / blocks);
  const auto gather = [&](const Parcel& x) {
    return r.exchange(ring_seconds(c, w.ranks, x.elements * w.parameter_bytes, true));
  };
  const auto reduce = [&](const Parcel& x) {
    double seconds = ring_seconds(c, w.ranks, x.elements * w.gradient_bytes, false);
    if (w.zero == 0) seconds += ring_seconds(c, w.ranks, x.elements * 4, true);
    return r.exchange(seconds);
  };

  // A period begins with the optimizer, which sends the first parcels as it goes on.
  const double all = std::accumulate(p.elements.begin(), p.elements.end(), 0.0);
  const double update = p.optimizer / (sharded ? w.ranks : 1);
  double sent = 0;
  for (const Parcel& x : parcels) {
    r.compute(update * x.elements / all);
    if (!sharded || sent >= all / (w.ranks - 1)) continue;
    gather(x);
    sent += x.elements;
  }
  r.idle(p.other);
  r.wait(r.exchanges_end());
  std::vector<double> present(buckets, 0.0);
  double before = 0;
  for (const Parcel& x : parcels) {
    if (sharded && before >= sent)
      std::fill_n(present.begin() + x.begin, x.end - x.begin, gather(x));
    before += x.elements;
  }
  double at = 0;
  for (size_t b = 0; b < buckets; ++b) {
    r.compute(std::max(0.0, p.need[b] - at));
    at = std::max(at, p.need[b]);
    r.wait(present[b]);
  }
  r.compute(p.forward - at);

  std::vector<Parcel> order = parcels;
  std::ranges::stable_sort(order, {}, &Parcel::ready);
  at = 0;
  double free = 0;  // when the memory of the exchange before the latest is
  for (const Parcel& x : order) {
    r.compute(x.ready - at);
    at = x.ready;
    if (w.ranks == 1 || !w.overlap) continue;
    if (w.zero == 2) r.wait(free);  // two parcels' memory in turns
    free = r.exchanges_end();
    reduce(x);
  }
  r.compute(std::max(0.0, p.backward - at));
  if (w.ranks > 1) {
    if (!w.overlap)
      for (const Parcel& x : order) reduce(x);
    r.wait(r.exchanges_end());
    r.exchange(ring_seconds(c, w.ranks, 24.0 * w.ranks, true));  // a record of each rank
    r.wait(r.exchanges_end());
  }
  ScalePrediction out;
  out.step = r.now();
  out.exchange = r.busy();
  out.waiting = r.waited();
  out.efficiency = p.alone() / out.step;
  return out;
}

double fit_stall(const Cluster& cluster, std::span<const MeasuredStep> steps) {
  const auto error = [&](double stall) {
    double sum = 0;
    for (const MeasuredStep& s : steps) {
      ScaleCase what = s.what;
      what.stall = stall;
      const double d = predict_step(*s.profile, cluster, what).step / s.seconds - 1;
      sum += d * d;
    }
    return sum;
  };
  double best = 0, least = error(0);
  for (int i = 1; i <= 400; ++i) {
    const double stall = i * 5e-4, e = error(stall);
    if (e < least) best = stall, least = e;
  }
  return best;
}

}  // namespace rwkv::bench
