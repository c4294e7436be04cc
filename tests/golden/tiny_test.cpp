// Logits, loss, intermediates and every gradient of a small model against rwkv7_tiny.h5 or
// rwkv4_tiny.h5, on the device under test, in every type of activations, for every WKV variant,
// with and without recomputation. Limits: tests/golden/README.md, column of the type.

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <map>

#include "model/graph/plan.h"
#include "tests/golden/golden_util.h"
#include "trainer/device_params.h"

namespace rwkv {
namespace {

/// All relative but loss.
struct Limits {
  double logits, loss, token_loss, layer;
  double exact, narrow;  ///< gradients: f64 tensors and projections; matrices stored in f32
};
Limits limits_of(DType dtype) {
  if (dtype == DType::kF32) return {5e-6, 5e-6, 5e-6, 1e-5, 2e-5, 3e-5};
  return {3e-2, 5e-3, 3e-2, 3e-2, 8e-2, 8e-2};
}

class Tiny : public testing::Test {
 protected:
  Tiny()
      : file(Hdf5File::open(golden::model_file("tiny"))),
        model(make_model(golden::model_config(file))),
        values(Device::kCpu, model->params(), "parameters"),
        zeros(Device::kCpu, model->params(), "no moments") {
    golden::load_params(file, "weights", *model, values);
    batch = golden::scalar(file, "config/B");
    tokens = golden::scalar(file, "config/T");
    layer = golden::scalar(file, "config/layer");
    sign = file.read<int8_t>("proj_sign");
  }
  void SetUp() override { RWKV_NEED_TEST_DEVICE(); }

  std::vector<golden::Setup> setups(bool state = false) const {
    return golden::setups(model->config(), batch, tokens, state);
  }

  /// The file's weights on the device, in the form that kernels of that type read.
  std::unique_ptr<DeviceParams> weights(Context& ctx, DType dtype) const {
    auto p = std::make_unique<DeviceParams>(ctx, model->params(), dtype, AdamWOptions{},
                                            std::vector<bool>{});
    p->upload(ctx, values, zeros, zeros);
    return p;
  }
  void fill(Context& ctx, const Plan& plan, const char* name, const char* dataset) const {
    golden::put(ctx, plan.input(name), std::span<const int32_t>(file.read<int32_t>(dataset)));
  }

  /// An intermediate under its name in the file. RWKV-4's gates are stored after the logistic
  /// function, which the graph computes where it multiplies.
  std::vector<float> layer_value(Context& ctx, const Plan& plan, const std::string& name) const {
    const bool gate = model->config().architecture == "rwkv4" && (name == "r" || name == "ffn_r");
    auto v = golden::fetch(ctx, plan.output("layer/" + name + (gate ? "_logit" : "")));
    if (gate)
      for (float& x : v) x = static_cast<float>(1 / (1 + std::exp(-static_cast<double>(x))));
    return v;
  }

