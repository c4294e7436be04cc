// Logits, loss, intermediates and every gradient of a small RWKV-7 against rwkv7_tiny.h5, for
// every WKV variant, with and without recomputation. Limits: tests/golden/README.md, column f32.

#include <algorithm>
#include <cstring>
#include <map>

#include "kernels/wkv/wkv.h"
#include "model/graph/plan.h"
#include "tests/golden/golden_util.h"

namespace rwkv {
namespace {

class Tiny : public testing::Test {
 protected:
  Tiny()
      : file(Hdf5File::open(golden::path("rwkv7_tiny.h5"))),
        model(make_model(golden::model_config(file))),
        values(Device::kCpu, model->params(), "parameters"),
        grads(Device::kCpu, model->params(), "gradients") {
    golden::load_params(file, "weights", *model, values);
    batch = golden::scalar(file, "config/B");
    tokens = golden::scalar(file, "config/T");
    layer = golden::scalar(file, "config/layer");
    sign = file.read<int8_t>("proj_sign");
  }

  void fill(const Plan& plan, const char* name, const char* dataset) const {
    const auto ids = file.read<int32_t>(dataset);
    const TensorView v = plan.input(name);
    ASSERT_EQ(static_cast<size_t>(v.numel()), ids.size());
    std::memcpy(v.data, ids.data(), v.bytes());
  }

  /// The variants that fit the file's shape.
  std::vector<std::string> variants(bool state = false) const {
    std::vector<std::string> names;
    for (const WkvKernel* k : all_wkv_kernels()) {
      if (k->op != "wkv7" || k->device != Device::kCpu || k->io != DType::kF32) continue;
      const WkvShape shape{batch, tokens, model->config().n_head(), model->config().head_size,
                           state};
      try {
        select_wkv("wkv7", Device::kCpu, DType::kF32, shape, k->name);
        names.emplace_back(k->name);
      } catch (const ConfigError&) {
        // Does not fit this shape (a multiple of T, say); the other files cover it.
      }
    }
    return names;
  }

