// Damaged and hostile model files, see hostile.h.

#include <filesystem>

#include "data/io/byte_file.h"
#include "data/io/crc32.h"
#include "data/io/hdf5_file.h"
#include "data/io/hdf5_shards.h"
#include "data/io/seal.h"
#include "inference/gguf_vocabulary.h"
#include "inference/load.h"
#include "inference/state_file.h"
#include "model/model_export.h"
#include "tests/unit/data_test_util.h"
#include "tests/unit/hostile.h"
#include "tests/unit/model_files.h"

namespace rwkv {
namespace {

using test::attempt;
using test::put_file;
using test::Victim;

const std::string kHere = std::string(RWKV_SOURCE_DIR) + "/tests/golden/formats/";

/// Opens whatever there is, reads all of it, loads it as a model with its tokenizer.
std::string try_to_open(const std::string& path) {
  const std::string message = attempt("reading tensors", [&] {
    const auto file = open_tensor_file(path);
    std::vector<float> values;
    uint64_t total = 0;
    for (size_t i = 0; i < file->tensors().size(); ++i) {
      const TensorInfo& t = file->tensors()[i];
      if (t.type == TensorType::kOther || file->format() == TensorFormat::kHdf5) continue;
      const uint64_t n = checked_numel(t.shape, t.name, path);
      // A storage that many tensors share takes time, not memory.
      if ((total += n) > (1 << 22)) break;
      values.resize(n);
      file->read(i, values);
    }
  });
  const std::string loading = attempt("loading the model", [&] { load_model(path); });
  return loading.empty() ? message : loading;
}

class HostileFiles : public testing::TestWithParam<std::string> {
 protected:
  const test::TempDir dir_;

  void SetUp() override {
    const test::TestModel m = test::random_model(3, 2, 32, 300, 32);
    test::write_pth_model(dir_.file("m.pth"), m, TensorType::kBF16);
    const ModelFile model = ModelFile::open(dir_.file("m.pth"));
    const auto world = make_tokenizer("world", test::tiny_world_vocabulary());
    std::filesystem::create_directory(dir_.file("hf"));
    export_model(model, dir_.file("hf/model.safetensors"), {.to = TensorFormat::kSafetensors});
    export_model(model, dir_.file("m.gguf"),
                 {.to = TensorFormat::kGguf,
                  .type = TensorType::kQ8_0,
                  .gguf_keys = gguf_tokenizer_keys(world.get(), model.config().vocab_size)});
    const auto neox = has_neox_tokenizer()
                          ? make_tokenizer("neox", read_file(std::string(RWKV_SOURCE_DIR) +
                                                             "/tests/unit/tiny_neox.json"))
                          : nullptr;
    export_model(model, dir_.file("neox.gguf"),
                 {.to = TensorFormat::kGguf,
                  .gguf_keys = gguf_tokenizer_keys(neox.get(), model.config().vocab_size)});
    export_model(model, dir_.file("m.h5"), {.to = TensorFormat::kHdf5});
    // Small: every mutation of it costs a process, and should meet structure, not numbers.
    const test::TestModel small = test::random_model(3, 2, 32, 8, 32);
    Hdf5File bare = Hdf5File::create(dir_.file("bare.h5"));
    write_model(bare, small.model->config(), small.model->params(), *small.weights, {});
    bare.close();
    // A vocabulary is the one thing that is stored in compressed chunks.
    const test::TestModel bytes = test::random_model(3, 2, 32, 257, 32);
    Hdf5File chunked = Hdf5File::create(dir_.file("chunked.h5"));
    std::vector<uint8_t> text(3000);
    for (size_t i = 0; i < text.size(); ++i) text[i] = static_cast<uint8_t>(i * i >> 3);
    write_model(chunked, bytes.model->config(), bytes.model->params(), *bytes.weights,
                {"bytes", make_tokenizer("bytes", "")->hash(), text});
    chunked.close();
    write_shards(small);
    without_checksums(dir_.file("m.pth"), dir_.file("no-crc.pth"));
    std::filesystem::copy(kHere + "torch_variants.pth", dir_.file("variants.pth"));
    without_checksums(dir_.file("variants.pth"), dir_.file("variants-no-crc.pth"));
    std::filesystem::copy(kHere + "torch_legacy.pth", dir_.file("legacy.pth"));
  }

