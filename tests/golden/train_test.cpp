// Forty optimiser steps of a small model against rwkv7_train.h5 or rwkv4_train.h5 by the training
// step of the trainer, on the device under test and in every type of activations: loss, gradient
// norms, learning rate and parameters. Limits: tests/golden/README.md, column of the type.

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <map>
#include <set>

#include "kernels/core/gemm.h"
#include "model/graph/plan.h"
#include "tests/golden/golden_util.h"
#include "trainer/device_params.h"
#include "trainer/schedule.h"
#include "trainer/train_step.h"

namespace rwkv {
namespace {

struct Limits {
  double loss, norm, tensor_norm;  ///< absolute; relative; relative, of single tensors at step 0
};
Limits limits_of(DType dtype) {
  if (dtype == DType::kF32) return {2e-5, 5e-5, 2e-5};
  return {4e-2, 8e-2, 8e-2};
}

/// Sums for a cosine between changes.
struct Cosine {
  double dot = 0, a = 0, b = 0;
  template <class A, class B>
  void add(const A& x, const B& y) {
    for (size_t i = 0; i < x.size(); ++i) {
      dot += static_cast<double>(x[i]) * static_cast<double>(y[i]);
      a += static_cast<double>(x[i]) * static_cast<double>(x[i]);
      b += static_cast<double>(y[i]) * static_cast<double>(y[i]);
    }
  }
  void add(const Cosine& c) { dot += c.dot, a += c.a, b += c.b; }
  double value() const { return a == 0 && b == 0 ? 1 : dot / std::sqrt(a * b); }
};

class TrainFile : public testing::Test {
 protected:
  TrainFile()
      : file(Hdf5File::open(golden::model_file("train"))),
        model(make_model(golden::model_config(file))),
        values(Device::kCpu, model->params(), "parameters"),
        init(Device::kCpu, model->params(), "initial parameters") {
    golden::load_params(file, "init", *model, init);
    sign = file.read<int8_t>("proj_sign");
    batch = golden::scalar(file, "config/B");
    tokens = golden::scalar(file, "config/T");
    steps = golden::scalar(file, "config/steps");
    stream = file.read<int32_t>("tokens/stream");
  }
  void SetUp() override { RWKV_NEED_TEST_DEVICE(); }

  /// The first variant of each family and type.
  std::vector<golden::Setup> setups() const {
    std::vector<golden::Setup> found;
    std::set<std::string> seen;
    for (const auto& s : golden::setups(model->config(), batch, tokens)) {
      const std::string rest = s.wkv.substr(s.wkv.find('.', s.wkv.find('.') + 1) + 1);
      const std::string family = rest.substr(0, rest.find_first_of("0123456789."));
      if (seen.insert(str(dtype_name(s.dtype), family)).second) found.push_back(s);
    }
    return found;
  }