  Hdf5File file;
  std::unique_ptr<Model> model;
  ParamStore values, grads;
  int64_t batch = 0, tokens = 0, layer = 0;
  std::vector<int8_t> sign;
};

TEST_F(Tiny, LogitsAndIntermediates) {
  ASSERT_GE(variants().size(), 2u);
  for (const std::string& wkv : variants()) {
    SCOPED_TRACE(wkv);
    Context ctx;
    const Graph g = model->build({.batch = batch,
                                  .tokens = tokens,
                                  .mode = GraphOptions::Mode::kLogits,
                                  .wkv = wkv,
                                  .expose_layer = layer});
    Plan plan = Plan::build(g, {.training = false});
    plan.bind(ctx, values.views(), {});
    fill(plan, "tokens", "tokens/x");
    plan.forward(ctx);
    EXPECT_LE(golden::rel(file.read<double>("logits"), golden::elements(plan.output("logits"))),
              5e-6);
    for (const std::string& name : file.list("layer")) {
      SCOPED_TRACE(name);
      EXPECT_LE(golden::rel(file.read<float>("layer/" + name),
                            golden::elements(plan.output("layer/" + name))),
                1e-5);
    }
  }
}

TEST_F(Tiny, LossAndEveryGradient) {
  struct Mode {
    GradCheckpointing checkpointing;
    int64_t loss_chunk;
  };
  for (const std::string& wkv : variants())
    for (const bool l2wrap : {false, true})
      for (const Mode mode :
           {Mode{GradCheckpointing::kNone, 0}, Mode{GradCheckpointing::kBlock, 7}}) {
        SCOPED_TRACE(str(wkv, l2wrap ? ", with" : ", without", " L2Wrap, logits ", mode.loss_chunk,
                         " tokens at a time"));
        Context ctx;
        const Graph g = model->build({.batch = batch,
                                      .tokens = tokens,
                                      .l2wrap = l2wrap,
                                      .loss_chunk_tokens = mode.loss_chunk,
                                      .wkv = wkv});
        Plan plan = Plan::build(g, {.grad_checkpointing = mode.checkpointing});
        plan.bind(ctx, values.views(), grads.views());
        fill(plan, "tokens", "tokens/x");
        fill(plan, "targets", "tokens/y");
        grads.zero();
        plan.forward(ctx);
        EXPECT_LE(std::fabs(*plan.output("loss").f32() - file.read_scalar<double>("loss")), 5e-6);
        EXPECT_LE(golden::rel(file.read<double>("loss_per_token"),
                              golden::elements(plan.output("token_loss"))),
                  5e-6);
        plan.backward(ctx, 1.0f, true);

        const std::string group = l2wrap ? "grad_l2wrap" : "grad";
        size_t exact = 0, projected = 0;
        for (size_t i = 0; i < model->params().size(); ++i) {
          const ParamSpec& spec = model->params().specs()[i];
          SCOPED_TRACE(spec.name);
          const auto got = golden::elements(grads[static_cast<ParamId>(i)]);
          const std::string whole = group + "/" + spec.name;
          if (file.is_dataset(whole)) {
            const bool f64 = file.type(whole) == H5Type::kF64;
            EXPECT_LE(golden::rel(file.read<double>(whole), got), f64 ? 2e-5 : 3e-5);
            ++exact;
          }
          const std::string proj = group + "_proj/" + spec.name;
          if (file.is_dataset(proj)) {
            EXPECT_LE(golden::rel(file.read<double>(proj),
                                  golden::project(got, spec.spec[0], spec.spec[1], sign)),
                      2e-5);
            ++projected;
          }
          EXPECT_TRUE(file.is_dataset(whole) || file.is_dataset(proj));
        }
        // Every dataset of the file was compared with something.
        EXPECT_EQ(exact, file.list_datasets(group).size());
        EXPECT_EQ(projected, file.list_datasets(group + "_proj").size());
      }
}

/// The recurrent form, token by token and in pieces, gives the logits of the parallel form.
TEST_F(Tiny, RecurrentFormGivesTheSameLogits) {
  const auto reference = file.read<double>("logits");
  const auto ids = file.read<int32_t>("tokens/x");
  const auto vocab = static_cast<size_t>(model->config().vocab_size);
  for (const int64_t piece : {int64_t{1}, int64_t{5}, tokens})
    for (const std::string& wkv : {std::string("serial"), std::string("chunk")}) {
      SCOPED_TRACE(str(wkv, ", ", piece, " tokens at a time"));
      std::vector<double> got(reference.size());
      std::map<int64_t, std::vector<float>> state;  // by index of state_specs
      const auto specs = model->state_specs(batch);
      for (size_t i = 0; i < specs.size(); ++i)
        state[static_cast<int64_t>(i)].assign(static_cast<size_t>(specs[i].spec.numel()), 0.0f);
      for (int64_t t = 0; t < tokens; t += piece) {
        const int64_t n = std::min(piece, tokens - t);
        Context ctx;
        const Graph g = model->build({.batch = batch,
                                      .tokens = n,
                                      .mode = GraphOptions::Mode::kLogits,
                                      .state = true,
                                      .wkv = wkv});
        Plan plan = Plan::build(g, {.training = false});
        plan.bind(ctx, values.views(), {});
        for (int64_t b = 0; b < batch; ++b)
          std::memcpy(plan.input("tokens").as<int32_t>() + b * n,
                      &ids[static_cast<size_t>(b * tokens + t)],
                      static_cast<size_t>(n) * sizeof(int32_t));
        for (size_t i = 0; i < specs.size(); ++i)
          std::ranges::copy(state[static_cast<int64_t>(i)], plan.input(specs[i].name).f32());
        plan.forward(ctx);
        for (size_t i = 0; i < specs.size(); ++i) {
          const auto out = golden::elements(plan.output(specs[i].name));
          std::ranges::copy(out, state[static_cast<int64_t>(i)].begin());
        }
        const float* logits = plan.output("logits").f32();
        for (int64_t b = 0; b < batch; ++b)
          for (size_t k = 0; k < static_cast<size_t>(n) * vocab; ++k)
            got[static_cast<size_t>(b * tokens + t) * vocab + k] =
                logits[static_cast<size_t>(b * n) * vocab + k];
      }
      EXPECT_LE(golden::rel(reference, got), 5e-6);
    }
}

}  // namespace
}  // namespace rwkv
