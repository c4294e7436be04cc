// Initial values, parameter groups and registry of the model; weight files.

#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <filesystem>

#include "data/io/hdf5_file.h"
#include "kernels/core/parallel.h"
#include "kernels/core/rng.h"
#include "kernels/cpu/orthonormal.h"
#include "model/init.h"
#include "model/rwkv.h"
#include "model/state.h"
#include "model/weights.h"

namespace rwkv {
namespace {

ModelConfig small() {
  ModelConfig c;
  c.n_layer = 3;
  c.n_embd = 128;
  c.vocab_size = 300;
  return c;
}

std::span<float> tensor(const Model& m, const ParamStore& s, const std::string& name) {
  const auto id = m.params().find(name);
  EXPECT_TRUE(id.has_value()) << name;
  const TensorView v = s[*id];
  return {v.f32(), static_cast<size_t>(v.numel())};
}

/// Largest deviation of the rows' (or columns') inner products from gain^2 times the identity.
double orthogonality_error(std::span<const float> w, int64_t rows, int64_t cols, double gain) {
  const bool wide = rows < cols;
  const int64_t m = wide ? rows : cols, n = wide ? cols : rows;
  double worst = 0;
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j <= i; ++j) {
      double dot = 0;
      for (int64_t k = 0; k < n; ++k)
        dot += static_cast<double>(w[static_cast<size_t>(wide ? i * cols + k : k * cols + i)]) *
               w[static_cast<size_t>(wide ? j * cols + k : k * cols + j)];
      const double off = std::fabs(dot / (gain * gain) - (i == j));
      if (!(off <= worst)) worst = off;  // a NaN stays
    }
  return worst;
}

TEST(Init, OrthogonalMatricesAreOrthogonal) {
  for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{1, 1},
                                   {5, 5},
                                   {128, 128},
                                   {257, 64},
                                   {64, 257},
                                   {300, 299},
                                   {512, 300}}) {
    std::vector<float> w(static_cast<size_t>(rows * cols));
    init_orthogonal(w, rows, cols, 0.7, 11, "test");
    EXPECT_LE(orthogonality_error(w, rows, cols, 0.7), 3e-7) << rows << " x " << cols;
  }
}

TEST(Init, DoesNotDependOnThreads) {
  std::vector<float> a(200 * 96), b(200 * 96);
  const int before = num_threads();
  set_num_threads(1);
  init_orthogonal(a, 200, 96, 1, 5, "x");
  set_num_threads(3);
  init_orthogonal(b, 200, 96, 1, 5, "x");
  set_num_threads(before);
  EXPECT_EQ(0, std::memcmp(a.data(), b.data(), a.size() * sizeof(float)));
}

TEST(Init, BothFactorisationsGiveTheSameNumbers) {
  for (const auto& [n, m] : {std::pair<int64_t, int64_t>{1, 1},
                             {2, 1},
                             {9, 9},
                             {40, 17},
                             {130, 129},
                             {300, 65},
                             {520, 260}}) {
    const Rng rng(3, 4);
    const auto at = [](int64_t i) { return static_cast<size_t>(i); };
    std::vector<double> rows(at(n * m)), columns(at(n * m));
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < m; ++j)
        rows[at(i * m + j)] = columns[at(j * n + i)] = rng.normal(static_cast<uint64_t>(i * m + j));
    cpu::orthonormal_by_cholesky(rows.data(), n, m);
    cpu::orthonormal_by_householder(columns.data(), n, m, n);
    double diff = 0, off = 0;
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < m; ++j)
        diff = std::max(diff, std::fabs(rows[at(i * m + j)] - columns[at(j * n + i)]));
    for (int64_t i = 0; i < m; ++i)
      for (int64_t j = 0; j <= i; ++j) {
        double dot = 0;
        for (int64_t k = 0; k < n; ++k) dot += columns[at(i * n + k)] * columns[at(j * n + k)];
        off = std::max(off, std::fabs(dot - (i == j)));
      }
    EXPECT_LE(diff, 1e-11) << n << " x " << m;
    EXPECT_LE(off, 1e-13) << n << " x " << m;
  }
}

TEST(Init, SharesOfRanksHaveEveryTensorOnce) {
  ModelConfig c = small();
  c.n_layer = 12;
  const auto model = make_model(c);
  const std::vector<InitTensor> all = model->initial_values({.seed = 1});
  EXPECT_EQ(all.size(), model->params().size());
  double total = 0;
  for (const InitTensor& t : all) total += t.cost;
  for (const int ranks : {1, 2, 3, 4}) {
    std::vector<int> seen(model->params().size());
    for (int r = 0; r < ranks; ++r) {
      double load = 0;
      for (const InitTensor& t : init_share(all, r, ranks)) {
        ++seen[static_cast<size_t>(t.id)];
        load += t.cost;
      }
      EXPECT_LE(load, 1.2 * total / ranks) << r << " of " << ranks;
    }
    for (const int n : seen) EXPECT_EQ(n, 1);
  }
}

