// Files of tensors: .pth, safetensors, GGUF; what PyTorch wrote, what we write, what is refused.

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "data/io/atomic_file.h"
#include "data/io/byte_file.h"
#include "data/io/gguf.h"
#include "data/io/pickle.h"
#include "data/io/tensor_file.h"
#include "data/io/zip_file.h"
#include "kernels/core/rng.h"
#include "tests/unit/data_test_util.h"

namespace rwkv {
namespace {

using test::error_of;
using test::TempDir;

const std::string kRefs = std::string(RWKV_SOURCE_DIR) + "/tests/golden/formats/";

std::vector<float> read_tensor(const TensorFile& file, size_t i) {
  std::vector<float> values(checked_numel(file.tensors()[i].shape, "", ""));
  file.read(i, values);
  return values;
}

void put(const std::string& path, std::string_view bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

/// Exactly the tensors of the expectation, which PyTorch made, with their values.
void expect_tensors(const std::string& name, const nlohmann::json& expected) {
  const auto file = open_tensor_file(kRefs + name);
  EXPECT_EQ(file->tensors().size(), expected.size()) << name;
  for (const auto& [tensor, want] : expected.items()) {
    const auto i = file->find(tensor);
    ASSERT_TRUE(i) << name << " " << tensor;
    EXPECT_EQ(file->tensors()[*i].shape, want["shape"].get<Shape>()) << tensor;
    const std::vector<float> got = read_tensor(*file, *i);
    const auto values = want["values"].get<std::vector<double>>();
    ASSERT_EQ(got.size(), values.size()) << tensor;
    for (size_t k = 0; k < got.size(); ++k)
      EXPECT_EQ(got[k], static_cast<float>(values[k])) << tensor << " " << k;
  }
}

TEST(Pth, WhatPyTorchWrote) {
  const auto expected = nlohmann::json::parse(read_file(kRefs + "torch_variants_expected.json"));
  for (const char* name : {"torch_variants.pth", "torch_legacy.pth", "torch_state_dict.pth"})
    expect_tensors(name, expected.at(name));
  const auto variants = open_tensor_file(kRefs + "torch_variants.pth");
  EXPECT_EQ(variants->tensors()[*variants->find("plain.bf16")].type, TensorType::kBF16);
  EXPECT_EQ(variants->tensors()[*variants->find("plain.i64")].type, TensorType::kI64);
  EXPECT_FALSE(variants->notes().empty());  // members that are no tensors
  EXPECT_FALSE(variants->find("meta.int"));
}

std::vector<TensorPlan> some_plan(bool quantised) {
  std::vector<TensorPlan> plan = {{"a.weight", {3, 64}, TensorType::kF32},
                                  {"b", {1, 1, 32}, TensorType::kBF16},
                                  {"c \xc3\xbc", {5}, TensorType::kF16},
                                  {"d", {2, 3, 4, 32}, TensorType::kBF16}};
  if (quantised) plan.push_back({"q", {4, 64}, TensorType::kQ8_0});
  return plan;
}

std::vector<float> random_values(const TensorPlan& t) {
  const Rng rng(3, hash_name(t.name));
  std::vector<float> v(static_cast<size_t>(shape_numel(t.shape)));
  for (size_t i = 0; i < v.size(); ++i) v[i] = static_cast<float>(rng.normal(i));
  return v;
}

void write_all(TensorWriter& out, const std::vector<TensorPlan>& plan) {
  for (const TensorPlan& t : plan) out.write(random_values(t));
  out.finish();
}

TEST(TensorFiles, WhatWeWriteIsReadBack) {
  const TempDir dir;
  const auto plan = some_plan(false), q_plan = some_plan(true);
  write_all(*create_pth(dir.file("a"), plan), plan);
  write_all(*create_safetensors(dir.file("b"), plan), plan);
  write_all(*create_gguf(dir.file("c"), {{"k", std::string("v")}}, q_plan), q_plan);
  for (const char* name : {"a", "b", "c"}) {
    const auto file = open_tensor_file(dir.file(name));
    const auto& expected = *name == 'c' ? q_plan : plan;
    ASSERT_EQ(file->tensors().size(), expected.size()) << name;
    for (const TensorPlan& t : expected) {
      const auto i = file->find(t.name);
      ASSERT_TRUE(i) << name << " " << t.name;
      EXPECT_EQ(file->tensors()[*i].shape, t.shape) << name << " " << t.name;
      EXPECT_EQ(file->tensors()[*i].type, t.type) << name << " " << t.name;
      const std::vector<float> values = random_values(t), got = read_tensor(*file, *i);
      // A second rounding changes nothing: what was written is what comes back.
      std::vector<float> rounded(values.size());
      decode_tensor(t.type, encode_tensor(t.type, values), rounded);
      EXPECT_EQ(got, rounded) << name << " " << t.name;
    }
  }
}

// Large tensors go through in pieces: nothing may change where two of them meet.
TEST(TensorFiles, LargerThanAPiece) {
  const TempDir dir;
  for (const TensorType type : {TensorType::kBF16, TensorType::kQ8_0}) {
    const std::vector<TensorPlan> plan = {{"large", {20001, 64}, type}};
    std::vector<std::string> names = {"a.gguf"};
    write_all(*create_gguf(dir.file("a.gguf"), {}, plan), plan);
    if (type == TensorType::kBF16) {
      write_all(*create_pth(dir.file("a.pth"), plan), plan);
      write_all(*create_safetensors(dir.file("a.safetensors"), plan), plan);
      names.insert(names.end(), {"a.pth", "a.safetensors"});
    }
    const std::vector<float> values = random_values(plan[0]);
    std::vector<float> rounded(values.size());
    decode_tensor(type, encode_tensor(type, values), rounded);
    for (const std::string& name : names)
      EXPECT_TRUE(read_tensor(*open_tensor_file(dir.file(name)), 0) == rounded) << name;
  }
}

TEST(TensorFiles, WritersLeaveNothingHalfDone) {
  const TempDir dir;
  const auto plan = some_plan(false);
  put(dir.file("old"), "what was there");
  {
    const auto out = create_pth(dir.file("old"), plan);
    out->write(random_values(plan[0]));
    EXPECT_THROW(out->write(random_values(plan[0])), InternalError);  // another size is planned
    EXPECT_THROW(out->finish(), InternalError);
  }
  EXPECT_EQ(read_file(dir.file("old")), "what was there");
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(dir.path()), {}), 1);
}

TEST(TensorTypes, Q8KeepsValuesToHalfAStep) {
  std::vector<float> v(64, 0.0f);
  const Rng rng(1, 1);
  for (size_t i = 0; i < 32; ++i) v[i] = static_cast<float>(rng.normal(i));
  std::vector<float> back(64, NAN);
  decode_tensor(TensorType::kQ8_0, encode_tensor(TensorType::kQ8_0, v), back);
  float largest = 0;
  for (const float x : v) largest = std::max(largest, std::fabs(x));
  // Half a step of rounding, and 2^-11 of the scale's in f16.
  for (size_t i = 0; i < v.size(); ++i)
    EXPECT_LE(std::fabs(back[i] - v[i]), largest / 254 + largest / 2048 + 1e-7f) << i;
  for (size_t i = 32; i < 64; ++i) EXPECT_EQ(back[i], 0.0f);
}

// --- refused -----------------------------------------------------------------------------------

/// A .pth with this pickle.
std::string pth_with(const TempDir& dir, const std::string& pickle,
                     const char* entry = "x/data.pkl", const std::string& storage = "") {
  const std::string path = dir.file("made.pth");
  ByteWriter out(path);
  ZipWriter zip(out);
  zip.add_text(entry, pickle);
  if (!storage.empty()) zip.add_text("x/data/0", storage);
  zip.finish();
  out.close();
  return path;
}

std::string unicode(std::string_view text) {
  ByteBuilder b;
  b.text("X");
  b.number(static_cast<uint32_t>(text.size()));
  b.text(text);
  return b.bytes;
}

TEST(Pickle, RefusesEveryWayToRunCode) {
  const TempDir dir;
  const std::string argument = unicode("touch " + dir.file("was-run"));
  const std::pair<std::string, const char*> cases[] = {
      {"\x80\x02"
       "cposix\nsystem\n(" +
           argument + "tR.",
       "refusing to construct posix.system"},
      {"\x80\x02"
       "c__builtin__\neval\n(" +
           argument + "tR.",
       "refusing to construct __builtin__"},
      {"\x80\x04" + unicode("os") + unicode("system") + "\x93(" + argument + "tR.",
       "refusing to construct os.system"},
      {"(" + argument + "iposix\nsystem\n.", "instruction 105"},               // INST
      {"(cposix\nsystem\n" + argument + "o.", "refusing to construct posix"},  // OBJ
      {"\x80\x02"
       "ccollections\nOrderedDict\n)\x81.",
       "instruction 129"},  // NEWOBJ
      {"\x80\x02"
       "ctorch._utils\n_rebuild_tensor\n.",
       "refusing to construct"},
      {"\x80\x02"
       "ctorch\nload\n.",
       "refusing to construct torch.load"},
      {"\x80\x02"
       "ctorch.storage\n_load_from_bytes\n.",
       "refusing to construct"},
      {"\x80\x02\x82\x01.", "instruction 130"},  // EXT1
      {"\x80\x02P0\n.", "instruction 80"},       // PERSID
      {"\x80\x02}(" + unicode("a") + "ctorch\nFloatStorage\n)Rsu.", "a call of a storage class"},
  };
  for (const auto& [pickle, message] : cases) {
    const std::string path = pth_with(dir, pickle);
    EXPECT_NE(error_of<IoError>([&] { open_tensor_file(path); }).find(message), std::string::npos)
        << error_of<IoError>([&] { open_tensor_file(path); }) << "\n expected " << message;
  }
  EXPECT_FALSE(std::filesystem::exists(dir.file("was-run")));
}

std::string tensor_pickle(int32_t numel, std::vector<int64_t> shape, std::vector<int64_t> stride,
                          int64_t offset = 0) {
  ByteBuilder b;
  const auto number = [&](int64_t n) {
    b.text("\x8a\x08");
    b.number(n);
  };
  b.text("\x80\x02}" + unicode("t") + "ctorch._utils\n_rebuild_tensor_v2\n((" + unicode("storage") +
         "ctorch\nFloatStorage\n" + unicode("0") + unicode("cpu"));
  number(numel);
  b.text("tQ");
  number(offset);
  b.text("(");
  for (const int64_t n : shape) number(n);
  b.text("t(");
  for (const int64_t n : stride) number(n);
  b.text(
      "t\x89"
      "ccollections\nOrderedDict\n)RtRs.");
  return b.bytes;
}

TEST(Pickle, TensorsStayInTheirStorage) {
  const TempDir dir;
  const std::string storage(16, '\0');  // four floats
  const auto open = [&](const std::string& pickle) {
    return open_tensor_file(pth_with(dir, pickle, "x/data.pkl", storage));
  };
  EXPECT_EQ(read_tensor(*open(tensor_pickle(4, {2, 2}, {1, 2})), 0).size(), 4u);
  EXPECT_EQ(read_tensor(*open(tensor_pickle(4, {1000, 4}, {0, 1})), 0).size(), 4000u);
  constexpr int64_t kHuge = int64_t{1} << 62;
  for (const std::string& bad :
       {tensor_pickle(4, {5}, {1}), tensor_pickle(4, {2}, {4}), tensor_pickle(4, {2}, {1}, 3),
        tensor_pickle(4, {1}, {1}, -1), tensor_pickle(4, {2}, {-1}, 1),
        tensor_pickle(4, {kHuge, kHuge}, {0, 0}), tensor_pickle(4, {2, 2}, {kHuge, kHuge}),
        tensor_pickle(4, {-1}, {1}), tensor_pickle(4, {2, 2}, {1}), tensor_pickle(-4, {0}, {1}),
        tensor_pickle(8, {8}, {1}),  // the storage has four
        tensor_pickle(4, {1 << 30}, {0}), tensor_pickle(4, Shape(9, 1), Shape(9, 1))})
    EXPECT_THROW(open(bad), IoError);
}

TEST(Zip, RefusesTricks) {
  const TempDir dir;
  for (const char* name :
       {"../x/data.pkl", "/x/data.pkl", "x/../../data.pkl", "x\\data.pkl", "c:/data.pkl"})
    EXPECT_NE(error_of<IoError>([&] {
                open_tensor_file(pth_with(dir, "\x80\x02}.", name));
              }).find("leads out of the archive"),
              std::string::npos);
  const auto changed = [&](const auto& change) {
    std::string bytes =
        read_file(pth_with(dir, tensor_pickle(4, {4}, {1}), "x/data.pkl", std::string(16, 'a')));
    change(bytes);
    put(dir.file("changed.pth"), bytes);
    return error_of<IoError>([&] {
      const auto file = open_tensor_file(dir.file("changed.pth"));
      read_tensor(*file, 0);
    });
  };
  const auto central = [](const std::string& b, int n) {  // the n-th entry of the directory
    size_t at = 0;
    for (int i = 0; i <= n; ++i) at = b.find("PK\x01\x02", at + 1);
    return at;
  };
  EXPECT_NE(changed([&](std::string& b) { b[central(b, 1) + 10] = 8; }).find("compressed"),
            std::string::npos);
  EXPECT_NE(changed([&](std::string& b) { b[central(b, 1) + 8] = 1; }).find("encrypted"),
            std::string::npos);
  EXPECT_NE(changed([&](std::string& b) { b[central(b, 1) + 46] = 'y'; }).find("is missing"),
            std::string::npos);
  // Both entries say that they begin where the first does.
  EXPECT_NE(changed([&](std::string& b) {
              std::memcpy(&b[central(b, 1) + 42], &b[central(b, 0) + 42], 4);
            }).find("overlap"),
            std::string::npos);
  EXPECT_NE(
      changed([&](std::string& b) { b[b.find(std::string(16, 'a'))] = 'b'; }).find("checksum"),
      std::string::npos);
}

TEST(Safetensors, RefusesBadHeaders) {
  const TempDir dir;
  const auto message = [&](const std::string& json, size_t data) {
    ByteBuilder b;
    b.number<uint64_t>(json.size());
    b.text(json);
    b.bytes.append(data, '\0');
    put(dir.file("a"), b.bytes);
    return error_of<IoError>([&] { open_tensor_file(dir.file("a")); });
  };
  const std::string good = R"("a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]})";
  const std::pair<std::string, const char*> cases[] = {
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})", "damaged"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}})", "damaged"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})", "damaged"},
      {"{" + good + R"(,"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})", "damaged"},
      {"{" + good + R"(,"b":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}})", "truncated"},
      {"{" + good + "," + good + "}", "two tensors"},
      {R"({"a":{"dtype":"F31","shape":[2],"data_offsets":[0,8]}})", "unknown type"},
      {R"({"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}})", "negative"},
      {R"({"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,8]}})", "not sane"},
      {R"({"a":{"dtype":"F32","shape":[18446744073709551615],"data_offsets":[0,8]}})", "huge"},
      {R"({"a":{"dtype":"F32","data_offsets":[0,8]}})", "without"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8,8]}})", "without"},
      {R"({"a":[[[[[]]]]]})", "an array"},
      {R"({"a":{"a":{}}})", "an object"},
      {R"({"a":3})", "a number"},
      {"{" + good, "no JSON"},
  };
  for (const auto& [json, part] : cases) {
    const std::string m = message(json, 8);
    EXPECT_NE(m.find(part), std::string::npos) << json << "\n" << m;
  }
  ByteBuilder b;
  b.number<uint64_t>(uint64_t{1} << 60);
  b.text("{}");
  put(dir.file("a"), b.bytes);
  EXPECT_THROW(open_tensor_file(dir.file("a")), IoError);
}