  /// As two ranks would, with half of every tensor each; index.json is what the index is made of.
  void write_shards(const test::TestModel& m) {
    const std::string folder = dir_.file("m.shards");
    std::filesystem::create_directory(folder);
    ShardIndex index;
    index.groups = {"weights"};
    const auto specs = m.model->params().specs();
    for (const ParamSpec& p : specs)
      index.tensors.push_back(
          {p.name, Shape(p.spec.dim.begin(), p.spec.dim.begin() + p.spec.rank)});
    for (int r = 0; r < 2; ++r) {
      index.files.push_back({shard_file_name(r), 0, 0, {}});
      std::vector<float> values;
      std::vector<int64_t> at;
      for (size_t i = 0; i < specs.size(); ++i) {
        const int64_t n = specs[i].spec.numel(), begin = r * (n / 2), end = r == 0 ? n / 2 : n;
        const float* from = (*m.weights)[static_cast<ParamId>(i)].f32();
        index.files.back().pieces.push_back({static_cast<int64_t>(i), begin, end - begin});
        at.push_back(static_cast<int64_t>(values.size()));
        values.insert(values.end(), from + begin, from + end);
      }
      ShardFileWriter writer(folder, static_cast<size_t>(r), index);
      writer.write(values, at);
      index.files.back() = writer.finish();
    }
    put_file(dir_.file("index.json"), index.json());
    model_config_ = m.model->config();
    write_index(index.json());
  }
  void write_index(const std::string& json) const {
    const std::string path = shard_index_path(dir_.file("m.shards"));
    std::filesystem::remove(path);
    Hdf5File file = Hdf5File::create(path);
    write_model_header(file, model_config_, {});
    file.write_string("shards/index", json);
    file.close();
    seal_hdf5(path);
  }

  /// PyTorch may leave checksums out, and then they protect no pickle.
  static void without_checksums(const std::string& from, const std::string& to) {
    std::string bytes = read_file(from);
    for (size_t at = 0; (at = bytes.find("PK\x01\x02", at)) != std::string::npos; ++at)
      bytes.replace(at + 16, 4, 4, '\0');
    put_file(to, bytes);
  }

  /// See data/io/seal.h.
  static std::string seal_of(const std::string& body) {
    const std::string json =
        str(R"({"datasets": [], "rest_crc32": )", crc32_of(std::span<const char>(body)), "}");
    ByteBuilder b;
    b.text(json);
    b.number<uint64_t>(body.size());
    b.number<uint64_t>(json.size());
    b.number<uint32_t>(crc32_of(std::span<const char>(json)));
    b.text("GREYSEAL");
    return b.bytes;
  }

