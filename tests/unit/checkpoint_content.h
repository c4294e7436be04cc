#pragma once
/// A small model with numbers in everything that a checkpoint holds.

#include <cstring>
#include <functional>
#include <memory>
#include <string>

#include "kernels/core/error.h"
#include "kernels/core/rng.h"
#include "model/rwkv.h"
#include "trainer/checkpoint.h"

namespace rwkv::test {

struct Content {
  std::unique_ptr<Model> model;
  ParamStore values, m, v;
  TrainerState state;
  TokenizerBlob tokenizer;

  explicit Content(uint64_t seed, int64_t vocab = 24, const std::string& architecture = "rwkv7") {
    ModelConfig c;
    c.architecture = architecture;
    c.n_layer = 2;
    c.n_embd = 32;
    c.head_size = architecture == "rwkv7" ? 32 : 0;
    c.vocab_size = vocab;
    c.finish();
    model = make_model(c);
    values = ParamStore(Device::kCpu, model->params(), "p");
    m = ParamStore(Device::kCpu, model->params(), "m");
    v = ParamStore(Device::kCpu, model->params(), "v");
    int64_t n = 0;
    for (ParamStore* s : {&values, &m, &v})
      for (const TensorView& t : s->views())
        for (int64_t i = 0; i < t.numel(); ++i)
          t.f32()[i] = static_cast<float>(Rng(seed, 1).normal(static_cast<uint64_t>(n++)));
    state.step = 500;
    state.updates = 499;
    state.samples = 1000;
    state.tokens = 64000;
    state.nonfinite_total = 1;
    state.loss_avg = 0.1234567890123456789;
    state.loss_avg_weight = 0.3;
    state.best_valid_loss = 1.25;
    state.best_valid_step = 400;
    state.last_valid_loss = 1.5;
    state.seed = 77;
    state.sampler = "shuffle";
    state.data_hash = "abc";
    state.data_tokens = 12345;
    state.wkv = "wkv7.cpu.serial.f32";
    state.code_version = "test";
    tokenizer = {"world", "0123", {1, 2, 3, 250, 0, 7}};
  }
  CheckpointContent ref() { return {model->config(), model->params(), values, m, v}; }
  void write(const std::string& path) {
    write_checkpoint(path, ref(), state, R"({"train":{"batch":3}})", tokenizer);
  }
  bool same_numbers(const Content& o) const {
    const auto eq = [](const ParamStore& a, const ParamStore& b) {
      return std::memcmp(a.flat().data(), b.flat().data(), a.flat().size_bytes()) == 0;
    };
    return eq(values, o.values) && eq(m, o.m) && eq(v, o.v);
  }
};

inline std::string message_of(const std::function<void()>& f) {
  try {
    f();
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

}  // namespace rwkv::test