TEST(Safetensors, ShardsOfAFolder) {
  const TempDir dir;
  const auto plan = some_plan(false);
  const std::vector<TensorPlan> first(plan.begin(), plan.begin() + 1),
      second(plan.begin() + 1, plan.end());
  write_all(*create_safetensors(dir.file("model-00001-of-00002.safetensors"), first), first);
  write_all(*create_safetensors(dir.file("model-00002-of-00002.safetensors"), second), second);
  const auto index = [&](const char* file) {
    put(dir.file("model.safetensors.index.json"),
        str(R"({"weight_map":{"a.weight":"model-00001-of-00002.safetensors","b":")", file, "\"}}"));
  };
  index("model-00002-of-00002.safetensors");
  const auto file = open_tensor_file(dir.path());
  ASSERT_EQ(file->tensors().size(), plan.size());
  EXPECT_EQ(read_tensor(*file, *file->find("a.weight")), random_values(plan[0]));
  for (const char* bad : {"../x.safetensors", "/etc/passwd", "..", "a\\\\b"}) {
    index(bad);
    EXPECT_NE(error_of<IoError>([&] { open_tensor_file(dir.path()); }).find("refusing the shard"),
              std::string::npos);
  }
}

TEST(Gguf, RefusesBadHeaders) {
  const TempDir dir;
  const auto message = [&](uint64_t tensors, uint64_t keys, const std::string& rest) {
    ByteBuilder b;
    b.text("GGUF");
    b.number<uint32_t>(3);
    b.number(tensors);
    b.number(keys);
    b.text(rest);
    b.bytes.append(256, '\0');
    put(dir.file("a"), b.bytes);
    return error_of<IoError>([&] { open_tensor_file(dir.file("a")); });
  };
  const auto text = [](std::string_view t, uint64_t length) {
    ByteBuilder b;
    b.number(length);
    b.text(t);
    return b.bytes;
  };
  const auto u32 = [](uint32_t n) { return std::string(reinterpret_cast<const char*>(&n), 4); };
  const auto u64 = [](uint64_t n) { return std::string(reinterpret_cast<const char*>(&n), 8); };
  constexpr uint64_t kHuge = uint64_t{1} << 60;
  EXPECT_NE(message(kHuge, 0, "").find("do not fit"), std::string::npos);
  EXPECT_NE(message(0, kHuge, "").find("do not fit"), std::string::npos);
  EXPECT_NE(message(0, 1, text("k", kHuge)).find("truncated"), std::string::npos);
  EXPECT_NE(message(0, 1, text("k", 1) + u32(9) + u32(8) + u64(kHuge)).find("do not fit"),
            std::string::npos);
  EXPECT_NE(message(0, 1, text("k", 1) + u32(9) + u32(9) + u64(1)).find("not supported"),
            std::string::npos);
  EXPECT_NE(message(0, 1, text("k", 1) + u32(77)).find("not one of GGUF's"), std::string::npos);
  EXPECT_NE(
      message(0, 2, text("k", 1) + u32(4) + u32(1) + text("k", 1) + u32(4) + u32(1)).find("twice"),
      std::string::npos);
  const std::string t = text("t", 1);
  EXPECT_NE(message(1, 0, t + u32(9)).find("dimensions"), std::string::npos);
  EXPECT_NE(message(1, 0, t + u32(2) + u64(kHuge) + u64(kHuge) + u32(0) + u64(0)).find("not sane"),
            std::string::npos);
  EXPECT_NE(message(1, 0, t + u32(1) + u64(1 << 20) + u32(0) + u64(0)).find("truncated"),
            std::string::npos);
  EXPECT_NE(message(1, 0, t + u32(1) + u64(8) + u32(0) + u64(kHuge)).find("offset"),
            std::string::npos);
  EXPECT_NE(message(1, 0, t + u32(1) + u64(33) + u32(8) + u64(0)).find("block"), std::string::npos);
  const std::string overlap =
      t + u32(1) + u64(16) + u32(0) + u64(0) + text("u", 1) + u32(1) + u64(8) + u32(0) + u64(32);
  EXPECT_NE(message(2, 0, overlap).find("overlap"), std::string::npos);
}

TEST(TensorFiles, OpensByContent) {
  const TempDir dir;
  put(dir.file("empty"), "");
  put(dir.file("text"), "this is no model, only a text of some length");
  put(dir.file("old"), "fmgg" + std::string(100, 'x'));
  EXPECT_NE(error_of<IoError>([&] { open_tensor_file(dir.file("empty")); }).find("empty"),
            std::string::npos);
  EXPECT_NE(error_of<IoError>([&] { open_tensor_file(dir.file("text")); }).find("none of"),
            std::string::npos);
  EXPECT_NE(error_of<IoError>([&] { open_tensor_file(dir.file("old")); }).find("rwkv.cpp"),
            std::string::npos);
  EXPECT_THROW(open_tensor_file(dir.file("missing")), IoError);
  EXPECT_NE(error_of<IoError>([&] { open_tensor_file(dir.path()); }).find("model.safetensors"),
            std::string::npos);
}

}  // namespace
}  // namespace rwkv