  double recipe(const std::string& name) const {
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

  /// After the first step: entry by entry, since many changes are as small as rounding. In bf16
  /// the size of a change tells nothing yet, but what has no gradient must not move.
  void check_first_step(double lr, bool only_zeros) {
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
        for (size_t k = 0; k < proj.size() && !only_zeros; ++k)
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
    if (!only_zeros) {
      EXPECT_LE(static_cast<double>(wrong), 1e-4 * static_cast<double>(entries));
    }
  }

  void check_change(const std::string& group, DType dtype) {
    size_t compared = 0;
    Cosine all_tensors;
    double worst_cosine = 1, worst_rel = 0;
    std::string worst_name;
    for (size_t i = 0; i < model->params().size(); ++i) {
      const auto id = static_cast<ParamId>(i);
      const ParamSpec& spec = model->params()[id];
      SCOPED_TRACE(spec.name);
      const auto all = change(id);
      Cosine tensor;
      const auto compare = [&](const std::string& name, const auto& got) {
        const auto want = file.read<double>(name);
        ASSERT_EQ(want.size(), got.size());
        ++compared;
        tensor.add(want, got);
        const double rel = golden::rel(want, got);
        worst_rel = std::max(worst_rel, rel);
        if (dtype == DType::kF32) {
          EXPECT_LE(rel, 1e-2);
        }
      };
      if (const std::string n = group + "/" + spec.name; file.is_dataset(n)) compare(n, all);
      if (const std::string n = group + "_rows/" + spec.name; file.is_dataset(n))
        compare(n, eighth_rows(all, spec.spec[0], spec.spec[1]));
      if (const std::string n = group + "_proj/" + spec.name; file.is_dataset(n)) {
        const std::vector<float> narrow(all.begin(), all.end());
        compare(n, golden::project(narrow, spec.spec[0], spec.spec[1], sign));
      }
      EXPECT_GT(tensor.value(), 0.5);
      if (tensor.value() < worst_cosine) worst_cosine = tensor.value(), worst_name = spec.name;
      all_tensors.add(tensor);
    }
    EXPECT_GT(all_tensors.value(), 0.95);
    std::printf("%s: cosine %.5f, worst %.5f (%s); largest relative difference %.1e\n",
                group.c_str(), all_tensors.value(), worst_cosine, worst_name.c_str(), worst_rel);
    size_t stored = 0;
    for (const char* kind : {"", "_rows", "_proj"})
      if (file.exists(group + kind)) stored += file.list_datasets(group + kind).size();
    EXPECT_EQ(compared, stored);
  }

  /// The file's factors of the learning rate are those of the model's tensors, and all others 1.
  void check_lr_factors() {
    for (const ParamSpec& spec : model->params().specs()) {
      const std::string factor = "lr_factor_" + spec.name.substr(spec.name.rfind('.') + 1);
      EXPECT_EQ(spec.lr_scale, file.exists("recipe/" + factor) ? recipe(factor) : 1) << spec.name;
    }
    size_t scaled = 0, factors = 0;
    for (const ParamSpec& spec : model->params().specs()) scaled += spec.lr_scale != 1;
    for (const std::string& name : file.list_datasets("recipe"))
      factors += name.starts_with("lr_factor_");
    EXPECT_EQ(scaled, factors * static_cast<size_t>(model->config().n_layer));
  }

  Schedule schedule() const {
    const bool v4 = model->config().architecture == "rwkv4";
    Schedule s{.kind = v4 ? ScheduleKind::kExponential : ScheduleKind::kCosine,
               .lr = recipe("lr_init"),
               .lr_final = recipe("lr_final"),
               .warmup = static_cast<int64_t>(recipe("warmup")),
               .warmup_start = v4 ? 0.2 : 0.01,
               .tokens_per_step = batch * tokens};
    s.exit_tokens =
        static_cast<int64_t>(v4 ? recipe("total_steps") * static_cast<double>(s.tokens_per_step)
                                : recipe("exit_tokens"));
    return s;
  }

  void follow(const golden::Setup& setup);

  Hdf5File file;
  std::unique_ptr<Model> model;
  ParamStore values, init;
  std::vector<int8_t> sign;
  std::vector<int32_t> stream;
  int64_t batch = 0, tokens = 0, steps = 0;
};

/// Forward and backward beside the prepared training step, which shows no gradients of tensors. It
/// starts from the step's f32 masters, so a loss of other bits means that the step does not: its
/// bf16 copies would not be the rounded masters, say.
class Twin {
 public:
  Twin(TrainStep& step, const GraphOptions& options)
      : ctx_(options.device),
        graph_(step.model().build(options)),
        plan_(Plan::build(graph_, {})),
        params_(ctx_, step.model().params(), options.dtype, {}, {}),
        zeros_(Device::kCpu, step.model().params(), "no moments") {
    // The same algorithms for the same products.
    import_gemm_algorithms(ctx_, export_gemm_algorithms(step.context()));
    plan_.bind(ctx_, params_.values(), params_.grads());
  }
  float run(const ParamStore& values, std::span<const int32_t> x, std::span<const int32_t> y) {
    params_.upload(ctx_, values, zeros_, zeros_);
    golden::put(ctx_, plan_.input("tokens"), x);
    golden::put(ctx_, plan_.input("targets"), y);
    plan_.forward(ctx_);
    plan_.backward(ctx_, 1, true);
    return golden::fetch(ctx_, plan_.output("loss"))[0];
  }
  double grad_norm(size_t param) {
    double sum = 0;
    for (const float x : golden::fetch(ctx_, params_.grads()[param]))
      sum += static_cast<double>(x) * x;
    return std::sqrt(sum);
  }

