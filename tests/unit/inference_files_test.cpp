// Model files of other programs: the logits of the reference files, every way from one format to
// another, what is refused, tokenizers in GGUF.

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "data/io/atomic_file.h"
#include "inference/engine.h"
#include "inference/gguf_vocabulary.h"
#include "inference/load.h"
#include "model/model_export.h"
#include "tests/unit/data_test_util.h"
#include "tests/unit/model_files.h"

namespace rwkv {
namespace {

using test::error_of;
using test::TempDir;

const std::string kHere = std::string(RWKV_SOURCE_DIR) + "/tests/golden/formats/";
constexpr double kLogitTolerance = 1e-4;  // against the rwkv package in f32

/// Bits of all tensors by name.
using Tensors = std::map<std::string, std::vector<float>>;
Tensors tensors_of(const ModelFile& file, bool with_unused = true) {
  Tensors all;
  for (size_t i = 0; i < file.tensors().size(); ++i) {
    const ModelTensor& t = file.tensors()[i];
    if (!with_unused && t.name.starts_with("blocks.0.att.v") && t.name.size() == 15) continue;
    std::vector<float>& v = all[t.name];
    v.resize(static_cast<size_t>(shape_numel(t.shape)));
    file.read(i, v);
  }
  return all;
}

void expect_logits(const std::string& model, const std::string& expected) {
  const auto cases = nlohmann::json::parse(read_file(expected)).at("cases");
  const LoadedModel loaded = load_model(model);
  const auto v = static_cast<size_t>(loaded.model->config().vocab_size);
  Engine engine(*loaded.model, *loaded.weights);
  EXPECT_GE(cases.size(), 3u);
  for (const auto& [name, c] : cases.items()) {
    const auto tokens = c["tokens"].get<std::vector<int32_t>>();
    RnnState state = engine.new_state();
    std::vector<float> got;
    engine.all_logits(state, tokens, [&](int64_t, TensorView l) {
      got.insert(got.end(), l.f32(), l.f32() + l.dim(1) * static_cast<int64_t>(v));
    });
    std::vector<double> want;
    if (c["logits"].is_array())
      for (const auto& row : c["logits"])
        for (const auto& x : row) want.push_back(x.get<double>());
    else
      want = c["last_logits"].get<std::vector<double>>();
    ASSERT_GE(got.size(), want.size());
    double worst = 0;
    for (size_t i = 0; i < want.size(); ++i) {
      const double error = std::fabs(got[got.size() - want.size() + i] - want[i]);
      worst = error <= worst ? worst : error;  // a NaN stays
    }
    EXPECT_LE(worst, kLogitTolerance) << model << " " << name;
  }
}

/// Through every format and back: values in the type of the file stay what they are.
void expect_round_trips(const std::string& path, TensorType type) {
  const TempDir dir;
  const ModelFile original = ModelFile::open(path);
  const bool v4 = original.config().architecture == "rwkv4";
  const Tensors all = tensors_of(original), used = tensors_of(original, false);
  std::filesystem::create_directory(dir.file("hf"));
  struct Format {
    const char* name;
    TensorFormat format;
  };
  const std::vector<Format> formats = {{"a.h5", TensorFormat::kHdf5},
                                       {"a.pth", TensorFormat::kPth},
                                       {"hf/model.safetensors", TensorFormat::kSafetensors},
                                       {"a.gguf", TensorFormat::kGguf}};
  for (const Format& f : formats) {
    if (v4 && f.format == TensorFormat::kGguf) {
      EXPECT_THROW(export_model(original, dir.file(f.name), {.to = f.format}), ConfigError);
      continue;
    }
    // As stored, without naming a type.
    export_model(original, dir.file(f.name), {.to = f.format});
    const ModelFile first = ModelFile::open(dir.file(f.name));
    EXPECT_EQ(first.config(), original.config()) << f.name;
    EXPECT_TRUE(tensors_of(first, false) == used) << path << " " << f.name;
    for (const Format& g : formats) {
      if (v4 && g.format == TensorFormat::kGguf) continue;
      const std::string again = dir.file(str("again", g.format == f.format ? "2" : "", "-",
                                             std::filesystem::path(g.name).filename().string()));
      ExportOptions o{.to = g.format};
      if (g.format != TensorFormat::kHdf5) o.type = type;
      export_model(first, again, o);
      EXPECT_TRUE(tensors_of(ModelFile::open(again), false) == used) << f.name << " to " << g.name;
    }
  }
  // HDF5 and .pth keep the tensors that the model does not use.
  EXPECT_TRUE(tensors_of(ModelFile::open(dir.file("a.h5"))) == all);
  if (all.size() > used.size()) {
    EXPECT_TRUE(tensors_of(ModelFile::open(dir.file("a.pth"))) == all);
  }
}

TEST(ReferenceFiles, Rwkv4) {
  expect_logits(kHere + "tiny_rwkv4_bf16.pth", kHere + "tiny_rwkv4_expected.json");
  expect_round_trips(kHere + "tiny_rwkv4_bf16.pth", TensorType::kBF16);
}

TEST(ReferenceFiles, Rwkv7) {
  const char* data = std::getenv("RWKV_TEST_DATA");
  if (data == nullptr) GTEST_SKIP() << "RWKV_TEST_DATA is not set";
  const std::string refs = std::string(data) + "/refs/";
  const Tensors pth = tensors_of(ModelFile::open(refs + "tiny_rwkv7_bf16.pth"), false);
  for (const char* name : {"tiny_rwkv7_bf16.pth", "tiny_rwkv7_fla", "tiny_rwkv7.gguf"}) {
    expect_logits(refs + name, refs + "tiny_rwkv7_expected.json");
    EXPECT_TRUE(tensors_of(ModelFile::open(refs + name), false) == pth) << name;
    expect_round_trips(refs + name, TensorType::kBF16);
  }
}

/// A small random model as a .pth of our own.
std::string random_pth(const TempDir& dir, const std::string& name, TensorType type,
                       const std::string& architecture = "rwkv7") {
  const test::TestModel m = architecture == "rwkv7" ? test::random_model(3, 2, 64, 300)
                                                    : test::random_rwkv4(3, 2, 64, 40);
  test::write_pth_model(dir.file(name), m, type);
  return dir.file(name);
}

TEST(ModelFiles, EveryTypeAndArchitecture) {
  const TempDir dir;
  for (const char* architecture : {"rwkv7", "rwkv4"})
    for (const TensorType type : {TensorType::kF32, TensorType::kF16, TensorType::kBF16})
      expect_round_trips(random_pth(dir, "m.pth", type, architecture), type);
}

TEST(ModelFiles, PthHasLayerZerosUnusedTensors) {
  const TempDir dir;
  const std::string without = random_pth(dir, "m.pth", TensorType::kBF16);
  export_model(ModelFile::open(without), dir.file("out.pth"), {.to = TensorFormat::kPth});
  const auto file = open_tensor_file(dir.file("out.pth"));
  for (const auto& [name, shape] : {std::pair{"blocks.0.att.v0", Shape{1, 1, 64}},
                                    {"blocks.0.att.v1", Shape{64, 32}},
                                    {"blocks.0.att.v2", Shape{32, 64}}}) {
    const auto i = file->find(name);
    ASSERT_TRUE(i) << name;
    EXPECT_EQ(file->tensors()[*i].shape, shape) << name;
    EXPECT_EQ(file->tensors()[*i].type, TensorType::kBF16) << name;
  }
}

TEST(ModelFiles, RoundingIsCheckedAndQ8Loads) {
  const TempDir dir;
  const ModelFile m = ModelFile::open(random_pth(dir, "m.pth", TensorType::kF32));
  export_model(m, dir.file("q8.gguf"), {.to = TensorFormat::kGguf, .type = TensorType::kQ8_0});
  const ModelFile q8 = ModelFile::open(dir.file("q8.gguf"));
  const Tensors a = tensors_of(m), b = tensors_of(q8);
  for (const auto& [name, values] : a) {
    const bool large = name.ends_with(".weight") && name.find("ln") == std::string::npos;
    if (!large) {
      EXPECT_EQ(b.at(name), values) << name;
      continue;
    }
    double error = 0, norm = 0;
    for (size_t i = 0; i < values.size(); ++i) {
      error += std::pow(values[i] - b.at(name)[i], 2);
      norm += std::pow(values[i], 2);
    }
    EXPECT_LE(std::sqrt(error / norm), 0.01) << name;
    EXPECT_GT(error, 0) << name;
  }
  // Combinations that do not exist, and the model's own file.
  EXPECT_THROW(
      export_model(m, dir.file("x.pth"), {.to = TensorFormat::kPth, .type = TensorType::kQ8_0}),
      ConfigError);
  EXPECT_THROW(
      export_model(m, dir.file("x.h5"), {.to = TensorFormat::kHdf5, .type = TensorType::kBF16}),
      ConfigError);
  EXPECT_THROW(export_model(m, dir.file("m.pth"), {.to = TensorFormat::kPth}), ConfigError);
}

/// The tensors of a .pth under other names, without some, with others.
template <class Change>
std::string changed(const TempDir& dir, const std::string& from, const Change& change) {
  const auto in = open_tensor_file(from);
  std::vector<TensorPlan> plan;
  std::vector<std::vector<float>> values;
  for (size_t i = 0; i < in->tensors().size(); ++i) {
    const TensorInfo& t = in->tensors()[i];
    TensorPlan p{t.name, t.shape, t.type};
    if (!change(p)) continue;
    std::vector<float> v(static_cast<size_t>(shape_numel(t.shape)));
    in->read(i, v);
    v.resize(static_cast<size_t>(shape_numel(p.shape)));
    plan.push_back(p);
    values.push_back(v);
  }
  const auto out = create_pth(dir.file("changed.pth"), plan);
  for (const auto& v : values) out->write(v);
  out->finish();
  return dir.file("changed.pth");
}

TEST(ModelFiles, PrefixesAndShapesOfOtherPrograms) {
  const TempDir dir;
  const std::string path = random_pth(dir, "m.pth", TensorType::kBF16);
  const Tensors expected = tensors_of(ModelFile::open(path));
  for (const char* prefix : {"module.", "_forward_module.", "_orig_mod.module.", "model."}) {
    const std::string file = changed(dir, path, [&](TensorPlan& t) {
      t.name = prefix + t.name;
      return true;
    });
    EXPECT_TRUE(tensors_of(ModelFile::open(file)) == expected) << prefix;
  }
  // Vectors as (C), and r_k flat.
  const std::string flat = changed(dir, path, [&](TensorPlan& t) {
    if (t.shape.size() == 3 || t.name.ends_with("r_k")) t.shape = {shape_numel(t.shape)};
    return true;
  });
  EXPECT_TRUE(tensors_of(ModelFile::open(flat)) == expected);
}

TEST(ModelFiles, OldFlaFilesAndTiedEmbeddings) {
  const TempDir dir;
  const ModelFile model = ModelFile::open(random_pth(dir, "m.pth", TensorType::kBF16));
  std::filesystem::create_directory(dir.file("hf"));
  const std::string path = dir.file("hf/model.safetensors");
  export_model(model, path, {.to = TensorFormat::kSafetensors});
  Tensors expected = tensors_of(model);
  const auto in = open_tensor_file(path);
  std::vector<TensorPlan> plan;
  std::vector<std::vector<float>> values;
  for (const TensorInfo& t : in->tensors()) {
    if (t.name == "lm_head.weight") continue;
    std::vector<float> v(static_cast<size_t>(shape_numel(t.shape)));
    in->read(*in->find(t.name), v);
    if (t.name.find(".attn.x_") == std::string::npos) {
      plan.push_back({t.name, t.shape, t.type});
      values.push_back(v);
      continue;
    }
    // One tensor of six rows in the order r, w, k, v, a, g.
    const size_t row = std::string_view("rwkvag").find(t.name.back());
    const std::string stack = t.name.substr(0, t.name.size() - 1) + "x";
    size_t at = 0;
    while (at < plan.size() && plan[at].name != stack) ++at;
    if (at == plan.size()) {
      plan.push_back({stack, {6, 1, 1, static_cast<int64_t>(v.size())}, t.type});
      values.emplace_back(6 * v.size());
    }
    std::copy(v.begin(), v.end(), values[at].begin() + static_cast<int64_t>(row * v.size()));
  }
  const auto out = create_safetensors(path, plan);
  for (const auto& v : values) out->write(v);
  out->finish();
  // Without a head it is an error, unless the config says that the embedding is one.
  EXPECT_NE(error_of<IoError>([&] { ModelFile::open(dir.file("hf")); }).find("no head.weight"),
            std::string::npos);
  auto config = nlohmann::json::parse(read_file(dir.file("hf/config.json")));
  config["tie_word_embeddings"] = true;
  write_file_atomic(dir.file("hf/config.json"), config.dump());
  expected["head.weight"] = expected["emb.weight"];
  EXPECT_TRUE(tensors_of(ModelFile::open(dir.file("hf"))) == expected);
}

TEST(ModelFiles, RefusesWhatIsNoModel) {
  const TempDir dir;
  const std::string path = random_pth(dir, "m.pth", TensorType::kBF16);
  const auto message = [&](const auto& change) {
    const std::string file = changed(dir, path, change);
    return error_of<IoError>([&] { ModelFile::open(file); });
  };
  const auto rename = [](const char* from, const char* to) {
    return [=](TensorPlan& t) {
      if (t.name == from) t.name = to;
      return true;
    };
  };
  const auto reshape = [](const char* name, Shape shape) {
    return [=](TensorPlan& t) {
      if (t.name == name) t.shape = shape;
      return true;
    };
  };
  const std::string wrong[] = {
      message([](TensorPlan& t) { return t.name != "blocks.1.ffn.key.weight"; }),
      message([](TensorPlan& t) { return t.name != "emb.weight"; }),
      message(rename("blocks.1.ln1.bias", "blocks.1.ln3.bias")),
      message(rename("ln_out.bias", "blocks.99999999999.x")),
      message(rename("ln_out.bias", "blocks.900.x")),
      message(reshape("blocks.1.att.key.weight", {32, 128})),
      message(reshape("emb.weight", {300, 63})),
      message(reshape("blocks.0.att.r_k", {32, 2})),
      message(reshape("blocks.0.att.w1", {64, 0})),
      message(rename("blocks.0.ffn.x_k", "blocks.0.ffn.s_emb.weight")),
      message(rename("blocks.0.att.r_k", "blocks.0.att.time_maa_x")),
      message([](TensorPlan& t) {
        if (t.name.ends_with("r_k")) t.name.replace(t.name.size() - 3, 3, "other");
        return true;
      })};
  const char* parts[] = {"no blocks.1.ffn.key.weight",
                         "no emb.weight",
                         "no blocks.1.ln1.bias",
                         "layer number",
                         "too few",
                         "blocks.1.att.key.weight has shape (32, 128), expected (64, 64)",
                         "n_embd is 63",
                         "head_size is 2",
                         "extent of 0",
                         "DeepEmbed",
                         "RWKV-6",
                         "RWKV-5"};
  for (size_t i = 0; i < std::size(parts); ++i)
    EXPECT_NE(wrong[i].find(parts[i]), std::string::npos) << parts[i] << "\n" << wrong[i];
  EXPECT_NE(error_of<IoError>([&] {
              ModelFile::open(kHere + "torch_variants.pth");
            }).find("not those of an RWKV"),
            std::string::npos);
}

TEST(ModelFiles, ConfigJsonIsBelievedOnlyIfItFits) {
  const TempDir dir;
  std::filesystem::create_directory(dir.file("hf"));
  export_model(ModelFile::open(random_pth(dir, "m.pth", TensorType::kBF16)),
               dir.file("hf/model.safetensors"), {.to = TensorFormat::kSafetensors});
  const auto good = nlohmann::json::parse(read_file(dir.file("hf/config.json")));
  EXPECT_EQ(good["num_hidden_layers"], 2);
  EXPECT_EQ(good["model_type"], "rwkv7");
  const auto message = [&](const char* key, const nlohmann::json& value) {
    auto j = good;
    j[key] = value;
    write_file_atomic(dir.file("hf/config.json"), j.dump());
    return error_of<IoError>([&] { ModelFile::open(dir.file("hf")); });
  };
  EXPECT_NE(message("num_hidden_layers", 3).find("num_hidden_layers"), std::string::npos);
  EXPECT_NE(message("hidden_act", "gelu").find("gelu"), std::string::npos);
  EXPECT_NE(message("norm_eps", 1e-6).find("epsilon"), std::string::npos);
  EXPECT_NE(message("norm_first", false).find("norm_first"), std::string::npos);
  EXPECT_NE(message("attn", {{"layers", {1}}}).find("attention"), std::string::npos);
  EXPECT_NE(message("model_type", "llama").find("llama"), std::string::npos);
  EXPECT_NE(message("hidden_size", "wide").find("config.json"), std::string::npos);
  write_file_atomic(dir.file("hf/config.json"), "{");
  EXPECT_THROW(ModelFile::open(dir.file("hf")), IoError);
  // Without one the tensors say everything.
  std::filesystem::remove(dir.file("hf/config.json"));
  EXPECT_EQ(ModelFile::open(dir.file("hf")).config().n_layer, 2);
}

TEST(GgufVocabulary, TokenizersComeBack) {
  const TempDir dir;
  const ModelFile m = ModelFile::open(random_pth(dir, "m.pth", TensorType::kBF16));
  const auto through = [&](const Tokenizer* t) {
    export_model(
        m, dir.file("t.gguf"),
        {.to = TensorFormat::kGguf, .gguf_keys = gguf_tokenizer_keys(t, m.config().vocab_size)});
    return tokenizer_of_gguf(*open_gguf_file(dir.file("t.gguf")));
  };
  EXPECT_EQ(through(nullptr), nullptr);
  const ByteTokenizer bytes;
  EXPECT_EQ(through(&bytes)->name(), "bytes");
  const auto world = make_tokenizer("world", test::tiny_world_vocabulary());
  const auto back = through(world.get());
  ASSERT_NE(back, nullptr);
  EXPECT_EQ(back->name(), "world");
  EXPECT_EQ(back->vocab_size(), world->vocab_size());
  for (int32_t id = 0; id < world->vocab_size(); ++id)
    EXPECT_EQ(back->token_bytes(id), world->token_bytes(id)) << id;
  EXPECT_EQ(load_model(dir.file("t.gguf")).tokenizer->name(), "world");
  EXPECT_THROW(gguf_tokenizer_keys(world.get(), 100), ConfigError);
}

TEST(GgufVocabulary, NeoxComesBack) {
  if (!has_neox_tokenizer()) GTEST_SKIP() << "a build without the tokenizer";
  const TempDir dir;
  const ModelFile m = ModelFile::open(random_pth(dir, "m.pth", TensorType::kBF16));
  const auto neox = make_tokenizer(
      "neox", read_file(std::string(RWKV_SOURCE_DIR) + "/tests/unit/tiny_neox.json"));
  auto keys = gguf_tokenizer_keys(neox.get(), m.config().vocab_size);
  const auto write = [&] {
    export_model(m, dir.file("t.gguf"), {.to = TensorFormat::kGguf, .gguf_keys = keys});
    return load_model(dir.file("t.gguf")).tokenizer;
  };
  const auto back = write();
  ASSERT_NE(back, nullptr);
  EXPECT_EQ(back->name(), "neox");
  EXPECT_EQ(back->vocab_size(), neox->vocab_size());
  for (int32_t id = 0; id < neox->vocab_size(); ++id)
    EXPECT_EQ(back->token_bytes(id), neox->token_bytes(id)) << id;
  // Merges, runs of spaces, special tokens, texts that NFC changes, bytes that are no text.
  for (const char* text : {"hello the there abcaaaa", "a<|endoftext|>b <|x|>y<|padding|>",
                           "  12   123    x", "e\xcc\x81! \xe6\x97\xa5", "\xff\xfe 're's\n\n"})
    EXPECT_EQ(back->encode(text), neox->encode(text)) << text;

  const auto key = [&](const char* name) -> GgufValue& {
    return std::ranges::find(keys, name, &decltype(keys)::value_type::first)->second;
  };
  auto& tokens = std::get<std::vector<std::string>>(key("tokenizer.ggml.tokens"));
  std::swap(tokens[40], tokens[41]);  // other ids are another tokenizer
  EXPECT_NE(write()->encode("&'"), neox->encode("&'"));
  tokens[40] = tokens[41];
  EXPECT_NE(error_of<IoError>(write).find("the same"), std::string::npos);
  key("tokenizer.ggml.pre") = std::string("llama-bpe");  // texts are split in another way
  EXPECT_EQ(write(), nullptr);
}

TEST(GgufVocabulary, ThePublishedNeoxComesBack) {
  const char* folder = std::getenv("RWKV_TEST_DATA");
  if (folder == nullptr || !has_neox_tokenizer()) GTEST_SKIP() << "RWKV_TEST_DATA is not set";
  const TempDir dir;
  const auto neox = load_tokenizer("neox", {.file = str(folder, "/tokenizers/20B_tokenizer.json")});
  const std::vector<TensorPlan> plan = {{"x", {1}, TensorType::kF32}};
  const auto out = create_gguf(dir.file("t.gguf"), gguf_tokenizer_keys(neox.get(), 50304), plan);
  out->write(std::vector<float>{1});
  out->finish();
  const auto back = tokenizer_of_gguf(*open_gguf_file(dir.file("t.gguf")));
  ASSERT_NE(back, nullptr);
  const auto reference =
      nlohmann::json::parse(read_file(str(folder, "/refs/tokenizer_reference.json")));
  EXPECT_GE(reference["cases"].size(), 252u);
  for (const auto& c : reference["cases"])
    EXPECT_EQ(back->encode(c["text"].get<std::string>()), c["neox"].get<std::vector<int32_t>>());
}

TEST(LoadModel, FindsAVocabularyBesideTheFile) {
  const TempDir dir;
  const std::string path = random_pth(dir, "m.pth", TensorType::kBF16);
  EXPECT_EQ(load_model(path).tokenizer, nullptr);
  std::ofstream(dir.file("rwkv_vocab_v20230424.txt")) << test::tiny_world_vocabulary();
  EXPECT_EQ(load_model(path).tokenizer->name(), "world");
}

}  // namespace
}  // namespace rwkv
