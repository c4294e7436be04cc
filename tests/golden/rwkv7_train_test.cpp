// Forty optimiser steps of a small RWKV-7 against rwkv7_train.h5: loss, gradient norm, learning
// rate and parameters. Limits: tests/golden/README.md, column f32.

#include <algorithm>
#include <cstring>
#include <map>

#include "model/graph/plan.h"
#include "tests/golden/golden_util.h"
#include "trainer/optimizer.h"
#include "trainer/schedule.h"

namespace rwkv {
namespace {

class TrainFile : public testing::TestWithParam<std::string> {
 protected:
  TrainFile()
      : file(Hdf5File::open(golden::path("rwkv7_train.h5"))),
        model(make_model(golden::model_config(file))),
        values(Device::kCpu, model->params(), "parameters"),
        init(Device::kCpu, model->params(), "initial parameters"),
        grads(Device::kCpu, model->params(), "gradients") {
    golden::load_params(file, "init", *model, values);
    golden::load_params(file, "init", *model, init);
    sign = file.read<int8_t>("proj_sign");
  }
  double recipe(const char* name) const {
    const std::string n = str("recipe/", name);
    return file.type(n) == H5Type::kI64 ? static_cast<double>(file.read_scalar<int64_t>(n))
                                        : file.read_scalar<double>(n);
  }

  std::vector<double> change(ParamId id) const {
    const auto p = golden::elements(values[id]), q = golden::elements(init[id]);
    std::vector<double> c(p.size());
    for (size_t i = 0; i < c.size(); ++i) c[i] = static_cast<double>(p[i]) - q[i];
    return c;
  }

  /// Rows 0, 8, 16, ... of a matrix.
  static std::vector<double> eighth_rows(const std::vector<double>& m, int64_t rows, int64_t cols) {
    std::vector<double> out;
    for (int64_t r = 0; r < rows; r += 8)
      out.insert(out.end(), m.begin() + r * cols, m.begin() + (r + 1) * cols);
    return out;
  }

  /// After the first step: entry by entry, since many changes are as small as rounding.
  void check_first_step(double lr) {
    size_t entries = 0, wrong = 0, compared = 0;
    for (size_t i = 0; i < model->params().size(); ++i) {
      const auto id = static_cast<ParamId>(i);
      const ParamSpec& spec = model->params()[id];
      SCOPED_TRACE(spec.name);
      const auto all = change(id);
      const auto p = golden::elements(values[id]);
      const int64_t cols = spec.spec[1];
      std::vector<double> stored, got, size;
      if (file.is_dataset("change_001/" + spec.name)) {
        stored = file.read<double>("change_001/" + spec.name);
        got = all;
        size.assign(p.begin(), p.end());
      } else {
        ASSERT_TRUE(file.is_dataset("change_001_rows/" + spec.name));
        stored = file.read<double>("change_001_rows/" + spec.name);
        got = eighth_rows(all, spec.spec[0], cols);
        size = eighth_rows({p.begin(), p.end()}, spec.spec[0], cols);
        const auto proj = file.read<double>("change_001_proj/" + spec.name);
        const std::vector<float> narrow(all.begin(), all.end());
        const auto sums = golden::project(narrow, spec.spec[0], cols, sign);
        double largest = 0;
        for (const float x : p) largest = std::max(largest, std::fabs(static_cast<double>(x)));
        const auto terms = static_cast<double>(std::max(spec.spec[0], cols));
        ASSERT_EQ(proj.size(), sums.size());
        for (size_t k = 0; k < proj.size(); ++k)
          ASSERT_LE(std::fabs(proj[k] - sums[k]), terms * (0x1p-23 * largest + 1e-3 * lr)) << k;
      }
      ++compared;
      ASSERT_EQ(stored.size(), got.size());
      for (size_t k = 0; k < stored.size(); ++k) {
        ++entries;
        if (stored[k] == 0) {
          ASSERT_EQ(got[k], 0) << "entry " << k << " moved";
        }
        const bool close =
            std::fabs(got[k] - stored[k]) <= 0x1p-23 * std::fabs(size[k]) + 1e-3 * lr;
        wrong += !close;
      }
    }
    EXPECT_EQ(compared, model->params().size());
    EXPECT_LE(static_cast<double>(wrong), 1e-4 * static_cast<double>(entries));
  }