TEST(Init, MemoryIsThatOfValuesAndOfWorkspacesAtATime) {
  ParamRegistry params;
  std::vector<InitTensor> tensors;
  const auto add = [&](double cost, size_t workspace) {
    const ParamId id = params.add({.name = str("p", tensors.size()), .spec = TensorSpec({10})});
    tensors.push_back({id, cost, workspace, nullptr});
  };
  add(1, 20), add(1, 10), add(100, 45), add(1, 30);
  const int before = num_threads();
  set_num_threads(2);
  EXPECT_EQ(fill_bytes(tensors, params), 4 * 40 + 20 + 30);  // two small ones at a time
  tensors[2].workspace = 60;                                 // by both threads, before the others
  EXPECT_EQ(fill_bytes(tensors, params), 4 * 40 + 60);
  tensors[2].workspace = 45;
  set_num_threads(8);
  EXPECT_EQ(fill_bytes(tensors, params), 4 * 40 + 20 + 10 + 30);
  EXPECT_EQ(fill_bytes({}, params), 0u);
  set_num_threads(before);
}

TEST(Init, AModelDoesNotDependOnThreads) {
  const auto model = make_model(small());
  ParamStore a(Device::kCpu, model->params(), "p"), b(Device::kCpu, model->params(), "p");
  const int before = num_threads();
  set_num_threads(1);
  model->init_params(a, {.seed = 5});
  set_num_threads(3);
  model->init_params(b, {.seed = 5});
  set_num_threads(before);
  EXPECT_EQ(0, std::memcmp(a.flat().data(), b.flat().data(), a.flat().size_bytes()));
}

TEST(Init, FollowsTheSpecification) {
  const auto model = make_model(small());
  ParamStore p(Device::kCpu, model->params(), "parameters"),
      q(Device::kCpu, model->params(), "parameters");
  model->init_params(p, {.seed = 1});
  model->init_params(q, {.seed = 2});
  const auto get = [&](const std::string& name) { return tensor(*model, p, name); };
  EXPECT_EQ(get("blocks.1.att.k_a")[5], 1.02f);
  EXPECT_EQ(get("blocks.1.att.r_k")[5], -0.04f);
  EXPECT_FLOAT_EQ(get("blocks.1.att.ln_x.weight")[0], static_cast<float>(std::pow(2.0 / 3.0, 0.7)));
  EXPECT_FLOAT_EQ(get("blocks.0.att.x_r")[64], static_cast<float>(1 - std::pow(0.5, 0.2)));
  EXPECT_FLOAT_EQ(get("blocks.0.att.w0")[0], -6 + 0.5f - 2.5f);
  EXPECT_FLOAT_EQ(get("blocks.2.att.w0")[127], 0 + 0.5f + 2.5f);
  EXPECT_LE(orthogonality_error(get("blocks.2.att.key.weight"), 128, 128, 0.1), 1e-6);
  EXPECT_LE(orthogonality_error(get("blocks.2.ffn.key.weight"), 512, 128, 1), 1e-6);
  EXPECT_LE(orthogonality_error(get("head.weight"), 300, 128, 0.5 * std::sqrt(300.0 / 128)), 1e-6);
  EXPECT_LE(orthogonality_error(get("blocks.1.att.v2"), 32, 128, 0.1), 1e-6);
  for (const float x : get("blocks.1.att.output.weight")) ASSERT_EQ(x, 0.0f);
  for (const float x : get("emb.weight")) ASSERT_LE(std::fabs(x), 1e-4f);
  // Initial per-token decays: spec 1.3 gives the range 0.5612 to 0.9998, rounded.
  for (int l = 0; l < 3; ++l)
    for (const float w0 : get(str("blocks.", l, ".att.w0"))) {
      const double decay = std::exp(-0.6065306597126334 / (1 + std::exp(-static_cast<double>(w0))));
      EXPECT_GE(decay, 0.56115);
      EXPECT_LE(decay, 0.99985);
    }
  // Another seed changes what is random, and only that.
  EXPECT_NE(get("emb.weight")[0], tensor(*model, q, "emb.weight")[0]);
  EXPECT_EQ(get("blocks.1.att.w0")[3], tensor(*model, q, "blocks.1.att.w0")[3]);
}

