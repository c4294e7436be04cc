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

/// Fitted to the records themselves. Clocks drifted by one to two percent while they were made.
TEST(Prediction, FitsWhatTwoGpusMeasured) {
  const std::string folder = RWKV_SOURCE_DIR "/tools/records/h200-scale-2";
  const std::vector<ScaleRecord> records = {read_scale_record(folder + ".json"),
                                            read_scale_record(folder + "-1b5.json")};
  const ScaleFit fit = fit_records(records);
  EXPECT_GT(fit.cluster.all_gather.bandwidth, 150e9);
  EXPECT_LT(fit.cluster.all_gather.bandwidth, 450e9);
  EXPECT_GT(fit.stall, 0);
  int rows = 0;
  double sum = 0;
  for (const ScaleRecord& r : records)
    for (const ScaleRow& row : r.rows) {
      ASSERT_TRUE(row.alone);
      const auto p =
          predict_step(row.profile, fit.cluster,
                       case_of(r, row, fit, r.ranks, static_cast<int>(row.options.zero)));
      EXPECT_NEAR(p.efficiency, row.efficiency, 0.03) << row.shape;
      sum += std::fabs(p.efficiency - row.efficiency);
      ++rows;
    }
  EXPECT_EQ(rows, 5);
  EXPECT_LE(sum / rows, 0.01);
}

// What was fitted to parcels of 16M says what other sizes do.
TEST(Prediction, ForeseesParcelsOfOtherSizes) {
  const std::string folder = RWKV_SOURCE_DIR "/tools/records/h200-scale-2";
  const ScaleFit fit =
      fit_records({read_scale_record(folder + ".json"), read_scale_record(folder + "-1b5.json")});
  std::map<std::string, std::map<std::string, double>> predicted, measured;  // by shape and parcel
  double sum = 0;
  int rows = 0;
  for (const std::string file : {"-parcel0", "-parcel16m", "-parcel64m", "-1b5-parcel0",
                                 "-1b5-parcel128m", "-1b5-parcel256m"}) {
    const ScaleRecord r = read_scale_record(folder + file + ".json");
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
