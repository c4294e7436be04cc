// Damaged and hostile files: an IoError (exit code 3) or a model, never anything else, and never
// more memory than the file justifies. RWKV_MUTATIONS sets the number of mutations per format; the
// suite runs a few, 10,000 and more are run by hand with sanitizers (docs/formats.md).

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>

#include "data/io/atomic_file.h"
#include "data/io/byte_file.h"
#include "data/io/hdf5_file.h"
#include "inference/gguf_vocabulary.h"
#include "inference/load.h"
#include "kernels/core/rng.h"
#include "model/model_export.h"
#include "tests/unit/data_test_util.h"
#include "tests/unit/inference_model.h"

// The HDF5 library leaks a little when it refuses some damaged files.
#if defined(__SANITIZE_ADDRESS__)
extern "C" const char* __lsan_default_suppressions();
extern "C" const char* __lsan_default_suppressions() {
  return "leak:libhdf5\n";
}
#endif

namespace rwkv {
namespace {

using test::TempDir;

const std::string kHere = std::string(RWKV_SOURCE_DIR) + "/tests/golden/formats/";
constexpr int64_t kMaxGrowthMib = 512;  // of a process that reads files of 100 kB

int64_t mutations() {
  const char* n = std::getenv("RWKV_MUTATIONS");
  return n != nullptr ? std::atoll(n) : 300;
}

int64_t peak_mib() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_maxrss / 1024;
}

void put(const std::string& path, std::string_view bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

/// Opens whatever there is, reads all of it, loads it as a model with its tokenizer.
/// "": it worked; else the message. Everything but an error with exit code 3 fails the test.
std::string try_to_open(const std::string& path) {
  std::string message;
  const auto attempt = [&](const char* doing, const std::function<void()>& body) {
    try {
      body();
    } catch (const Error& e) {
      message = e.what();
      EXPECT_EQ(e.exit_code(), 3) << doing << ": " << e.what();
    } catch (const std::exception& e) {
      message = e.what();
      ADD_FAILURE() << doing << ": " << e.what();
    }
  };
  attempt("reading tensors", [&] {
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
  attempt("loading the model", [&] { load_model(path); });
  return message;
}

/// One change of the kinds that files suffer and attackers make.
void mutate(std::string& bytes, const Rng& rng, uint64_t& draw, size_t begin, size_t end) {
  const auto below = [&](uint64_t n) { return rng.below(draw++, n); };
  static constexpr uint64_t kInteresting[] = {0,
                                              1,
                                              0x7f,
                                              0xff,
                                              0x7fff,
                                              0xffff,
                                              0x7fffffff,
                                              0xffffffff,
                                              0x7fffffffffffffff,
                                              0xffffffffffffffff,
                                              uint64_t{1} << 32,
                                              uint64_t{1} << 48,
                                              uint64_t{1} << 60};
  end = std::min(end, bytes.size());
  if (begin >= end) begin = 0, end = bytes.size();
  if (end == 0) return;
  const size_t at = begin + below(end - begin);
  switch (below(6)) {
    case 0:
      bytes[at] = static_cast<char>(bytes[at] ^ (1 << below(8)));
      break;
    case 1:
      bytes[at] = static_cast<char>(below(256));
      break;
    case 2: {
      const uint64_t value = kInteresting[below(std::size(kInteresting))];
      const size_t n = std::min<size_t>(size_t{1} << below(4), bytes.size() - at);
      std::memcpy(&bytes[at], &value, n);
      break;
    }
    case 3:
      bytes.erase(at, 1 + below(16));
      break;
    case 4:
      bytes.insert(at, bytes.substr(begin + below(end - begin), 1 + below(64)));
      break;
    default: {  // another part of the file over this one
      const std::string piece = bytes.substr(begin + below(end - begin), 1 + below(32));
      bytes.replace(at, std::min(piece.size(), bytes.size() - at), piece);
    }
  }
}

/// A format's file, and where in it the structure is: most mutations go there.
struct Victim {
  std::string name, file;  ///< file: what is opened
  std::string changed;     ///< file that is changed; `file` itself, or one beside it
  size_t structure_begin, structure_end;
};

class HostileFiles : public testing::Test {
 protected:
  TempDir dir_;

  void SetUp() override {
    const test::TestModel m = test::random_model(3, 2, 32, 300, 32);
    std::vector<TensorPlan> plan;
    for (const ParamSpec& p : m.model->params().specs())
      plan.push_back(
          {p.name, Shape(p.spec.dim.begin(), p.spec.dim.begin() + p.spec.rank), TensorType::kBF16});
    const auto out = create_pth(dir_.file("m.pth"), plan);
    for (const TensorPlan& t : plan) out->write(m.tensor(t.name));
    out->finish();
    const ModelFile model = ModelFile::open(dir_.file("m.pth"));
    const auto world = make_tokenizer("world", test::tiny_world_vocabulary());
    std::filesystem::create_directory(dir_.file("hf"));
    export_model(model, dir_.file("hf/model.safetensors"), {.to = TensorFormat::kSafetensors});
    export_model(model, dir_.file("m.gguf"),
                 {.to = TensorFormat::kGguf,
                  .type = TensorType::kQ8_0,
                  .gguf_keys = gguf_tokenizer_keys(world.get(), model.config().vocab_size)});
    export_model(model, dir_.file("m.h5"), {.to = TensorFormat::kHdf5});
    Hdf5File bare = Hdf5File::create(dir_.file("bare.h5"));
    write_model(bare, m.model->config(), m.model->params(), *m.weights, {});
    bare.close();
    without_checksums(dir_.file("m.pth"), dir_.file("no-crc.pth"));
    std::filesystem::copy(kHere + "torch_variants.pth", dir_.file("variants.pth"));
    without_checksums(dir_.file("variants.pth"), dir_.file("variants-no-crc.pth"));
    std::filesystem::copy(kHere + "torch_legacy.pth", dir_.file("legacy.pth"));
  }

  /// PyTorch may leave checksums out, and then they protect no pickle.
  static void without_checksums(const std::string& from, const std::string& to) {
    std::string bytes = read_file(from);
    for (size_t at = 0; (at = bytes.find("PK\x01\x02", at)) != std::string::npos; ++at)
      bytes.replace(at + 16, 4, 4, '\0');
    put(to, bytes);
  }

  std::vector<Victim> victims() const {
    const auto size = [&](const char* f) { return std::filesystem::file_size(dir_.file(f)); };
    const auto whole = [&](const char* name, const char* f) {
      return Victim{name, dir_.file(f), dir_.file(f), 0, size(f)};
    };
    std::vector<Victim> v = {whole("pth", "variants.pth"),
                             whole("pth pickle", "variants-no-crc.pth"),
                             whole("legacy pth", "legacy.pth"), whole("pth model", "m.pth")};
    // The pickle comes first in our own files, then the tensors, then the directory.
    v.push_back({"pth model pickle", dir_.file("no-crc.pth"), dir_.file("no-crc.pth"), 64, 8000});
    v.push_back({"pth directory", dir_.file("no-crc.pth"), dir_.file("no-crc.pth"),
                 size("no-crc.pth") - 4000, size("no-crc.pth")});
    v.push_back({"safetensors", dir_.file("hf"), dir_.file("hf/model.safetensors"), 0, 7000});
    v.push_back({"config.json", dir_.file("hf"), dir_.file("hf/config.json"), 0, SIZE_MAX});
    v.push_back({"gguf", dir_.file("m.gguf"), dir_.file("m.gguf"), 0, 16000});
    v.push_back(whole("hdf5", "m.h5"));
    v.push_back(whole("hdf5 without seal", "bare.h5"));
    return v;
  }
};

TEST_F(HostileFiles, TheVictimsAreWholeFirst) {
  for (const char* f : {"m.pth", "no-crc.pth", "hf", "m.gguf", "m.h5", "bare.h5"})
    EXPECT_EQ(try_to_open(dir_.file(f)), "") << f;
}

TEST_F(HostileFiles, TruncatedAtEveryPercent) {
  for (const Victim& v : victims()) {
    if (v.name == "pth model pickle" || v.name == "pth directory") continue;
    const std::string bytes = read_file(v.changed);
    size_t last = SIZE_MAX;
    for (size_t percent = 0; percent < 100; ++percent) {
      const size_t n = bytes.size() * percent / 100;
      if (n == last) continue;
      last = n;
      put(v.changed, std::string_view(bytes).substr(0, n));
      EXPECT_NE(try_to_open(v.file), "") << v.name << " cut to " << n << " bytes";
    }
    put(v.changed, bytes);
  }
}

TEST_F(HostileFiles, Mutated) {
  const int64_t before = peak_mib();
  for (const Victim& v : victims()) {
    const std::string bytes = read_file(v.changed);
    int64_t opened = 0;
    for (int64_t n = 0; n < mutations(); ++n) {
      const Rng rng(static_cast<uint64_t>(n), hash_name(v.name));
      uint64_t draw = 0;
      std::string changed = bytes;
      const uint64_t changes = 1 + rng.below(draw++, 4);
      for (uint64_t i = 0; i < changes; ++i) {
        const bool anywhere = rng.below(draw++, 8) == 0;
        mutate(changed, rng, draw, anywhere ? 0 : v.structure_begin,
               anywhere ? SIZE_MAX : v.structure_end);
      }
      put(v.changed, changed);
      opened += try_to_open(v.file).empty();
      ASSERT_FALSE(HasFailure()) << v.name << ", mutation " << n;
    }
    put(v.changed, bytes);
    std::printf("%s: %lld mutations, %lld still open as a model, peak %lld MiB\n", v.name.c_str(),
                static_cast<long long>(mutations()), static_cast<long long>(opened),
                static_cast<long long>(peak_mib()));
  }
#if !defined(__SANITIZE_ADDRESS__)
  EXPECT_LE(peak_mib() - before, kMaxGrowthMib);
#else
  (void)before;
#endif
}

// Sizes that would need terabytes are refused before anything is allocated.
TEST_F(HostileFiles, AbsurdSizesNeedNoMemory) {
  const int64_t before = peak_mib();
  const std::string gguf = read_file(dir_.file("m.gguf"));
  const std::string st = read_file(dir_.file("hf/model.safetensors"));
  for (size_t at = 0; at + 8 <= 4096; at += 4) {
    std::string changed = gguf;
    const uint64_t huge = uint64_t{1} << 40;
    std::memcpy(&changed[at], &huge, 8);
    put(dir_.file("absurd"), changed);
    try_to_open(dir_.file("absurd"));
  }
  for (size_t at = 8; at + 16 <= 4096; ++at) {
    if (!(st[at] >= '0' && st[at] <= '9')) continue;
    put(dir_.file("absurd"), st.substr(0, at) + "99999999999" + st.substr(at + 11));
    EXPECT_NE(try_to_open(dir_.file("absurd")), "");
  }
  EXPECT_LE(peak_mib() - before, kMaxGrowthMib);
}

}  // namespace
}  // namespace rwkv
