// The model behind rwkv-bench scale --simulate: fits, limits that can be told without it, and what
// two GPUs measured.

#include "tools/bench/scale_model.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "kernels/core/error.h"
#include "tools/bench/scale_simulate.h"

namespace rwkv::bench {
namespace {

StepProfile profile() {
  return {.forward = 5e-3,
          .backward = 11e-3,
          .optimizer = 1e-3,
          .other = 0.2e-3,
          .need = {0, 0.5e-3, 2e-3, 4e-3},
          .ready = {11e-3, 10e-3, 6e-3, 2e-3},
          .elements = {30e6, 20e6, 20e6, 30e6}};
}

Cluster cluster(double latency, double bandwidth) {
  Cluster c;
  c.reduce_scatter = c.all_gather = {.latency = latency, .bandwidth = bandwidth};
  c.hop = c.node_hop = 0;
  return c;
}

/// Nothing costs anything.
Cluster free_cluster() {
  Cluster c = cluster(0, 1e30);
  c.card = 1e30;
  return c;
}

TEST(CollectiveFit, FindsLatencyAndBandwidth) {
  std::vector<MeasuredCollective> points;
  for (double bytes = 1e5; bytes < 1e9; bytes *= 4) points.push_back({bytes, 20e-6 + bytes / 3e11});
  const LatencyBandwidth fit = fit_collective(points);
  EXPECT_NEAR(fit.latency, 20e-6, 1e-10);
  EXPECT_NEAR(fit.bandwidth, 3e11, 1e5);
  EXPECT_LT(fit.worst_error, 1e-6);
  EXPECT_NEAR(fit(6e8), 2020e-6, 1e-9);
  // Errors are relative: small exchanges count as much as large ones.
  points[0].seconds *= 1.5;
  EXPECT_GT(fit_collective(points).worst_error, 0.1);
  EXPECT_THROW(fit_collective(std::vector<MeasuredCollective>{{1, 1}}), ConfigError);
  EXPECT_THROW(fit_collective(std::vector<MeasuredCollective>{{1, 1}, {1, 1}}), ConfigError);
}

TEST(Ring, CostsWhatWasMeasuredAndMoreFartherAway) {
  Cluster c = cluster(10e-6, 300e9);
  c.hop = 2e-6, c.node_hop = 8e-6;
  EXPECT_EQ(ring_seconds(c, 1, 1e9, true), 0);
  EXPECT_DOUBLE_EQ(ring_seconds(c, 2, 1e9, true), 10e-6 + 0.5e9 / 300e9);
  EXPECT_DOUBLE_EQ(ring_seconds(c, 8, 1e9, false), 10e-6 + 6 * 2e-6 + 0.875e9 / 300e9);
  // Two nodes with eight cards of 45 GB/s still have more than NVLink's share; one card does not.
  EXPECT_DOUBLE_EQ(ring_seconds(c, 16, 1e9, false),
                   10e-6 + 13 * 2e-6 + 8e-6 + (1 - 1.0 / 16) * 1e9 / 300e9);
  c.cards_per_node = 1;
  EXPECT_DOUBLE_EQ(ring_seconds(c, 16, 1e9, false),
                   10e-6 + 13 * 2e-6 + 8e-6 + (1 - 1.0 / 16) * 1e9 / 45e9);
}

TEST(Prediction, FreeExchangesCostNothing) {
  const StepProfile p = profile();
  for (const int ranks : {2, 8, 1024}) {
    const auto plain = predict_step(p, free_cluster(), {.ranks = ranks, .zero = 0});
    EXPECT_NEAR(plain.efficiency, 1, 1e-9);
    EXPECT_NEAR(plain.step, p.alone(), 1e-12);
    for (const int zero : {1, 2}) {  // the optimizer's work is divided
      const auto sharded = predict_step(p, free_cluster(), {.ranks = ranks, .zero = zero});
      EXPECT_NEAR(sharded.step, p.alone() - p.optimizer * (1 - 1.0 / ranks), 1e-12);
    }
  }
  EXPECT_DOUBLE_EQ(predict_step(p, cluster(1, 1), {.ranks = 1, .zero = 1}).step, p.alone());
}

TEST(Prediction, WithoutOverlapTimesAdd) {
  const StepProfile p = profile();
  const Cluster c = cluster(0, 200e9);
  const auto r = predict_step(p, c, {.ranks = 4, .zero = 0, .overlap = false, .slowdown = 0.3});
  // Gradients there and back, f32, and the records of the norm.
  const double exchanges = 0.75 * (2 * 4 * 100e6 + 24 * 4) / 200e9;
  EXPECT_NEAR(r.exchange, exchanges, 1e-9);
  EXPECT_NEAR(r.step, p.alone() + exchanges, 1e-9);
  EXPECT_NEAR(r.efficiency, p.alone() / (p.alone() + exchanges), 1e-9);
}

TEST(Prediction, OnlyTheLastBucketIsExposedWhenExchangesAreQuick) {
  const StepProfile p = profile();
  const Cluster c = cluster(0, 200e9);
  const auto r = predict_step(p, c, {.ranks = 2, .zero = 0});
  const double last = 2 * 0.5 * 4 * 30e6 / 200e9;  // the embedding, complete at the very end
  EXPECT_NEAR(r.step, p.alone() + last, 2e-9);
  EXPECT_NEAR(r.waiting, last, 2e-9);
}

TEST(Prediction, SlowerLinksStagesAndSlowdownCost) {
  const StepProfile p = profile();
  double before = 0;
  for (const double bandwidth : {400e9, 100e9, 25e9, 5e9}) {
    const auto one = predict_step(p, cluster(10e-6, bandwidth), {.ranks = 8, .zero = 1});
    const auto two = predict_step(p, cluster(10e-6, bandwidth), {.ranks = 8, .zero = 2});
    EXPECT_GT(one.step, before);
    EXPECT_GE(two.step, one.step - 1e-12);
    before = one.step;
    // Never less than the longer of the two, nor more than both after each other.
    EXPECT_GE(one.step, std::max(one.exchange, p.forward + p.backward));
    EXPECT_LE(two.step, two.exchange + p.alone() + 1e-12);
  }
  const auto smooth = predict_step(p, cluster(0, 200e9), {.ranks = 2, .zero = 1});
  const auto slowed = predict_step(p, cluster(0, 200e9), {.ranks = 2, .zero = 1, .slowdown = 0.2});
  EXPECT_GT(slowed.step, smooth.step);
}

TEST(Prediction, StallsAreFoundAndNeverExceedTheExchange) {
  const StepProfile p = profile();
  const Cluster c = cluster(10e-6, 200e9);
  std::vector<MeasuredStep> steps;
  for (const int zero : {0, 1}) {
    const ScaleCase what{.ranks = 2, .zero = zero, .slowdown = 0.2};
    ScaleCase truth = what;
    truth.stall = 0.03;
    steps.push_back({&p, what, predict_step(p, c, truth).step});
  }
  EXPECT_NEAR(fit_stall(c, steps), 0.03, 1e-9);
  // Three of the four exchanges have kernels beside them; with a stall without end each costs what
  // it takes, and nothing is gained by overlap.
  const auto stalled = predict_step(p, c, {.ranks = 2, .zero = 0, .stall = 1e9});
  const auto after = predict_step(p, c, {.ranks = 2, .zero = 0, .overlap = false});
  EXPECT_NEAR(stalled.step, after.step, 1e-9);
}

std::vector<ScaleRecord> records_of_two(const std::vector<std::string>& names) {
  std::vector<ScaleRecord> out;
  for (const std::string& name : names)
    out.push_back(
        read_scale_record(RWKV_SOURCE_DIR "/tools/records/h200-scale-2" + name + ".json"));
  return out;
}

/// Distances of efficiencies from what was measured.
struct Misses {
  int rows = 0;
  double sum = 0;
  double mean() const { return sum / rows; }
};
Misses misses_of(const std::vector<ScaleRecord>& records, const ScaleFit& fit) {
  Misses m;
  for (const ScaleRecord& r : records)
    for (const ScaleRow& row : r.rows) {
      EXPECT_TRUE(row.alone);
      const auto p =
          predict_step(row.profile, fit.cluster,
                       case_of(r, row, fit, r.ranks, static_cast<int>(row.options.zero)));
      const double miss = std::fabs(p.efficiency - row.efficiency);
      EXPECT_LE(miss, 0.03) << row.shape << ", dist.zero " << static_cast<int>(row.options.zero)
                            << ": " << p.efficiency << ", measured " << row.efficiency;
      m.sum += miss;
      ++m.rows;
    }
  return m;
}

/// Fitted to the records themselves. Clocks drifted by one to two percent while they were made.
TEST(Prediction, FitsWhatTwoGpusMeasured) {
  const std::vector<ScaleRecord> by_kernels = records_of_two({"", "-1b5"}),
                                 by_copies =
                                     records_of_two({"-copies", "-1b5-copies", "-2b9-copies"});
  for (const ScaleRecord& r : by_kernels) EXPECT_FALSE(r.copy_engines);
  for (const ScaleRecord& r : by_copies) EXPECT_TRUE(r.copy_engines);
  const ScaleFit kernels = fit_records(by_kernels, false), copies = fit_records(by_copies, true);
  for (const ScaleFit& fit : {kernels, copies})
    for (const LatencyBandwidth& c : {fit.cluster.reduce_scatter, fit.cluster.all_gather}) {
      EXPECT_GT(c.bandwidth, 150e9);
      EXPECT_LT(c.bandwidth, 450e9);
    }
  // Copies leave kernels more of the multiprocessors, and take longer to start.
  EXPECT_GT(copies.stall, 0);
  EXPECT_LT(copies.stall, kernels.stall);
  EXPECT_GT(copies.cluster.reduce_scatter.latency, kernels.cluster.reduce_scatter.latency);
  const Misses of_kernels = misses_of(by_kernels, kernels),
               of_copies = misses_of(by_copies, copies);
  EXPECT_EQ(of_kernels.rows, 5);
  EXPECT_LE(of_kernels.mean(), 0.01);
  EXPECT_EQ(of_copies.rows, 6);
  EXPECT_LE(of_copies.mean(), 0.01);
}

TEST(Prediction, EachWayToExchangeHasAFitOfItsOwn) {
  std::vector<ScaleRecord> all = records_of_two({"", "-copies"});
  for (const bool copies : {false, true}) {
    const ScaleFit both = fit_records(all, copies),
                   one = fit_records({all[copies ? 1 : 0]}, copies);
    EXPECT_EQ(both.stall, one.stall);
    EXPECT_EQ(both.cluster.all_gather.bandwidth, one.cluster.all_gather.bandwidth);
    EXPECT_THROW(fit_records({all[copies ? 0 : 1]}, copies), ConfigError);
  }
}

// What was fitted to parcels of 16M says what other sizes do.
TEST(Prediction, ForeseesParcelsOfOtherSizes) {
  const ScaleFit fit = fit_records(records_of_two({"", "-1b5"}), false);
  std::map<std::string, std::map<std::string, double>> predicted, measured;  // by shape and parcel
  double sum = 0;
  int rows = 0;
  for (const std::string file : {"-parcel0", "-parcel16m", "-parcel64m", "-1b5-parcel0",
                                 "-1b5-parcel128m", "-1b5-parcel256m"}) {
    const ScaleRecord r = records_of_two({file}).front();
    for (const ScaleRow& row : r.rows) {
      const auto p = predict_step(row.profile, fit.cluster, case_of(r, row, fit, r.ranks, 1));
      EXPECT_NEAR(p.efficiency, row.efficiency, 0.03) << file << " " << row.shape;
      predicted[row.shape][file] = p.efficiency;
      measured[row.shape][file] = row.efficiency;
      sum += std::fabs(p.efficiency - row.efficiency);
      ++rows;
    }
  }
  EXPECT_EQ(rows, 9);
  EXPECT_LE(sum / rows, 0.015);
  for (auto* of : {&predicted, &measured}) {
    auto& small = (*of)["512x16"];
    EXPECT_GT(small["-parcel64m"], small["-parcel16m"] + 0.01);
    EXPECT_GT(small["-parcel16m"], small["-parcel0"]);
    EXPECT_GT((*of)["4096x4"]["-1b5-parcel256m"], (*of)["4096x4"]["-1b5-parcel0"] + 0.01);
  }
}

}  // namespace
}  // namespace rwkv::bench
