// What files of strangers can hold that random changes hardly ever hit, one by one.

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <filesystem>

#include "data/documents.h"
#include "data/io/byte_file.h"
#include "data/io/hdf5_file.h"
#include "data/io/hdf5_shards.h"
#include "data/io/json_depth.h"
#include "data/io/pickle.h"
#include "data/io/tensor_file.h"
#include "data/io/zip_file.h"
#include "data/tokenizer/tokenizer.h"
#include "inference/load.h"
#include "model/model_export.h"
#include "model/weights.h"
#include "tests/unit/data_test_util.h"
#include "tests/unit/hostile.h"
#include "tests/unit/model_files.h"

namespace rwkv {
namespace {

using test::error_of;
using test::put_file;
using test::TempDir;

const std::string kHostileH5 = std::string(RWKV_SOURCE_DIR) + "/tests/golden/formats/hostile.h5";

/// So deep that whatever follows it by recursion runs out of stack.
std::string nested(size_t depth = 1 << 20) {
  return std::string(depth, '[') + std::string(depth, ']');
}

/// The message must hold `part`.
template <class Body>
void expect_io_error(const char* part, const Body& body) {
  const std::string message = error_of<IoError>(body);
  EXPECT_NE(message.find(part), std::string::npos) << message.substr(0, 300);
  EXPECT_LT(message.size(), 4000u);
}

// Eight integers of a byte are no more bytes than one of eight, and become sixty-four.
TEST(HostileHdf5, AttributesWithManyElements) {
  const Hdf5File file = Hdf5File::open(kHostileH5);
  expect_io_error("expected one", [&] { file.attr_int("", "eight bytes"); });
  expect_io_error("expected one", [&] { file.attr_double("", "eight bytes"); });
  expect_io_error("expected one", [&] { file.attr_string("", "texts"); });
  expect_io_error("expected one", [&] { file.attr_string("", "variable texts"); });
}

// 2^63 - 1 squared is 1 in 64 bits.
TEST(HostileHdf5, ShapesWithoutANumberOfElements) {
  const Hdf5File file = Hdf5File::open(kHostileH5);
  for (const char* name : {"many texts", "many numbers"})
    expect_io_error("shape", [&] { file.shape(name); });
  expect_io_error("shape", [&] { file.read_string("many texts"); });
  expect_io_error("shape", [&] { file.read_scalar<float>("many numbers"); });
  expect_io_error("shape", [&] { file.read<float>("many numbers"); });
}

// No name in a file leads to another one.
TEST(HostileHdf5, NothingOfOtherFiles) {
  const TempDir dir;
  std::filesystem::copy(kHostileH5, dir.file("h.h5"));
  Hdf5File other = Hdf5File::create(dir.file("other.h5"));
  other.write<float>("x", {4}, std::vector<float>{1, 2, 3, 4});
  other.close();
  const Hdf5File file = Hdf5File::open(dir.file("h.h5"));
  for (const char* name : {"external", "virtual"})
    expect_io_error("another file", [&] { file.read<float>(name); });
  EXPECT_FALSE(file.exists("link"));
  expect_io_error("no such", [&] { file.read<float>("link"); });
  for (const std::string& name : file.list_datasets()) EXPECT_NE(name, "link");
}

// A vocabulary of a few bytes in a chunk that a megabyte unpacks to.
TEST(HostileHdf5, ChunksLargerThanTheirDataset) {
  const TempDir dir;
  const auto write = [&] {
    const test::TestModel m = test::random_model(3, 2, 32, 257, 32);
    Hdf5File file = Hdf5File::create(dir.file("m.h5"));
    write_model(file, m.model->config(), m.model->params(), *m.weights, {"bytes", "", {}});
    file.create_extendible<uint8_t>("tokenizer/blob", {.chunk_rows = 400 << 20, .deflate = 1});
    file.append<uint8_t>("tokenizer/blob", std::vector<uint8_t>(100, 'x'));
    file.close();
  };
  const pid_t writer = ::fork();  // so that its memory is not counted
  if (writer == 0) {
    write();
    ::_exit(0);
  }
  int status = -1;
  ASSERT_EQ(::waitpid(writer, &status, 0), writer);
  ASSERT_EQ(status, 0);
  const int64_t before = test::peak_mib();
  expect_io_error("m.h5", [&] { load_model(dir.file("m.h5")); });
  EXPECT_LE(test::peak_mib() - before, 256);
}

TEST(HostileJson, Depth) {
  EXPECT_FALSE(json_deeper_than("", 1));
  EXPECT_FALSE(json_deeper_than("[[{}]]", 3));
  EXPECT_TRUE(json_deeper_than("[[{}]]", 2));
  EXPECT_FALSE(json_deeper_than(R"(["[[[[", "\"[[[", []])", 2));
  EXPECT_FALSE(json_deeper_than("[][][][]{}", 1));
  EXPECT_FALSE(json_deeper_than("]]]][", 1));
  EXPECT_TRUE(json_deeper_than("]]]][[", 1));
  EXPECT_FALSE(json_deeper_than("\"\\", 1));
  // Comments, where they are allowed, hide nothing.
  for (const char* json : {"/* \" */ [[", "// \"\n[[", "// \"\r[[", "/*/*/[["})
    EXPECT_TRUE(json_deeper_than(json, 1)) << json;
  for (const char* json : {"/* [[", "// [[", "/* [[ */", "/", "/*", "//", "[/"})
    EXPECT_FALSE(json_deeper_than(json, 1)) << json;
}

// Values that are wrong are shown in messages, by recursion.
TEST(HostileJson, Vocabularies) {
  if (!has_neox_tokenizer()) GTEST_SKIP() << "built without the tokenizer neox";
  for (const std::string& json :
       {"{\"normalizer\": {\"type\": " + nested() + "}}", "{\"pre_tokenizer\": " + nested() + "}"})
    expect_io_error("deep", [&] { make_tokenizer("neox", json, "here"); });
}

TEST(HostileJson, ModelConfigs) {
  const TempDir dir;
  Hdf5File file = Hdf5File::create(dir.file("m.h5"));
  file.write_string("model/format", "greylag-model 1");
  file.write_string("model/config", "{\"n_layer\": " + nested() + "}");
  file.close();
  expect_io_error("deep", [&] { load_model(dir.file("m.h5")); });
  EXPECT_THROW(parse_model_config("{\"n_layer\": " + nested() + "}", "here"), ConfigError);
}

// A byte of it costs a hundred.
TEST(HostileJson, NeedsNoMemory) {
  const TempDir dir;
  const int64_t before = test::peak_mib();
  const std::string deep = nested(15 << 20);
  put_file(dir.file("config.json"), "{\"model_type\": " + deep + "}");
  put_file(dir.file("model.safetensors.index.json"), "{\"weight_map\": " + deep + "}");
  expect_io_error("deep", [&] { open_tensor_file(dir.path()); });
  // Of a line only the text is kept, so it may nest as it likes.
  std::string lists = "[]";
  for (int i = 0; i < 24; ++i) lists = lists.size() < (24 << 20) ? lists + "," + lists : lists;
  for (const std::string& other : {deep, "[" + lists + "]"})
    EXPECT_EQ(text_of_json_line("{\"meta\": " + other + ", \"text\": \"t\"}", "text"), "t");
  EXPECT_NE(test::error_of<IoError>([&] { text_of_json_line(deep, "text"); }), "");
  expect_io_error("deep", [&] { ShardIndex::parse("{\"groups\": " + deep + "}", "here"); });
  EXPECT_LE(test::peak_mib() - before, test::kMaxGrowthMib);
}

// Each byte of an added token costs a kilobyte.
TEST(HostileVocabularies, LongAddedTokens) {
  if (!has_neox_tokenizer()) GTEST_SKIP() << "built without the tokenizer neox";
  std::string json = read_file(std::string(RWKV_SOURCE_DIR) + "/tests/unit/tiny_neox.json");
  const std::string list = "\"added_tokens\": [";
  const std::string token = R"({"id": 99999, "special": false, "normalized": false, "content": ")" +
                            std::string(1 << 20, 'x') + "\"},";
  json.insert(json.find(list) + list.size(), token);
  const int64_t before = test::peak_mib();
  expect_io_error("131072", [&] { make_tokenizer("neox", json, "here"); });
  EXPECT_LE(test::peak_mib() - before, test::kMaxGrowthMib);
}

// Each of an entry of the World vocabulary costs a node of a tree, up to a hundred.
TEST(HostileVocabularies, LongEntries) {
  const size_t size = 24 << 20;
  const std::string text = test::tiny_world_vocabulary() + "270 '" + std::string(size, 'x') + "' " +
                           std::to_string(size) + "\n";
  const int64_t before = test::peak_mib();
  expect_io_error("entries", [&] { make_tokenizer("world", text, "here"); });
  EXPECT_LE(test::peak_mib() - before, test::kMaxGrowthMib);
}

// The vocabulary of a model file is compressed, a thousand bytes to one.
TEST(HostileVocabularies, Inflated) {
  const TempDir dir;
  Hdf5File file = Hdf5File::create(dir.file("m.h5"));
  file.write_string("tokenizer/name", "world");
  file.write_string("tokenizer/hash", "");
  const std::vector<uint8_t> blob(40 << 20, 'x');
  for (const char* name : {"tokenizer/blob", "tokenizer/vocabulary"})
    file.write<uint8_t>(name, {std::ssize(blob)}, blob, {.deflate = 1});
  file.close();
  const Hdf5File in = Hdf5File::open(dir.file("m.h5"));
  expect_io_error("no vocabulary", [&] { read_tokenizer(in); });
  expect_io_error("no vocabulary", [&] { read_tokenizer(in, "tokenizer"); });
}

TEST(HostilePickles, MemoWithoutEnd) {
  std::string pickle = "\x80\x02}";
  pickle.append(12 << 20, '\x94');  // MEMOIZE
  pickle += '.';
  const int64_t before = test::peak_mib();
  expect_io_error("more", [&] { read_pickle(std::as_bytes(std::span(pickle)), "here"); });
  EXPECT_LE(test::peak_mib() - before, test::kMaxGrowthMib);
}

// Fifteen bytes that copy a million arguments, again and again, would take hours.
TEST(HostilePickles, CallsWithManyArguments) {
  std::string pickle = "\x80\x02(";
  pickle.append(1 << 19, ')');
  pickle += "tq\x01";                                    // a tuple of half a million
  pickle += "ctorch._utils\n_rebuild_parameter\nq\x02";  // and what it is given to
  pickle += "h\x02h\x01R.";
  expect_io_error("argument", [&] { read_pickle(std::as_bytes(std::span(pickle)), "here"); });
}

/// A .pth of many small tensors that view two storages of `elements` numbers in turn, by `stride`.
void put_views(const std::string& path, int tensors, int32_t elements, int32_t stride) {
  ByteBuilder b;
  const auto text = [&](const std::string& t) {
    b.text("X");
    b.number(static_cast<uint32_t>(t.size()));
    b.text(t);
  };
  const auto integer = [&](int32_t n) {
    b.text("J");
    b.number(n);
  };
  b.text("\x80\x02}(");
  for (int i = 0; i < tensors; ++i) {
    text("t" + std::to_string(i));
    b.text("ctorch._utils\n_rebuild_tensor_v2\n((");
    text("storage");
    b.text("ctorch\nFloatStorage\n");
    text(std::to_string(i % 2));
    text("cpu");
    integer(elements);
    b.text("tQ");
    integer(i);  // where the view begins
    integer(3);
    b.text("\x85");
    integer(stride);
    b.text("\x85\x89}tR");
  }
  b.text("u.");
  ByteWriter out(path);
  ZipWriter zip(out);
  zip.add_text("a/data.pkl", b.bytes);
  for (int s = 0; s < 2; ++s) {
    std::vector<float> values(static_cast<size_t>(elements));
    for (size_t i = 0; i < values.size(); ++i)
      values[i] = static_cast<float>(i) + (s == 0 ? 0 : 0.5f);
    zip.add("a/data/" + std::to_string(s), std::as_bytes(std::span(values)));
  }
  zip.finish();
  out.close();
}

// Views cost what they hold, not what lies beside it: 4000 times 8 MiB would take a minute.
TEST(HostilePickles, SmallViewsOfLargeStorages) {
  const TempDir dir;
  constexpr int32_t kElements = 2 << 20, kTensors = 4000;
  for (const int32_t stride : {1, 2, 1 << 19}) {
    put_views(dir.file("m.pth"), kTensors, kElements, stride);
    const auto file = open_tensor_file(dir.file("m.pth"));
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < kTensors; ++i) {
      float values[3];
      file->read(file->find("t" + std::to_string(i)).value(), values);
      const float first = static_cast<float>(i) + (i % 2 == 0 ? 0 : 0.5f);
      for (int k = 0; k < 3; ++k) ASSERT_EQ(values[k], first + static_cast<float>(k * stride)) << i;
    }
    EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(8)) << stride;
  }
}

// Damage is found wherever it lies in a storage that is viewed.
TEST(HostilePickles, ChecksumsOfViewedStorages) {
  const TempDir dir;
  put_views(dir.file("m.pth"), 2, 10000, 1);
  std::string bytes = read_file(dir.file("m.pth"));
  const float last = 9999.5f;
  const size_t at = bytes.rfind(std::string(reinterpret_cast<const char*>(&last), 4));
  ASSERT_NE(at, std::string::npos);
  bytes[at] = static_cast<char>(bytes[at] ^ 1);
  put_file(dir.file("m.pth"), bytes);
  const auto file = open_tensor_file(dir.file("m.pth"));
  float values[3];
  file->read(file->find("t0").value(), values);
  for (int again = 0; again < 2; ++again)
    expect_io_error("checksum", [&] { file->read(file->find("t1").value(), values); });
}

// Every tensor stands once per group, even where it has no elements and so no place in a file.
TEST(HostileShards, GroupsTimesTensors) {
  const TempDir dir;
  std::string groups, tensors;
  for (int i = 0; i < 3000; ++i) {
    groups += (i > 0 ? ",\"g" : "\"g") + std::to_string(i) + "\"";
    tensors += (i > 0 ? ",[\"t" : "[\"t") + std::to_string(i) + "\",[0]]";
  }
  const std::string json =
      "{\"groups\":[" + groups + "],\"tensors\":[" + tensors + "],\"files\":[]}";
  expect_io_error("groups", [&] { ShardIndex::parse(json, "here"); });
}

// Sizes that fit the file, which may have holes, and no header.
TEST(HostileGguf, TextAsLongAsTheFile) {
  const TempDir dir;
  ByteBuilder b;
  b.text("GGUF");
  b.number<uint32_t>(3);
  b.number<uint64_t>(0);
  b.number<uint64_t>(1);
  b.number<uint64_t>(uint64_t{3} << 30);  // of the first key
  put_file(dir.file("m.gguf"), b.bytes);
  std::filesystem::resize_file(dir.file("m.gguf"), uint64_t{4} << 30);
  const int64_t before = test::peak_mib();
  expect_io_error("damaged", [&] { open_tensor_file(dir.file("m.gguf")); });
  EXPECT_LE(test::peak_mib() - before, test::kMaxGrowthMib);
}

// A few bytes of zstd can be a line without end.
TEST(HostileTexts, LinesWithoutEnd) {
  const TempDir dir;
  put_file(dir.file("t.jsonl"), "x");
  std::filesystem::resize_file(dir.file("t.jsonl"), (256 << 20) + (4 << 20));
  WorkReader reader(find_inputs({dir.file("t.jsonl")}, TextFormat::kAuto),
                    make_tokenizer("bytes", ""), "", 1 << 22);
  WorkItem item;
  expect_io_error("line 1", [&] {
    while (reader.next(item)) {
    }
  });
}

// The scale of a block is a binary16.
TEST(HostileModels, TooLargeForQ8) {
  const TempDir dir;
  const test::TestModel m = test::random_model(3, 2, 32, 300, 32);
  m.tensor("blocks.1.att.key.weight")[7] = 1e8f;
  test::write_pth_model(dir.file("m.pth"), m, TensorType::kF32);
  const ModelFile model = ModelFile::open(dir.file("m.pth"));
  const std::string message = error_of<ConfigError>([&] {
    export_model(model, dir.file("m.gguf"), {.to = TensorFormat::kGguf, .type = TensorType::kQ8_0});
  });
  EXPECT_NE(message.find("q8_0"), std::string::npos) << message;
}

}  // namespace
}  // namespace rwkv