  void check_change(const std::string& group) {
    size_t compared = 0;
    for (size_t i = 0; i < model->params().size(); ++i) {
      const auto id = static_cast<ParamId>(i);
      const ParamSpec& spec = model->params()[id];
      SCOPED_TRACE(spec.name);
      const auto all = change(id);
      if (const std::string n = group + "/" + spec.name; file.is_dataset(n)) {
        EXPECT_LE(golden::rel(file.read<double>(n), all), 1e-2);
        ++compared;
      }
      if (const std::string n = group + "_rows/" + spec.name; file.is_dataset(n)) {
        EXPECT_LE(golden::rel(file.read<double>(n), eighth_rows(all, spec.spec[0], spec.spec[1])),
                  1e-2);
        ++compared;
      }
      if (const std::string n = group + "_proj/" + spec.name; file.is_dataset(n)) {
        const std::vector<float> narrow(all.begin(), all.end());
        EXPECT_LE(golden::rel(file.read<double>(n),
                              golden::project(narrow, spec.spec[0], spec.spec[1], sign)),
                  1e-2);
        ++compared;
      }
    }
    size_t stored = 0;
    for (const char* kind : {"", "_rows", "_proj"})
      if (file.exists(group + kind)) stored += file.list_datasets(group + kind).size();
    EXPECT_EQ(compared, stored);
  }

  Hdf5File file;
  std::unique_ptr<Model> model;
  ParamStore values, init, grads;
  std::vector<int8_t> sign;
};

TEST_P(TrainFile, FollowsTheReference) {
  const int64_t batch = golden::scalar(file, "config/B"), tokens = golden::scalar(file, "config/T");
  const int64_t steps = golden::scalar(file, "config/steps");
  const auto stream = file.read<int32_t>("tokens/stream");
  ASSERT_EQ(static_cast<int64_t>(stream.size()), steps * batch * tokens + 1);
  const auto loss = file.read<double>("train/loss"), norms = file.read<double>("train/grad_norm"),
             rates = file.read<double>("train/lr");
  std::map<std::string, std::vector<double>> norm_of;
  for (const std::string& name : file.list_datasets("train/grad_norm_of"))
    norm_of[name] = file.read<double>("train/grad_norm_of/" + name);
  ASSERT_EQ(norm_of.size(), model->params().size());
  ASSERT_EQ(recipe("lr_factor_w0"), 2);

  Context ctx;
  const Graph g = model->build(
      {.batch = batch, .tokens = tokens, .l2wrap = recipe("l2wrap") != 0, .wkv = GetParam()});
  Plan plan = Plan::build(g, {});
  plan.bind(ctx, values.views(), grads.views());
  AdamW optimizer(Device::kCpu, model->params(),
                  {.beta1 = recipe("beta1"),
                   .beta2 = recipe("beta2"),
                   .eps = recipe("eps"),
                   .weight_decay = recipe("weight_decay"),
                   .clip = recipe("clip")},
                  plan.reached_params());
  const Schedule schedule{.kind = ScheduleKind::kCosine,
                          .lr = recipe("lr_init"),
                          .lr_final = recipe("lr_final"),
                          .warmup = static_cast<int64_t>(recipe("warmup")),
                          .warmup_start = 0.01,
                          .tokens_per_step = batch * tokens,
                          .exit_tokens = static_cast<int64_t>(recipe("exit_tokens"))};

  for (int64_t n = 0; n < steps; ++n) {
    SCOPED_TRACE(str("step ", n));
    const auto k = static_cast<size_t>(n);
    for (int64_t b = 0; b < batch; ++b) {
      const int32_t* from = &stream[static_cast<size_t>((n * batch + b) * tokens)];
      std::copy_n(from, tokens, plan.input("tokens").as<int32_t>() + b * tokens);
      std::copy_n(from + 1, tokens, plan.input("targets").as<int32_t>() + b * tokens);
    }
    plan.forward(ctx);
    plan.backward(ctx, 1, true);
    EXPECT_LE(std::fabs(*plan.output("loss").f32() - loss[k]), 2e-5);
    const double norm = optimizer.grad_norm(grads);
    EXPECT_LE(std::fabs(norm / norms[k] - 1), 5e-5);
    const double lr = schedule.at(n);
    EXPECT_LE(std::fabs(lr / rates[k] - 1), 1e-6);
    for (size_t i = 0; i < model->params().size(); ++i) {
      const auto id = static_cast<ParamId>(i);
      double sum = 0;
      for (const float x : golden::elements(grads[id])) sum += static_cast<double>(x) * x;
      const double wanted = norm_of.at(model->params()[id].name)[k];
      if (n == 0) {
        // Exactly zero behind a zero matrix, and close otherwise.
        EXPECT_LE(std::fabs(std::sqrt(sum) - wanted), 2e-5 * wanted) << model->params()[id].name;
      } else {
        // Later steps inherit what rounding did to the parameters; this only shows where a first
        // difference arises.
        EXPECT_LE(std::fabs(std::sqrt(sum) - wanted), 5e-2 * wanted) << model->params()[id].name;
      }
    }
    optimizer.step(values, grads, lr, norm);
    if (n == 0) check_first_step(lr);
    if (const std::string group = str("change_0", n + 1 < 10 ? "0" : "", n + 1);
        n > 0 && file.exists(group))
      check_change(group);
    if (HasFatalFailure()) return;
  }
}

INSTANTIATE_TEST_SUITE_P(Variants, TrainFile, testing::Values("serial", "chunk"),
                         [](const auto& i) { return i.param; });

}  // namespace
}  // namespace rwkv