  Victim victim(const std::string& name) const {
    const auto model = [&](const char* file, size_t begin = 0, size_t end = SIZE_MAX) {
      const std::string path = dir_.file(file);
      return Victim{name, path, [path] { return try_to_open(path); }, begin, end};
    };
    const auto in_folder = [&](const char* file, size_t end) {
      const std::string folder = dir_.file("hf");
      return Victim{name, folder + file, [folder] { return try_to_open(folder); }, 0, end};
    };
    // The tensors of PyTorch's own files make up no model.
    const auto tensors = [&](const char* file) {
      const std::string path = dir_.file(file);
      return Victim{name, path, [path] {
                      try_to_open(path);
                      return attempt("opening tensors", [&] { open_tensor_file(path); });
                    }};
    };
    if (name == "pth") return tensors("variants.pth");
    if (name == "pth_pickle") return tensors("variants-no-crc.pth");
    if (name == "pth_legacy") return tensors("legacy.pth");
    if (name == "pth_model") return model("m.pth");
    // The pickle comes first in our own files, then the tensors, then the directory.
    if (name == "pth_model_pickle") return model("no-crc.pth", 64, 8000);
    if (name == "pth_directory")
      return model("no-crc.pth", std::filesystem::file_size(dir_.file("no-crc.pth")) - 4000);
    if (name == "safetensors") return in_folder("/model.safetensors", 7000);
    if (name == "config_json") return in_folder("/config.json", SIZE_MAX);
    if (name == "gguf") return model("m.gguf", 0, 16000);
    if (name == "gguf_neox") return model("neox.gguf", 0, 16000);
    if (name == "hdf5") return model("m.h5");
    if (name == "hdf5_sealed_again" || name == "hdf5_vocabulary") {  // on purpose: the seal holds
      const bool chunks = name == "hdf5_vocabulary";
      const std::string from = dir_.file(chunks ? "chunked.h5" : "bare.h5");
      const std::string path = dir_.file("sealed.h5");
      Victim v{name, from, [from, path] {
                 const std::string body = read_file(from);
                 put_file(path, body + seal_of(body));
                 return try_to_open(path);
               }};
      if (chunks) v.structure_end = 14000;
      v.mutations = 100;
      v.cuts_show = false;  // in values that nothing tells apart from others
      return v;
    }
    if (name == "hdf5_without_seal") {
      Victim v = model("bare.h5");
      v.mutations = 100;  // slow: two processes each
      return v;
    }
    if (name == "shards") {
      const std::string folder = dir_.file("m.shards");
      return Victim{name, folder + "/rank_0001.h5", [folder] { return try_to_open(folder); }};
    }
    if (name == "shards_index") {  // made on purpose: its seal holds
      const std::string json = dir_.file("index.json"), folder = dir_.file("m.shards");
      Victim v{name, json, [this, json, folder]() -> std::string {
                 const std::string text = read_file(json);
                 if (text.find('\0') != std::string::npos) return "HDF5 has no such texts";
                 write_index(text);
                 return try_to_open(folder);
               }};
      v.mutations = 100;
      return v;
    }
    throw InternalError("no victim " + name);
  }
  ModelConfig model_config_;
};

INSTANTIATE_TEST_SUITE_P(Format, HostileFiles,
                         testing::Values("pth", "pth_pickle", "pth_legacy", "pth_model",
                                         "pth_model_pickle", "pth_directory", "safetensors",
                                         "config_json", "gguf", "gguf_neox", "hdf5",
                                         "hdf5_sealed_again", "hdf5_vocabulary",
                                         "hdf5_without_seal", "shards", "shards_index"),
                         [](const auto& format) { return format.param; });

TEST_P(HostileFiles, TruncatedAtEveryPercent) {
  test::truncate_everywhere(victim(GetParam()));
}

TEST_P(HostileFiles, Mutated) {
  test::mutate_often(victim(GetParam()));
}

using AbsurdSizes = HostileFiles;
INSTANTIATE_TEST_SUITE_P(Format, AbsurdSizes, testing::Values("gguf", "safetensors"),
                         [](const auto& format) { return format.param; });

// Sizes that would need terabytes are refused before anything is allocated.
TEST_P(AbsurdSizes, NeedNoMemory) {
  const int64_t before = test::peak_mib();
  const Victim v = victim(GetParam());
  const std::string bytes = read_file(v.changed);
  for (size_t at = 8; at + 16 <= 4096; ++at) {
    std::string changed = bytes;
    if (GetParam() == "gguf") {
      if (at % 4 != 0) continue;
      const uint64_t huge = uint64_t{1} << 40;
      std::memcpy(&changed[at], &huge, 8);
      put_file(v.changed, changed);
      v.open();
    } else if (bytes[at] >= '0' && bytes[at] <= '9') {
      put_file(v.changed, changed.replace(at, 11, "99999999999"));
      EXPECT_NE(v.open(), "") << at;
    }
  }
  EXPECT_LE(test::peak_mib() - before, test::kMaxGrowthMib);
}

// A state is read by whoever continues a prompt.
TEST(HostileStates, CutAndMutated) {
  const test::TempDir dir;
  const test::TestModel m = test::random_model(3, 2, 32, 300, 32);
  Engine engine(*m.model, *m.weights);
  RnnState state = engine.new_state();
  engine.prefill(state, std::vector<int32_t>{5, 6, 7});
  write_state_file(dir.file("s"), engine, state, 3);
  const Victim v{"state", dir.file("s"),
                 [&] {
                   return attempt("reading a state",
                                  [&] { read_state_file(dir.file("s"), engine, state); });
                 },
                 0, 1200};
  test::truncate_everywhere(v);
  test::mutate_often(v);
}

}  // namespace
}  // namespace rwkv