 private:
  Context ctx_;
  Graph graph_;
  Plan plan_;
  DeviceParams params_;
  ParamStore zeros_;
};

void TrainFile::follow(const golden::Setup& setup) {
  const Limits limits = limits_of(setup.dtype);
  const auto loss = file.read<double>("train/loss"), norms = file.read<double>("train/grad_norm"),
             rates = file.read<double>("train/lr");
  std::map<std::string, std::vector<double>> norm_of;
  for (const std::string& name : file.list_datasets("train/grad_norm_of"))
    norm_of[name] = file.read<double>("train/grad_norm_of/" + name);
  ASSERT_EQ(norm_of.size(), model->params().size());
  check_lr_factors();

  TrainStepOptions options;
  options.batch = batch;
  options.tokens = tokens;
  options.l2wrap = recipe("l2wrap") != 0;
  options.wkv = setup.wkv;
  options.optimizer = {.beta1 = recipe("beta1"),
                       .beta2 = recipe("beta2"),
                       .eps = recipe("eps"),
                       .weight_decay = recipe("weight_decay"),
                       .clip = recipe("clip")};
  options.device = test::kTestDevice;
  options.dtype = setup.dtype;
  TrainStep step(model->config(), options);
  step.allocate();
  golden::load_params(file, "init", *model, step.values());
  step.upload();
  step.prepare();
  Twin twin(step, {.batch = batch,
                   .tokens = tokens,
                   .l2wrap = options.l2wrap,
                   .wkv = setup.wkv,
                   .device = options.device,
                   .dtype = options.dtype});
  const Schedule schedule = this->schedule();

  double worst_loss = 0, worst_norm = 0;
  for (int64_t n = 0; n < steps; ++n) {
    SCOPED_TRACE(str("step ", n));
    const auto k = static_cast<size_t>(n);
    for (int64_t b = 0; b < batch; ++b) {
      const int32_t* from = &stream[static_cast<size_t>((n * batch + b) * tokens)];
      std::copy_n(from, tokens, step.tokens().begin() + b * tokens);
      std::copy_n(from + 1, tokens, step.targets().begin() + b * tokens);
    }
    const float twin_loss = twin.run(step.values(), step.tokens(), step.targets());
    step.accumulate(0);
    const double lr = schedule.at(n);
    EXPECT_LE(std::fabs(lr / rates[k] - 1), 1e-6);
    const TrainStep::Result r = step.finish(lr);
    ASSERT_TRUE(r.finite);
    EXPECT_EQ(static_cast<float>(r.loss), twin_loss);
    EXPECT_LE(std::fabs(r.loss - loss[k]), limits.loss);
    EXPECT_LE(std::fabs(r.grad_norm / norms[k] - 1), limits.norm);
    worst_loss = std::max(worst_loss, std::fabs(r.loss - loss[k]));
    worst_norm = std::max(worst_norm, std::fabs(r.grad_norm / norms[k] - 1));
    for (size_t i = 0; i < model->params().size(); ++i) {
      const std::string& name = model->params().specs()[i].name;
      const double got = twin.grad_norm(i), wanted = norm_of.at(name)[k];
      if (n == 0) {
        // Exactly zero behind a zero matrix, and close otherwise.
        EXPECT_LE(std::fabs(got - wanted), limits.tensor_norm * wanted) << name;
      } else if (setup.dtype == DType::kF32) {
        // Later steps inherit what rounding did to the parameters; this only shows where a first
        // difference arises.
        EXPECT_LE(std::fabs(got - wanted), 5e-2 * wanted) << name;
      }
    }
    step.download();
    std::ranges::copy(step.values().flat(), values.flat().begin());
    if (n == 0) check_first_step(lr, setup.dtype != DType::kF32);
    if (const std::string group = str("change_0", n + 1 < 10 ? "0" : "", n + 1);
        n > 0 && file.exists(group))
      check_change(group, setup.dtype);
    if (HasFatalFailure()) return;
  }
  std::printf("%s: largest difference of a loss %.1e, of a gradient norm %.1e\n",
              setup.name().c_str(), worst_loss, worst_norm);
}

TEST_F(TrainFile, FollowsTheReference) {
  ASSERT_EQ(static_cast<int64_t>(stream.size()), steps * batch * tokens + 1);
  ASSERT_GE(setups().size(), 2u);
  for (const golden::Setup& setup : setups()) {
    SCOPED_TRACE(setup.name());
    follow(setup);
  }
}

}  // namespace
}  // namespace rwkv
