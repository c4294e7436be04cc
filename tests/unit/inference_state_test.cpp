// Recurrent states in files: bit-equal continuation, and what is refused.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "data/io/atomic_file.h"
#include "data/io/tensor_file.h"
#include "inference/generate.h"
#include "inference/state_file.h"
#include "kernels/core/half.h"
#include "tests/unit/data_test_util.h"
#include "tests/unit/inference_model.h"

namespace rwkv {
namespace {

using test::error_of;
using test::TempDir;

const std::vector<int32_t> kFirst = {5, 17, 200, 3}, kThen = {44, 9};

std::vector<float> logits_of(Engine& engine, RnnState& state, std::span<const int32_t> ids) {
  const TensorView l = engine.prefill(state, ids);
  return {l.f32(), l.f32() + l.last()};
}

TEST(StateFiles, ContinueBitForBit) {
  const TempDir dir;
  struct Case {
    const char* architecture;
    std::string wkv;
  };
  for (const Case& c : {Case{"rwkv7", "auto"}, {"rwkv7", "fp16-dithered"}, {"rwkv4", "auto"}}) {
    const test::TestModel m = c.architecture == std::string("rwkv7")
                                  ? test::random_model(5, 2, 64, 257)
                                  : test::random_rwkv4(5, 2, 64, 257);
    Engine engine(*m.model, *m.weights, {.wkv = c.wkv});
    RnnState state = engine.new_state();
    logits_of(engine, state, kFirst);
    write_state_file(dir.file("s"), engine, state, std::ssize(kFirst));
    const std::vector<float> expected = logits_of(engine, state, kThen);

    Engine other(*m.model, *m.weights, {.wkv = c.wkv});
    RnnState restored = other.new_state();
    EXPECT_EQ(read_state_file(dir.file("s"), other, restored), 4);
    EXPECT_EQ(logits_of(other, restored, kThen), expected) << c.architecture << " " << c.wkv;
    // A fresh state says something else.
    RnnState fresh = other.new_state();
    EXPECT_NE(logits_of(other, fresh, kThen), expected);
  }
}

// A binary16 state is kept scaled; its file holds the numbers it stands for.
TEST(StateFiles, MoveBetweenF32AndBinary16) {
  const TempDir dir;
  const test::TestModel m = test::random_model(5, 2, 64, 257);
  Engine plain(*m.model, *m.weights, {.wkv = "serial"});
  Engine half(*m.model, *m.weights, {.wkv = "fp16-dithered"});
  RnnState of_plain = plain.new_state(), of_half = half.new_state();
  logits_of(plain, of_plain, kFirst);
  logits_of(half, of_half, kFirst);
  const auto expect_near = [](const std::vector<float>& got, const std::vector<float>& want) {
    for (size_t i = 0; i < want.size(); ++i) EXPECT_NEAR(got[i], want[i], 2e-2) << i;
  };
  write_state_file(dir.file("half"), half, of_half, 4);
  write_state_file(dir.file("plain"), plain, of_plain, 4);
  RnnState into_plain = plain.new_state(), into_half = half.new_state();
  read_state_file(dir.file("half"), plain, into_plain);
  read_state_file(dir.file("plain"), half, into_half);
  const std::vector<float> want = logits_of(plain, of_plain, kThen);
  expect_near(logits_of(plain, into_plain, kThen), want);
  expect_near(logits_of(half, into_half, kThen), want);
  RnnState fresh = plain.new_state();  // by how much a wrong state is off
  double off = 0;
  const std::vector<float> without = logits_of(plain, fresh, kThen);
  for (size_t i = 0; i < want.size(); ++i)
    off = std::max<double>(off, std::fabs(without[i] - want[i]));
  EXPECT_GT(off, 0.2);

  // Beyond what binary16 holds without exponents.
  RnnState large = plain.new_state();
  for (size_t i = 0; i < large.specs().size(); ++i)
    if (large.specs()[i].name == "blocks.1.att.wkv_state") large[i].f32()[7] = 1e8F;
  write_state_file(dir.file("large"), plain, large, 4);
  read_state_file(dir.file("large"), half, into_half);
  std::vector<float> exponents;
  for (size_t i = 0; i < into_half.specs().size(); ++i)
    if (into_half.specs()[i].name == "blocks.1.att.wkv_exponent")
      exponents.assign(into_half[i].as<int8_t>(), into_half[i].as<int8_t>() + 64);
  ASSERT_EQ(exponents.size(), 64u);
  EXPECT_EQ(exponents[0], 16);  // 1e8 / 256 / 2^16 = 5.96
  EXPECT_EQ(std::ranges::count(exponents, 0.0F), 63);
  // Files with exponents: an f32 state needs none, a binary16 state takes them; they must fit.
  write_state_file(dir.file("exponents"), half, into_half, 4);
  RnnState back = plain.new_state(), again = half.new_state();
  read_state_file(dir.file("exponents"), plain, back);
  for (size_t i = 0; i < back.specs().size(); ++i)
    if (back.specs()[i].name == "blocks.1.att.wkv_state") {
      EXPECT_EQ(back[i].f32()[7], to_float(to_half(1e8F / (1 << 24))) * (1 << 24));
    }
  read_state_file(dir.file("exponents"), half, again);
  for (size_t i = 0; i < again.specs().size(); ++i)
    EXPECT_EQ(std::memcmp(again[i].data, into_half[i].data, again[i].bytes()), 0)
        << again.specs()[i].name;
  for (size_t i = 0; i < again.specs().size(); ++i)
    if (again.specs()[i].name == "blocks.1.att.wkv_exponent") again[i].as<int8_t>()[3] = 5;
  write_state_file(dir.file("bad"), half, again, 4);
  EXPECT_NE(error_of<IoError>([&] {
              read_state_file(dir.file("bad"), half, into_half);
            }).find("wkv_exponent"),
            std::string::npos);
}

TEST(StateFiles, HoldWhatTheDocumentationSays) {
  const TempDir dir;
  const test::TestModel m = test::random_model(5, 2, 64, 257, 32);
  Engine engine(*m.model, *m.weights);
  RnnState state = engine.new_state();
  logits_of(engine, state, kFirst);
  write_state_file(dir.file("s"), engine, state, 4);
  const auto file = open_tensor_file(dir.file("s"));
  ASSERT_EQ(file->tensors().size(), 6u);
  EXPECT_EQ(file->tensors()[*file->find("blocks.1.att.wkv_state")].shape, (Shape{2, 32, 32}));
  EXPECT_EQ(file->tensors()[*file->find("blocks.0.ffn.shift_state")].shape, (Shape{64}));
  RnnState two(*m.model, 2);
  EXPECT_THROW(write_state_file(dir.file("t"), engine, two, 1), ShapeError);
}

TEST(StateFiles, OfAnotherModelAreRefused) {
  const TempDir dir;
  const auto engine_of = [&](const test::TestModel& m) { return Engine(*m.model, *m.weights); };
  const test::TestModel small = test::random_model(5, 2, 64, 257);
  const test::TestModel deep = test::random_model(5, 3, 64, 257);
  const test::TestModel wide = test::random_model(5, 2, 128, 257);
  Engine a = engine_of(small), b = engine_of(deep), c = engine_of(wide);
  RnnState state = a.new_state(), sb = b.new_state(), sc = c.new_state();
  write_state_file(dir.file("s"), a, state, 0);
  EXPECT_NE(error_of<IoError>([&] { read_state_file(dir.file("s"), b, sb); }).find("is missing"),
            std::string::npos);
  EXPECT_NE(error_of<IoError>([&] { read_state_file(dir.file("s"), c, sc); }).find("another model"),
            std::string::npos);
  write_state_file(dir.file("s"), b, sb, 0);
  EXPECT_NE(error_of<IoError>([&] { read_state_file(dir.file("s"), a, state); }).find("9 tensors"),
            std::string::npos);
  // Other safetensors, damage, and numbers that are none.
  const std::vector<TensorPlan> plan = {{"x", {1}, TensorType::kF32}};
  const auto out = create_safetensors(dir.file("x"), plan);
  out->write(std::vector<float>{1});
  out->finish();
  EXPECT_NE(error_of<IoError>([&] { read_state_file(dir.file("x"), a, state); }).find("no state"),
            std::string::npos);
  write_state_file(dir.file("s"), a, state, 0);
  std::string bytes = read_file(dir.file("s"));
  const float nan = NAN;
  std::memcpy(&bytes[bytes.size() - 4], &nan, 4);
  std::ofstream(dir.file("n"), std::ios::binary) << bytes;
  EXPECT_NE(error_of<IoError>([&] { read_state_file(dir.file("n"), a, state); }).find("NaN"),
            std::string::npos);
  std::ofstream(dir.file("n"), std::ios::binary) << bytes.substr(0, bytes.size() / 2);
  EXPECT_THROW(read_state_file(dir.file("n"), a, state), IoError);
}

TEST(StateFiles, GenerationLeavesTheStateAfterAllTokens) {
  const test::TestModel m = test::random_model(5, 2, 64, 257);
  Engine engine(*m.model, *m.weights);
  RnnState state = engine.new_state();
  GenerateOptions o{.sampling = {.temperature = 0}, .max_tokens = 3, .state = &state};
  o.stop_at_end_of_document = false;
  const Generated g = generate(engine, nullptr, kFirst, o);
  ASSERT_EQ(g.ids.size(), 3u);
  RnnState plain = engine.new_state();
  engine.prefill(plain, kFirst);
  for (const int32_t id : g.ids) engine.decode(plain, {&id, 1});
  EXPECT_EQ(logits_of(engine, state, kThen), logits_of(engine, plain, kThen));
  EXPECT_THROW(generate(engine, nullptr, {}, o), ConfigError);
}

}  // namespace
}  // namespace rwkv