TEST(Init, Rwkv4FollowsTheSpecification) {
  ModelConfig c = small();
  c.architecture = "rwkv4";
  const auto model = make_model(c);
  ParamStore p(Device::kCpu, model->params(), "parameters"),
      q(Device::kCpu, model->params(), "parameters");
  constexpr double kLr = 0.02;
  model->init_params(p, {.seed = 1, .lr = kLr});
  model->init_params(q, {.seed = 2, .lr = kLr});
  const auto get = [&](const std::string& name) { return tensor(*model, p, name); };
  const auto expect = [&](const std::string& name, size_t i, double value) {
    EXPECT_FLOAT_EQ(get(name)[i], static_cast<float>(value)) << name << " " << i;
  };
  // Rates from e^-5 to e^3; n = 64 of D = 128; rho0 = 0, 1/2, 1 and rho1 = 1, 2/3, 1/3.
  for (int l = 0; l < 3; ++l) {
    const std::string block = str("blocks.", l, ".");
    const double rho0 = l / 2.0, rho1 = 1 - l / 3.0;
    expect(block + "att.time_decay", 0, -5);
    expect(block + "att.time_decay", 64, -5 + 8 * std::pow(64 / 127.0, 0.7 + 1.3 * rho0));
    expect(block + "att.time_decay", 127, 3);
    for (const size_t i : {0, 1, 2, 3, 127})
      expect(block + "att.time_first", i,
             std::log(0.3) + (i % 3 == 0   ? 0
                              : i % 3 == 1 ? 0.5
                                           : -0.5));
    expect(block + "att.time_mix_k", 64, std::pow(0.5, rho1));
    expect(block + "att.time_mix_v", 64, std::pow(0.5, rho1) + 0.3 * rho0);
    expect(block + "att.time_mix_r", 64, std::pow(0.5, rho1 / 2));
    expect(block + "ffn.time_mix_k", 64, std::pow(0.5, rho1));
    expect(block + "ffn.time_mix_r", 64, std::pow(0.5, rho1));
    expect(block + "att.time_mix_k", 0, 0);
    EXPECT_LE(orthogonality_error(get(block + "att.value.weight"), 128, 128, 1), 1e-6);
    EXPECT_LE(orthogonality_error(get(block + "ffn.key.weight"), 512, 128, 2), 1e-6);
    for (const char* name :
         {"att.key", "att.receptance", "att.output", "ffn.value", "ffn.receptance"})
      for (const float x : get(block + name + ".weight")) ASSERT_EQ(x, 0.0f) << name;
    for (const char* name : {"ln1", "ln2"}) {
      expect(block + name + ".weight", 7, 1);
      expect(block + name + ".bias", 7, 0);
    }
  }
  expect("blocks.0.ln0.weight", 0, 1);
  expect("ln_out.bias", 0, 0);
  EXPECT_LE(orthogonality_error(get("head.weight"), 300, 128, 0.5 * std::sqrt(300.0 / 128)), 1e-6);
  // The embedding fills the range of the learning rate.
  const auto [low, high] = std::ranges::minmax(get("emb.weight"));
  EXPECT_GE(low, -kLr);
  EXPECT_LE(low, -0.99 * kLr);
  EXPECT_LE(high, kLr);
  EXPECT_GE(high, 0.99 * kLr);
  EXPECT_NE(get("emb.weight")[0], tensor(*model, q, "emb.weight")[0]);
}

TEST(Params, Rwkv4GroupsFollowTheSpecification) {
  ModelConfig c = small();
  c.architecture = "rwkv4";
  const auto model = make_model(c);
  for (const ParamSpec& s : model->params().specs()) {
    const float scale = s.name.ends_with("time_decay") ? 2 : s.name.ends_with("time_first") ? 3 : 1;
    EXPECT_EQ(s.lr_scale, scale) << s.name;
    EXPECT_EQ(s.weight_decay, s.spec.rank == 2) << s.name;
    EXPECT_EQ(s.matrix, s.spec.rank == 2) << s.name;
  }
  // 2 V D + 4 D + L (13 D^2 + 11 D)
  EXPECT_EQ(model->params().numel(), 2 * 300 * 128 + 4 * 128 + 3 * (13 * 128 * 128 + 11 * 128));
  EXPECT_EQ(model->params().numel(), count_parameters(model->config()).used);
}

