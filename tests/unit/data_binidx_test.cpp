// binidx data: the reference's files, ours, the reference's samples, and what damaged files give.

#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

#include "data/binidx.h"
#include "data/io/atomic_file.h"
#include "data/loader.h"
#include "kernels/core/error.h"
#include "kernels/core/rng.h"
#include "tests/unit/data_test_util.h"

namespace rwkv {
namespace {

using test::error_of;
using test::TempDir;

void put_file(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
}

/// The same for a file that has this length already: much quicker than making it anew.
void put_over(const std::string& path, const std::string& bytes) {
  std::fstream(path, std::ios::binary | std::ios::in | std::ios::out) << bytes;
}

template <class T>
void put(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof value);
}

/// An index written by hand, so that the writer under test is not its own judge.
std::string index_bytes(uint8_t code, int width, const std::vector<int32_t>& sizes,
                        const std::vector<int64_t>& marks) {
  std::string out("MMIDIDX\0\0", 9);
  put<uint64_t>(out, 1);
  put<uint8_t>(out, code);
  put<uint64_t>(out, sizes.size());
  put<uint64_t>(out, marks.size());
  for (const int32_t s : sizes) put<int32_t>(out, s);
  int64_t at = 0;
  for (const int32_t s : sizes) {
    put<int64_t>(out, at);
    at += int64_t{s} * width;
  }
  for (const int64_t m : marks) put<int64_t>(out, m);
  return out;
}

/// 3 documents of 5, 0 and 7 tokens with ids below 257, as u16.
void write_small(const std::string& prefix) {
  put_file(prefix + ".idx", index_bytes(8, 2, {5, 0, 7}, {0, 1, 2, 3}));
  std::string bin;
  for (uint16_t i = 0; i < 12; ++i) put<uint16_t>(bin, static_cast<uint16_t>(20 * i + 1));
  put_file(prefix + ".bin", bin);
}

std::vector<int32_t> all_of(const TokenSource& source) {
  std::vector<int32_t> ids(static_cast<size_t>(source.size()));
  source.read(0, ids);
  return ids;
}

TEST(Binidx, NamesAndReading) {
  const TempDir dir;
  const std::string prefix = dir.file("x");
  write_small(prefix);
  EXPECT_TRUE(is_binidx(prefix));
  EXPECT_TRUE(is_binidx("any.bin"));
  EXPECT_FALSE(is_binidx(dir.file("y")));
  for (const char* end : {"", ".bin", ".idx"}) {
    const auto file = BinidxFile::open(prefix + end, 257);
    EXPECT_EQ(file->size(), 12);
    EXPECT_EQ(file->documents(), 3);
    EXPECT_EQ(file->token_type(), "u16");
    std::vector<int32_t> ids(3);
    file->read(4, ids);
    EXPECT_EQ(ids, (std::vector<int32_t>{81, 101, 121}));
    std::vector<int64_t> sizes;
    file->for_each_document([&](int64_t n) { sizes.push_back(n); });
    EXPECT_EQ(sizes, (std::vector<int64_t>{5, 0, 7}));
    EXPECT_THROW(file->read(10, ids), IoError);
    EXPECT_THROW(file->read(-1, ids), IoError);
  }
  const auto text = error_of<IoError>([&] { all_of(*BinidxFile::open(prefix, 221)); });
  EXPECT_NE(text.find("token 11 has id 221, the vocabulary has 221"), std::string::npos) << text;
}

TEST(Binidx, EveryIntegerTypeAndSequencesInsideDocuments) {
  const TempDir dir;
  const struct {
    uint8_t code;
    int width;
  } types[] = {{1, 1}, {2, 1}, {3, 2}, {4, 4}, {5, 8}, {8, 2}};
  for (const auto& t : types) {
    std::string bin;
    for (int64_t i = 0; i < 6; ++i) bin.append(reinterpret_cast<const char*>(&i), t.width);
    put_file(dir.file("t.bin"), bin);
    put_file(dir.file("t.idx"), index_bytes(t.code, t.width, {1, 2, 3}, {0, 2, 3}));
    const auto file = BinidxFile::open(dir.file("t"), 6);
    EXPECT_EQ(all_of(*file), (std::vector<int32_t>{0, 1, 2, 3, 4, 5})) << int{t.code};
    EXPECT_EQ(file->documents(), 2);
    std::vector<int64_t> sizes;
    file->for_each_document([&](int64_t n) { sizes.push_back(n); });
    EXPECT_EQ(sizes, (std::vector<int64_t>{3, 3}));
  }
  for (const uint8_t code : {0, 6, 7, 9, 255}) {  // floats and unknown ones
    put_file(dir.file("t.idx"), index_bytes(code, 2, {1, 2, 3}, {0, 2, 3}));
    EXPECT_THROW(BinidxFile::open(dir.file("t"), 6), IoError) << int{code};
  }
}

TEST(Binidx, RoundTripThroughTokenFiles) {
  const TempDir dir;
  write_small(dir.file("x"));
  const auto tokenizer = std::make_shared<const ByteTokenizer>();
  EXPECT_EQ(binidx_to_token_file(dir.file("x.idx"), dir.file("x.h5"), tokenizer), 12);
  const auto tokens = TokenFile::open(dir.file("x.h5"));
  EXPECT_EQ(tokens->verify(), std::vector<std::string>{});
  EXPECT_EQ(tokens->documents(), 3);
  EXPECT_EQ(tokens->document_offsets(0, 3), (std::vector<int64_t>{0, 5, 5, 12}));
  int64_t reported = 0;
  write_binidx(*tokens, dir.file("y"), [&](int64_t done, int64_t) { reported = done; });
  EXPECT_EQ(reported, 12);
  for (const char* end : {".bin", ".idx"})
    EXPECT_EQ(read_file(dir.file("x") + end), read_file(dir.file("y") + end)) << end;
  // An id that the tokenizer lacks is the file's fault, and leaves nothing behind.
  std::string bin = read_file(dir.file("x.bin"));
  bin[1] = 2;
  put_file(dir.file("x.bin"), bin);
  EXPECT_THROW(binidx_to_token_file(dir.file("x"), dir.file("z.h5"), tokenizer), IoError);
  EXPECT_FALSE(std::filesystem::exists(dir.file("z.h5")));
}

TEST(Binidx, WritesWideTokensForLargeVocabularies) {
  const TempDir dir;
  // 65535 more ids than bytes: a World-like vocabulary beyond 16 bits.
  std::string vocabulary = test::tiny_world_vocabulary() + "70000 'wide word' 9\n";
  const auto tokenizer = make_tokenizer("world", vocabulary);
  ASSERT_EQ(tokenizer->vocab_size(), 70001);
  TokenFileWriter out(dir.file("w.h5"), tokenizer, "{}");
  out.add_document(std::vector<int32_t>{70000, 5, 0});
  out.finish();
  write_binidx(*TokenFile::open(dir.file("w.h5")), dir.file("w"));
  EXPECT_EQ(read_file(dir.file("w.idx")), index_bytes(4, 4, {3}, {0, 1}));
  EXPECT_EQ(all_of(*BinidxFile::open(dir.file("w"), 70001)), (std::vector<int32_t>{70000, 5, 0}));
}

TEST(Binidx, RefusesDamagedPairs) {
  const TempDir dir;
  const auto expect = [&](const char* what, const std::string& idx, const std::string& part) {
    write_small(dir.file("x"));
    put_file(dir.file("x.idx"), idx);
    const auto text = error_of<IoError>([&] { BinidxFile::open(dir.file("x"), 257); });
    EXPECT_NE(text.find(part), std::string::npos) << what << ": " << text;
    EXPECT_NE(text.find("x.idx"), std::string::npos) << text;
  };
  const std::string good = index_bytes(8, 2, {5, 0, 7}, {0, 1, 2, 3});
  const auto with = [&](size_t at, auto value) {
    std::string s = good;
    std::memcpy(s.data() + at, &value, sizeof value);
    return s;
  };
  expect("magic", with(0, 'm'), "MMIDIDX");
  expect("version", with(9, uint64_t{2}), "version 2");
  expect("absurd count", with(18, UINT64_MAX), "do not fit its length");
  expect("counts that overflow", with(18, (uint64_t{1} << 62) + 3), "do not fit its length");
  expect("absurd marks", with(26, UINT64_MAX / 8), "do not fit its length");
  expect("no marks", index_bytes(8, 2, {5, 0, 7}, {}), "no document marks");
  expect("size too large", with(34, int32_t{13}), "sequence 0");
  expect("negative size", with(34, int32_t{-5}), "has -5 tokens");
  expect("overlap", with(34 + 12 + 16, int64_t{8}), "begins at byte 8, expected 10");
  expect("gap", with(34 + 12 + 8, int64_t{12}), "begins at byte 12");
  expect("out of range", with(34 + 12 + 16, INT64_MAX), "begins at byte 9223372036854775807");
  expect("too few tokens", index_bytes(8, 2, {5, 0, 6}, {0, 1, 2, 3}), "cover 22 bytes");
  expect("mark beyond", index_bytes(8, 2, {5, 0, 7}, {0, 1, 4, 3}), "sequence 4 of 3");
  expect("marks fall", index_bytes(8, 2, {5, 0, 7}, {0, 2, 1, 3}), "document 2");
  expect("marks from 1", index_bytes(8, 2, {5, 0, 7}, {1, 1, 2, 3}), "document 0");
  expect("marks end early", index_bytes(8, 2, {5, 0, 7}, {0, 1, 2, 2}), "end at sequence 2");

  write_small(dir.file("x"));
  std::filesystem::remove(dir.file("x.bin"));
  EXPECT_THROW(BinidxFile::open(dir.file("x"), 257), IoError);
  std::filesystem::create_directory(dir.file("x.bin"));
  EXPECT_THROW(BinidxFile::open(dir.file("x"), 257), IoError);
}

TEST(Binidx, AFileThatShrinksWhileOpenIsAnError) {
  const TempDir dir;
  write_small(dir.file("x"));
  const auto file = BinidxFile::open(dir.file("x"), 257);
  std::filesystem::resize_file(dir.file("x.bin"), 10);
  const auto text = error_of<IoError>([&] { all_of(*file); });
  EXPECT_NE(text.find("Was it cut"), std::string::npos) << text;
}

/// Opens and reads; anything but success and IoError fails the test.
void expect_survives(const std::string& prefix, int& refused) {
  try {
    const auto file = BinidxFile::open(prefix, 257);
    int64_t total = 0;
    file->for_each_document([&](int64_t n) { total += n; });
    EXPECT_EQ(total, file->size());
    std::vector<int32_t> ids(static_cast<size_t>(std::min<int64_t>(file->size(), 1 << 20)));
    file->read(0, ids);
  } catch (const IoError&) {
    ++refused;
  }
}

TEST(Binidx, SurvivesTruncationAndBitFlips) {
  const TempDir dir;
  const std::string x = dir.file("x");
  std::vector<int32_t> sizes;
  std::vector<int64_t> marks = {0};
  std::string bin;
  for (int32_t d = 0; d < 40; ++d) {
    sizes.push_back(d % 7);
    marks.push_back(d + 1);
    for (int32_t i = 0; i < d % 7; ++i) put<uint16_t>(bin, static_cast<uint16_t>(i + d));
  }
  const std::string idx = index_bytes(8, 2, sizes, marks);
  int refused = 0;
  for (size_t percent = 0; percent < 100; ++percent) {
    put_file(x + ".bin", bin);
    put_file(x + ".idx", idx.substr(0, idx.size() * percent / 100));
    expect_survives(x, refused);
    put_file(x + ".idx", idx);
    put_file(x + ".bin", bin.substr(0, bin.size() * percent / 100));
    expect_survives(x, refused);
  }
  EXPECT_EQ(refused, 200) << "every truncation has to be noticed";

  const Rng rng(7, hash_name("bit flips"));
  refused = 0;
  put_file(x + ".bin", bin);
  put_file(x + ".idx", idx);
  // Every bit of the index once: all but the document marks decide something that is checked.
  for (size_t bit = 0; bit < idx.size() * 8; ++bit) {
    std::string bad = idx;
    bad[bit / 8] = static_cast<char>(bad[bit / 8] ^ (1 << (bit % 8)));
    put_over(x + ".idx", bad);
    expect_survives(x, refused);
  }
  const auto flips = static_cast<int>(idx.size() * 8);
  EXPECT_GT(refused, flips * 9 / 10);
  EXPECT_LT(refused, flips) << "a mark that moves by one is a valid index";
  for (uint64_t i = 0; i < 4000; ++i) {
    std::string bad = idx;
    for (uint64_t k = 0; k <= i % 8; ++k)
      bad[rng.below(i * 32 + 2 * k, bad.size())] = static_cast<char>(rng.u64(i * 32 + 2 * k + 1));
    put_over(x + ".idx", bad);
    expect_survives(x, refused);
  }
}

TEST(Binidx, TheReferencesFilesAndSamples) {
  const char* folder = std::getenv("RWKV_TEST_DATA");
  if (folder == nullptr) GTEST_SKIP() << "RWKV_TEST_DATA is not set";
  const std::string refs = std::string(folder) + "/refs/";
  const auto reference = nlohmann::json::parse(read_file(refs + "rwkv_lm_sampler.json"));
  const auto file = BinidxFile::open(refs + "binidx_sample", 65536);
  const auto& d = reference["dataset"];
  EXPECT_EQ(file->size(), d["tokens"].get<int64_t>());
  EXPECT_EQ(file->documents(), d["documents"].get<int64_t>());
  std::vector<int64_t> sizes;
  file->for_each_document([&](int64_t n) { sizes.push_back(n); });
  sizes.resize(8);
  EXPECT_EQ(sizes, d["first_doc_sizes"].get<std::vector<int64_t>>());

  const std::shared_ptr<const Sampler> sampler = make_sampler("prime", file->size(), 64, 0, 479);
  BatchLoader loader(file, sampler, {.rows = 2, .length = 64});
  size_t seen = 0;
  for (int b = 0; b < 2; ++b) {
    const Batch& batch = loader.next();
    for (size_t row = 0; row < 2; ++row, ++seen) {
      const auto expected =
          reference["first_samples_ctx64"][seen]["tokens"].get<std::vector<int32_t>>();
      ASSERT_EQ(expected.size(), 65u);
      for (size_t t = 0; t < 64; ++t) {
        ASSERT_EQ(batch.x[row * 64 + t], expected[t]);
        ASSERT_EQ(batch.y[row * 64 + t], expected[t + 1]);
      }
    }
  }
  EXPECT_EQ(seen, reference["first_samples_ctx64"].size());

  // To a token file and back: the reference writer's bytes.
  const TempDir dir;
  const auto world = load_tokenizer(
      "world", {.file = std::string(folder) + "/tokenizers/rwkv_vocab_v20230424.txt"});
  binidx_to_token_file(refs + "binidx_sample.bin", dir.file("s.h5"), world);
  write_binidx(*TokenFile::open(dir.file("s.h5")), dir.file("s"));
  for (const char* end : {".bin", ".idx"})
    EXPECT_EQ(read_file(dir.file("s") + end), read_file(refs + "binidx_sample" + end)) << end;
}

}  // namespace
}  // namespace rwkv