  Hdf5File file;
  std::unique_ptr<Model> model;
  ParamStore values, zeros;
  int64_t batch = 0, tokens = 0, layer = 0;
  std::vector<int8_t> sign;
};

TEST_F(Tiny, LogitsAndIntermediates) {
  ASSERT_GE(setups().size(), 2u);
  for (const golden::Setup& setup : setups()) {
    SCOPED_TRACE(setup.name());
    const Limits limits = limits_of(setup.dtype);
    Context ctx(test::kTestDevice);
    const auto params = weights(ctx, setup.dtype);
    const Graph g = model->build({.batch = batch,
                                  .tokens = tokens,
                                  .mode = GraphOptions::Mode::kLogits,
                                  .wkv = setup.wkv,
                                  .device = test::kTestDevice,
                                  .dtype = setup.dtype,
                                  .expose_layer = layer});
    Plan plan = Plan::build(g, {.training = false});
    plan.bind(ctx, params->values(), {});
    fill(ctx, plan, "tokens", "tokens/x");
    plan.forward(ctx);
    const double error =
        golden::rel(file.read<double>("logits"), golden::fetch(ctx, plan.output("logits")));
    EXPECT_LE(error, limits.logits);
    std::printf("%s: logits %.2e", setup.name().c_str(), error);
    for (const std::string& name : file.list("layer")) {
      SCOPED_TRACE(name);
      const double e = golden::rel(file.read<float>("layer/" + name), layer_value(ctx, plan, name));
      EXPECT_LE(e, limits.layer);
      std::printf(" %s %.1e", name.c_str(), e);
    }
    std::printf("\n");
  }
}

TEST_F(Tiny, LossAndEveryGradient) {
  struct Mode {
    GradCheckpointing checkpointing;
    int64_t loss_chunk;
  };
  for (const golden::Setup& setup : setups())
    for (const bool l2wrap : {false, true})
      for (const Mode mode :
           {Mode{GradCheckpointing::kNone, 0}, Mode{GradCheckpointing::kBlock, 7}}) {
        SCOPED_TRACE(str(setup.name(), l2wrap ? ", with" : ", without", " L2Wrap, logits ",
                         mode.loss_chunk, " tokens at a time"));
        const Limits limits = limits_of(setup.dtype);
        Context ctx(test::kTestDevice);
        const auto params = weights(ctx, setup.dtype);
        const Graph g = model->build({.batch = batch,
                                      .tokens = tokens,
                                      .l2wrap = l2wrap,
                                      .loss_chunk_tokens = mode.loss_chunk,
                                      .wkv = setup.wkv,
                                      .device = test::kTestDevice,
                                      .dtype = setup.dtype});
        Plan plan = Plan::build(g, {.grad_checkpointing = mode.checkpointing});
        plan.bind(ctx, params->values(), params->grads());
        fill(ctx, plan, "tokens", "tokens/x");
        fill(ctx, plan, "targets", "tokens/y");
        plan.forward(ctx);
        const double loss = golden::fetch(ctx, plan.output("loss"))[0];
        EXPECT_LE(std::fabs(loss - file.read_scalar<double>("loss")), limits.loss);
        EXPECT_LE(golden::rel(file.read<double>("loss_per_token"),
                              golden::fetch(ctx, plan.output("token_loss"))),
                  limits.token_loss);
        plan.backward(ctx, 1.0f, true);

        const std::string group = l2wrap ? "grad_l2wrap" : "grad";
        size_t exact = 0, projected = 0;
        std::vector<double> errors;
        const auto check = [&](double error, double limit) {
          EXPECT_LE(error, limit);
          errors.push_back(error);
        };
        for (size_t i = 0; i < model->params().size(); ++i) {
          const ParamSpec& spec = model->params().specs()[i];
          SCOPED_TRACE(spec.name);
          // RWKV-7: layer 0's v0, v1, v2 have no gradient: nothing of the loss reaches them.
          const auto got = golden::fetch(ctx, params->grads()[i]);
          const std::string whole = group + "/" + spec.name;
          if (file.is_dataset(whole)) {
            const bool f64 = file.type(whole) == H5Type::kF64;
            check(golden::rel(file.read<double>(whole), got), f64 ? limits.exact : limits.narrow);
            ++exact;
          }
          const std::string proj = group + "_proj/" + spec.name;
          if (file.is_dataset(proj)) {
            check(golden::rel(file.read<double>(proj),
                              golden::project(got, spec.spec[0], spec.spec[1], sign)),
                  limits.exact);
            ++projected;
          }
          EXPECT_TRUE(file.is_dataset(whole) || file.is_dataset(proj));
        }
        // Every dataset of the file was compared with something.
        EXPECT_EQ(exact, file.list_datasets(group).size());
        EXPECT_EQ(projected, file.list_datasets(group + "_proj").size());
        std::ranges::sort(errors);
        std::printf("%s: loss off by %.1e, gradients median %.1e, worst %.1e\n",
                    setup.name().c_str(), loss - file.read_scalar<double>("loss"),
                    errors[errors.size() / 2], errors.back());
      }
}

/// The recurrent form, token by token and in pieces, gives the logits of the parallel form.
TEST_F(Tiny, RecurrentFormGivesTheSameLogits) {
  const auto reference = file.read<double>("logits");
  const auto ids = file.read<int32_t>("tokens/x");
  const auto vocab = static_cast<size_t>(model->config().vocab_size);
  for (const golden::Setup& setup : setups(true))
    for (const int64_t piece : {int64_t{1}, int64_t{5}, tokens}) {
      SCOPED_TRACE(str(setup.name(), ", ", piece, " tokens at a time"));
      std::vector<double> got(reference.size());
      std::map<int64_t, std::vector<float>> state;  // by index of state_specs
      const auto specs = model->state_specs(batch);
      for (size_t i = 0; i < specs.size(); ++i)
        state[static_cast<int64_t>(i)].assign(static_cast<size_t>(specs[i].spec.numel()),
                                              specs[i].initial);
      Context ctx(test::kTestDevice);
      const auto params = weights(ctx, setup.dtype);
      for (int64_t t = 0; t < tokens; t += piece) {
        const int64_t n = std::min(piece, tokens - t);
        const Graph g = model->build({.batch = batch,
                                      .tokens = n,
                                      .mode = GraphOptions::Mode::kLogits,
                                      .state = true,
                                      .wkv = setup.wkv,
                                      .device = test::kTestDevice,
                                      .dtype = setup.dtype});
        Plan plan = Plan::build(g, {.training = false});
        plan.bind(ctx, params->values(), {});
        std::vector<int32_t> part;
        for (int64_t b = 0; b < batch; ++b)
          part.insert(part.end(), ids.begin() + b * tokens + t, ids.begin() + b * tokens + t + n);
        golden::put(ctx, plan.input("tokens"), std::span<const int32_t>(part));
        for (size_t i = 0; i < specs.size(); ++i)
          golden::put(ctx, plan.input(specs[i].name),
                      std::span<const float>(state[static_cast<int64_t>(i)]));
        plan.forward(ctx);
        for (size_t i = 0; i < specs.size(); ++i)
          state[static_cast<int64_t>(i)] = golden::fetch(ctx, plan.output(specs[i].name));
        const auto logits = golden::fetch(ctx, plan.output("logits"));
        for (int64_t b = 0; b < batch; ++b)
          for (size_t k = 0; k < static_cast<size_t>(n) * vocab; ++k)
            got[static_cast<size_t>(b * tokens + t) * vocab + k] =
                logits[static_cast<size_t>(b * n) * vocab + k];
      }
      EXPECT_LE(golden::rel(reference, got), limits_of(setup.dtype).logits);
    }
}

}  // namespace
}  // namespace rwkv