TEST(Params, GroupsFollowTheSpecification) {
  const auto model = make_model(small());
  for (const ParamSpec& s : model->params().specs()) {
    EXPECT_EQ(s.lr_scale, s.name.find("att.w0") != std::string::npos ? 2.0f : 1.0f) << s.name;
    int wide = 0;
    for (int i = 0; i < s.spec.rank; ++i) wide += s.spec[i] > 1;
    EXPECT_EQ(s.weight_decay, wide >= 2 && s.name.find(".weight") != std::string::npos) << s.name;
  }
  EXPECT_FALSE(model->params().find("blocks.0.att.v0").has_value());
  EXPECT_TRUE(model->params().find("blocks.1.att.v0").has_value());
  EXPECT_EQ(model->params().numel(), count_parameters(model->config()).used);
}

TEST(Params, BucketsTileTheFlatBuffer) {
  const auto model = make_model(small());
  int64_t offset = 0;
  ParamId next = 0;
  for (const Bucket& b : model->params().buckets()) {
    EXPECT_EQ(b.offset, offset);
    EXPECT_EQ(b.begin, next);
    offset += b.elements;
    next = b.end;
  }
  EXPECT_EQ(offset, model->params().flat_elements());
  EXPECT_EQ(static_cast<size_t>(next), model->params().size());
  EXPECT_EQ(model->params().buckets().size(), 5u);  // emb, three blocks, head
}

TEST(Config, CountsOfTheSpecification) {
  ModelConfig c;
  c.n_layer = 12;
  c.n_embd = 768;
  c.vocab_size = 50304;
  c.finish();
  EXPECT_EQ(count_parameters(c).total, 167688192);
  EXPECT_EQ(count_parameters(c).used, 167638272);
  c.vocab_size = 65536;
  EXPECT_EQ(count_parameters(c).total, 191084544);
  EXPECT_EQ(count_parameters(c).used, 191034624);
}

TEST(Config, CountsOfRwkv4) {
  ModelConfig c;
  c.architecture = "rwkv4";
  c.n_layer = 24;
  c.n_embd = 1024;
  c.vocab_size = 50277;
  c.finish();
  EXPECT_EQ(c.dim_ffn, 4096);
  EXPECT_EQ(count_parameters(c).total, 430397440);
  EXPECT_EQ(count_parameters(c).used, 430397440);
}

TEST(Config, LowRankWidthsRoundHalfToEven) {
  const int64_t d[] = {256, 384, 512, 768, 1024, 1536, 2048, 2560, 4096};
  const int64_t w[] = {32, 64, 64, 64, 64, 96, 128, 128, 160};
  const int64_t v[] = {32, 32, 32, 32, 64, 64, 64, 96, 96};
  const int64_t g[] = {64, 96, 128, 128, 160, 192, 224, 256, 320};
  for (size_t i = 0; i < 9; ++i) {
    EXPECT_EQ(low_rank_width(d[i], 2.5), w[i]) << d[i];
    EXPECT_EQ(low_rank_width(d[i], 1.7), v[i]) << d[i];
    EXPECT_EQ(low_rank_width(d[i], 5), g[i]) << d[i];
  }
}

TEST(Config, JsonRoundTripAndErrors) {
  ModelConfig c = small();
  c.finish();
  EXPECT_EQ(parse_model_config(model_config_json(c), "test"), c);
  c = small();
  c.architecture = "rwkv4";
  c.finish();
  EXPECT_EQ(parse_model_config(model_config_json(c), "test"), c);
  EXPECT_EQ(model_config_json(c).find("head_size"), std::string::npos);
  const auto message = [](const char* json) -> std::string {
    try {
      parse_model_config(json, "some.json");
    } catch (const ConfigError& e) {
      return e.what();
    }
    return "no error";
  };
  EXPECT_NE(message(R"({"n_layers": 3})").find("did you mean 'n_layer'"), std::string::npos);
  EXPECT_NE(message(R"({"n_layer": 2.5})").find("expected an integer"), std::string::npos);
  EXPECT_NE(message(R"({"n_layer": 1, "n_embd": 64, "vocab_size": 9})").find("n_layer is 1"),
            std::string::npos);
  EXPECT_NE(message(R"({"n_layer": 2, "n_embd": 100, "vocab_size": 9})").find("multiple of"),
            std::string::npos);
  EXPECT_NE(message(R"({"n_layer": 2, "n_embd": 64})").find("vocab_size is 0"), std::string::npos);
  EXPECT_NE(message(R"({"architecture": "rwkv4", "n_layer": 2, "n_embd": 64, "vocab_size": 9,
                       "head_size": 64})")
                .find("head_size is 64, but rwkv4"),
            std::string::npos);
  EXPECT_NE(message("[1]").find("expected an object"), std::string::npos);
  EXPECT_NE(message("{").find("not JSON"), std::string::npos);
  EXPECT_NE(message(R"({"architecture": "rwkv9"})").find("rwkv9"), std::string::npos);
}

class WeightFile : public testing::Test {
 protected:
  WeightFile()
      : model(make_model(small())),
        values(Device::kCpu, model->params(), "parameters"),
        path((std::filesystem::temp_directory_path() / str("weights_", getpid(), ".h5")).string()) {
    model->init_params(values, {.seed = 3});
  }
  ~WeightFile() override { std::filesystem::remove(path); }
  void save() {
    Hdf5File f = Hdf5File::create(path);
    write_model(f, model->config(), model->params(), values, {"toy", "abc", {1, 2, 3}});
    f.close();
  }
  std::string load_error() {
    ParamStore other(Device::kCpu, model->params(), "parameters");
    try {
      Hdf5File f = Hdf5File::open(path);
      read_model_config(f);
      read_weights(f, model->params(), other);
    } catch (const IoError& e) {
      return e.what();
    }
    return "no error";
  }
  std::unique_ptr<Model> model;
  ParamStore values;
  std::string path;
};

TEST_F(WeightFile, RoundTripIsBitEqual) {
  save();
  Hdf5File f = Hdf5File::open(path);
  EXPECT_EQ(read_model_config(f), model->config());
  const TokenizerBlob t = read_tokenizer(f);
  EXPECT_EQ(t.name, "toy");
  EXPECT_EQ(t.blob, (std::vector<uint8_t>{1, 2, 3}));
  ParamStore other(Device::kCpu, model->params(), "parameters");
  read_weights(f, model->params(), other);
  EXPECT_EQ(0, std::memcmp(values.flat().data(), other.flat().data(), values.flat().size_bytes()));
}

TEST_F(WeightFile, NonFiniteMissingSurplusAndForeignAreRefused) {
  values[4].f32()[1] = std::nanf("");
  save();
  EXPECT_NE(load_error().find(model->params().specs()[4].name), std::string::npos) << load_error();
  {
    Hdf5File f = Hdf5File::create(path);
    f.write_string("model/format", "greylag-model 1");
    f.write_string("model/config", model_config_json(model->config()));
    f.close();
  }
  EXPECT_NE(load_error().find("listing weights"), std::string::npos) << load_error();
  {
    Hdf5File f = Hdf5File::create(path);
    f.write_scalar<double>("x", 1);
    f.close();
  }
  EXPECT_NE(load_error().find("not a Greylag model file"), std::string::npos) << load_error();
}

TEST_F(WeightFile, AFlippedBitIsFound) {
  save();
  std::FILE* f = std::fopen(path.c_str(), "r+b");
  ASSERT_NE(f, nullptr);
  // Somewhere in the middle lie weights: the file is almost nothing else.
  const auto size = static_cast<long>(std::filesystem::file_size(path));
  std::fseek(f, size / 2, SEEK_SET);
  const int byte = std::fgetc(f);
  std::fseek(f, size / 2, SEEK_SET);
  std::fputc(byte ^ 1, f);
  std::fclose(f);
  EXPECT_NE(load_error().find("checksum"), std::string::npos) << load_error();
}

TEST(State, Rwkv4StartsFromNothing) {
  ModelConfig c = small();
  c.architecture = "rwkv4";
  const auto model = make_model(c);
  RnnState s(*model, 2);
  EXPECT_EQ(s.specs().size(), 15u);  // five vectors per layer
  const RnnState fresh = s.clone();
  for (size_t i = 0; i < s.specs().size(); ++i) {
    EXPECT_EQ(s[i].spec, (TensorSpec{2, 128})) << s.specs()[i].name;
    const float initial = s.specs()[i].name.ends_with("wkv_p_state") ? -1e38f : 0.0f;
    for (const RnnState* state : {&std::as_const(s), &fresh})
      for (int64_t k = 0; k < 256; ++k) ASSERT_EQ((*state)[i].f32()[k], initial);
    s[i].f32()[255] = 3;
  }
  s.reset();
  for (size_t i = 0; i < s.specs().size(); ++i)
    EXPECT_EQ(s[i].f32()[255], s.specs()[i].initial) << s.specs()[i].name;
}

TEST(State, ClonesAndResets) {
  const auto model = make_model(small());
  RnnState s(*model, 2);
  EXPECT_EQ(s.specs().size(), 9u);
  s[1].f32()[7] = 3;
  RnnState copy = s.clone();
  s.reset();
  EXPECT_EQ(s[1].f32()[7], 0);
  EXPECT_EQ(copy[1].f32()[7], 3);
}

}  // namespace
}  // namespace rwkv
