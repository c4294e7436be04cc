// Token files: round trips, damage, splitting; and the batch loader on top of them.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "data/dataset.h"
#include "data/io/atomic_file.h"
#include "data/io/seal.h"
#include "data/loader.h"
#include "data/sampler.h"
#include "data/tokenizer/world_tokenizer.h"
#include "kernels/core/error.h"
#include "kernels/core/rng.h"
#include "tests/unit/data_test_util.h"

namespace rwkv {
namespace {

using test::error_of;
using test::TempDir;
using Ids = std::vector<int32_t>;

std::shared_ptr<const Tokenizer> bytes() {
  return std::make_shared<ByteTokenizer>();
}

Ids read_all(const TokenSource& source) {
  Ids ids(static_cast<size_t>(source.size()));
  source.read(0, ids);
  return ids;
}

TEST(TokenFile, RoundTrip) {
  TempDir dir;
  TokenFileWriter w(dir.file("t.h5"), bytes(), R"({"by":"test"})");
  w.add_document(Ids{1, 2, 2, 0});
  w.add_document(Ids{});
  w.add_tokens(Ids{256});
  w.add_tokens(Ids{3});
  w.end_document();
  EXPECT_FALSE(std::filesystem::exists(dir.file("t.h5")));
  w.finish();
  const auto t = TokenFile::open(dir.file("t.h5"));
  EXPECT_EQ(t->size(), 6);
  EXPECT_EQ(t->documents(), 3);
  EXPECT_EQ(t->text_bytes(), 5);  // the end of document stands for none
  EXPECT_EQ(t->vocab_size(), 257);
  EXPECT_EQ(t->tokenizer_name(), "bytes");
  EXPECT_EQ(t->tokenizer_hash(), ByteTokenizer().hash());
  EXPECT_EQ(t->tokenizer()->decode(read_all(*t)), std::string("\x00\x01\x01\xff\x02", 5));
  EXPECT_EQ(t->created(), R"({"by":"test"})");
  EXPECT_EQ(read_all(*t), (Ids{1, 2, 2, 0, 256, 3}));
  EXPECT_EQ(t->document_offsets(0, 3), (std::vector<int64_t>{0, 4, 4, 6}));
  EXPECT_EQ(t->document_offsets(2, 1), (std::vector<int64_t>{4, 6}));
  EXPECT_NEAR(t->unigram_entropy(), 4 * (std::log(6.0) / 6) + std::log(3.0) / 3, 1e-14);
  EXPECT_TRUE(t->verify().empty());
  Ids two(2);
  t->read(4, two);
  EXPECT_EQ(two, (Ids{256, 3}));
  EXPECT_THROW(t->read(5, two), IoError);
  EXPECT_THROW(t->read(-1, two), IoError);
  EXPECT_THROW(t->document_offsets(2, 2), IoError);
}

TEST(TokenFile, ManyBlocksAndWideIds) {
  TempDir dir;
  // A vocabulary beyond 65536 entries makes the tokens 32 bits wide.
  std::string v = test::tiny_world_vocabulary() + "70000 'zebra' 5\n";
  const auto wide = std::make_shared<WorldTokenizer>(v);
  const Rng rng(5, 6);
  Ids all;
  TokenFileWriter w(dir.file("t.h5"), wide, "{}");
  for (uint64_t d = 0; d < 30; ++d) {
    Ids doc(50000 + rng.below(d, 50000));
    for (size_t i = 0; i < doc.size(); ++i)
      doc[i] = i % 100 == 0 ? 70000 : static_cast<int32_t>(rng.below(all.size() + i, 257));
    w.add_document(doc);
    all.insert(all.end(), doc.begin(), doc.end());
  }
  w.finish();
  ASSERT_GT(all.size(), size_t{2} << 18);
  const auto t = TokenFile::open(dir.file("t.h5"));
  EXPECT_EQ(Hdf5File::open(dir.file("t.h5")).type("tokens"), H5Type::kI32);
  EXPECT_EQ(read_all(*t), all);
  EXPECT_TRUE(t->verify().empty());
  double last = 0;
  t->verify([&](double share) {
    EXPECT_GT(share, last);
    last = share;
  });
  EXPECT_EQ(last, 1.0);
}

TEST(TokenFile, AbandonedWriterLeavesNothing) {
  TempDir dir;
  {
    TokenFileWriter w(dir.file("t.h5"), bytes(), "{}");
    w.add_document(Ids{1, 2, 3});
  }
  EXPECT_TRUE(std::filesystem::is_empty(dir.path()));
  EXPECT_THROW(TokenFileWriter(dir.file("no/t.h5"), bytes(), "{}"), IoError);
}

TEST(TokenFile, ForeignAndDamagedFiles) {
  TempDir dir;
  auto foreign = Hdf5File::create(dir.file("f.h5"));
  foreign.write<float>("x", {1}, {1});
  foreign.close();
  EXPECT_NE(error_of<IoError>([&] { TokenFile::open(dir.file("f.h5")); }).find("no seal"),
            std::string::npos);
  seal_hdf5(dir.file("f.h5"));
  EXPECT_NE(error_of<IoError>([&] { TokenFile::open(dir.file("f.h5")); }).find("not a token file"),
            std::string::npos);
  auto newer = Hdf5File::create(dir.file("n.h5"));
  newer.write_attr("", "format", "greylag-tokens");
  newer.write_attr("", "version", 99);
  newer.close();
  seal_hdf5(dir.file("n.h5"));
  EXPECT_NE(error_of<IoError>([&] { TokenFile::open(dir.file("n.h5")); }).find("version 99"),
            std::string::npos);

  TokenFileWriter w(dir.file("t.h5"), bytes(), "{}");
  Ids doc;
  for (int i = 0; i < 5000; ++i) doc.push_back(1 + i % 200);
  w.add_document(doc);
  w.finish();
  // The tokens lie unfiltered in the file: find them and change one.
  std::string raw = read_file(dir.file("t.h5"));
  const std::string pattern("\x05\x00\x06\x00\x07\x00\x08\x00", 8);
  const size_t at = raw.find(pattern);
  ASSERT_NE(at, std::string::npos);
  raw[at] = 9;
  std::ofstream(dir.file("d.h5")) << raw;
  const auto small = TokenFile::open(dir.file("d.h5"))->verify();
  ASSERT_EQ(small.size(), 2u);
  EXPECT_NE(small[0].find("checksum"), std::string::npos);
  EXPECT_NE(small[1].find("histogram"), std::string::npos);
  raw[at + 1] = 0x7f;
  std::ofstream(dir.file("e.h5")) << raw;
  const auto e = TokenFile::open(dir.file("e.h5"));
  EXPECT_GE(e->verify().size(), 3u);
  Ids ids(5000);
  EXPECT_NE(error_of<IoError>([&] { e->read(0, ids); }).find("outside the vocabulary"),
            std::string::npos);
}

TEST(TokenFile, FilesOfOtherProgramsAreSealedLater) {
  const TempDir dir;
  TokenFileWriter w(dir.file("t.h5"), bytes(), "{}");
  w.add_document(Ids{1, 2, 3});
  w.finish();
  const std::string sealed = read_file(dir.file("t.h5"));
  // What another program writes: the same without the seal, whose length is near the end.
  uint64_t body = 0;
  std::memcpy(&body, sealed.data() + sealed.size() - 28, 8);
  std::ofstream(dir.file("o.h5")) << sealed.substr(0, body);
  const auto text = error_of<IoError>([&] { TokenFile::open(dir.file("o.h5")); });
  EXPECT_NE(text.find("--seal"), std::string::npos) << text;
  EXPECT_TRUE(TokenFile::open_unsealed(dir.file("o.h5"))->verify().empty());
  TokenFile::seal(dir.file("o.h5"));
  EXPECT_EQ(read_file(dir.file("o.h5")), sealed);
}

/// Opens and reads everything. True if something was found to be wrong, or all is as it was.
bool noticed(const std::string& path, const Ids& ids) {
  try {
    const auto t = TokenFile::open(path);
    if (!t->verify().empty()) return true;
    t->document_offsets(0, t->documents());
    return read_all(*t) == ids;
  } catch (const IoError&) {
    return true;
  }
}

TEST(TokenFile, NoDamageGetsPastTheSealAndVerify) {
  const TempDir dir;
  const std::string path = dir.file("t.h5");
  Ids ids;
  {
    TokenFileWriter w(path, make_tokenizer("world", test::tiny_world_vocabulary()), "{}");
    for (int32_t d = 0; d < 3; ++d) {
      ids.insert(ids.end(), {d + 1, d + 2, 257, 0});
      w.add_document(Ids{d + 1, d + 2, 257, 0});
    }
    w.finish();
  }
  const std::string good = read_file(path);
  for (size_t percent = 0; percent < 100; ++percent) {
    std::filesystem::resize_file(path, 0);
    std::ofstream(path) << good.substr(0, good.size() * percent / 100);
    EXPECT_THROW(TokenFile::open(path), IoError) << percent;
  }
  std::ofstream(path) << good;
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  const auto put = [&](size_t at, char c) {
    file.seekp(static_cast<std::streamoff>(at));
    file.put(c).flush();
  };
  // Half of the damage in random places; half in the structure, which is what HDF5 crashes on: the
  // first and the last 8 KiB (the chunks of tokens and offsets, mostly empty, lie between).
  const Rng rng(3, hash_name("damage"));
  for (uint64_t i = 0; i < 1500; ++i) {
    size_t at = rng.below(3 * i, good.size());
    if (i % 2 == 1) {
      at %= 16384;
      if (at >= 8192) at = good.size() - 1 - (at - 8192);
    }
    const char old = good[at];
    const auto bad = i % 3 == 0 ? static_cast<char>(rng.u64(3 * i + 1))
                                : static_cast<char>(old ^ (1 << rng.below(3 * i + 1, 8)));
    put(at, bad);
    EXPECT_TRUE(noticed(path, ids)) << "byte " << at << " of " << good.size();
    put(at, old);
  }
  EXPECT_TRUE(TokenFile::open(path)->verify().empty()) << "and it is whole again";
}

TEST(TokenFile, SplitsInsideAndBetweenDocuments) {
  TempDir dir;
  TokenFileWriter w(dir.file("t.h5"), bytes(), "{}");
  w.add_document(Ids{1, 2, 3});
  w.add_document(Ids{});
  w.add_document(Ids{4, 5, 6, 7, 0});
  w.add_document(Ids{8, 0});
  w.finish();
  const auto whole = read_all(*TokenFile::open(dir.file("t.h5")));
  using Offsets = std::vector<int64_t>;
  const auto check = [&](int64_t cut, const Offsets& first, const Offsets& second) {
    split_token_file(dir.file("t.h5"), cut, dir.file("a.h5"), dir.file("b.h5"));
    const auto a = TokenFile::open(dir.file("a.h5")), b = TokenFile::open(dir.file("b.h5"));
    Ids joined = read_all(*a);
    EXPECT_EQ(static_cast<int64_t>(joined.size()), cut);
    for (const int32_t id : read_all(*b)) joined.push_back(id);
    EXPECT_EQ(joined, whole);
    EXPECT_EQ(a->document_offsets(0, a->documents()), first);
    EXPECT_EQ(b->document_offsets(0, b->documents()), second);
    EXPECT_TRUE(a->verify().empty());
    EXPECT_TRUE(b->verify().empty());
  };
  check(5, {0, 3, 3, 5}, {0, 3, 5});
  check(3, {0, 3}, {0, 0, 5, 7});
  check(8, {0, 3, 3, 8}, {0, 2});
  check(9, {0, 3, 3, 8, 9}, {0, 1});
  EXPECT_THROW(split_token_file(dir.file("t.h5"), 0, dir.file("a.h5"), dir.file("b.h5")),
               ConfigError);
  EXPECT_THROW(split_token_file(dir.file("t.h5"), 10, dir.file("a.h5"), dir.file("b.h5")),
               ConfigError);
}

// Sealed on purpose, with attributes that fit their datasets: no size may overflow or take memory.
TEST(TokenFile, AttributesOutOfRange) {
  TempDir dir;
  const auto open = [&](int64_t block, int64_t documents, int64_t vocab) {
    auto file = Hdf5File::create(dir.file("t.h5"));
    file.write_attr("", "format", "greylag-tokens");
    file.write_attr("", "version", 1);
    file.write_attr("", "token_count", 4);
    file.write_attr("", "document_count", documents);
    file.write_attr("", "text_bytes", 4);
    file.write_attr("", "block", block);
    file.write_attr("", "vocab_size", vocab);
    file.create_extendible<uint16_t>("tokens", {.chunk_rows = 16});
    file.append<uint16_t>("tokens", std::vector<uint16_t>{1, 2, 3, 4});
    file.create_extendible<int64_t>("documents", {.chunk_rows = 16});
    file.append<int64_t>("documents", std::vector<int64_t>(documents < 0 ? 0 : 2));
    file.write<uint32_t>("block_crc32", {1}, std::vector<uint32_t>{0});
    const auto ids = static_cast<size_t>(std::min<int64_t>(vocab, 300));
    file.write<int64_t>("histogram", {static_cast<int64_t>(ids)}, std::vector<int64_t>(ids));
    file.write_string("tokenizer/name", "bytes");
    file.write_string("tokenizer/hash", "");
    file.close();
    TokenFile::seal(dir.file("t.h5"));
    TokenFile::open(dir.file("t.h5"));
  };
  open(1 << 18, 1, 257);
  EXPECT_NE(error_of<IoError>([&] { open(int64_t{1} << 62, 1, 257); }).find("block"),
            std::string::npos);
  EXPECT_THROW(open(INT64_MAX, 1, 257), IoError);
  EXPECT_THROW(open(1 << 18, -1, 257), IoError);
  EXPECT_THROW(open(1 << 18, INT64_MAX, 257), IoError);
  EXPECT_NE(error_of<IoError>([&] { open(1 << 18, 1, INT32_MAX); }).find("vocab_size"),
            std::string::npos);
}

TEST(TokenSource, RandomAndMemory) {
  const RandomTokens r(1000, 300, 7), other(1000, 300, 8);
  const Ids all = read_all(r);
  Ids part(100);
  r.read(900, part);
  EXPECT_TRUE(std::equal(part.begin(), part.end(), all.begin() + 900));
  for (const int32_t id : all) ASSERT_TRUE(id >= 0 && id < 300);
  EXPECT_NE(read_all(other), all);
  EXPECT_THROW(r.read(901, part), IoError);
  EXPECT_THROW(RandomTokens(0, 5, 1), ConfigError);
  const MemoryTokens m({1, 2, 3}, 4);
  EXPECT_EQ(read_all(m), (Ids{1, 2, 3}));
  EXPECT_THROW(m.read(2, part), IoError);
  EXPECT_THROW(MemoryTokens({1, 4}, 4), ConfigError);
}

// --- loader -----------------------------------------------------------------------------------

std::shared_ptr<const TokenSource> counting(int64_t n) {
  Ids ids;
  for (int64_t i = 0; i < n; ++i) ids.push_back(static_cast<int32_t>(i));
  return std::make_shared<MemoryTokens>(ids, static_cast<int32_t>(n));
}

TEST(BatchLoader, RowsFollowTheSamplerAndTargetsAreShifted) {
  const auto source = counting(1000);
  const std::shared_ptr<const Sampler> sampler = make_sampler("shuffle", 1000, 10, 3);
  BatchLoader loader(source, sampler, {.rows = 3, .length = 10, .prefetch = 2});
  uint64_t sample = 0;
  for (int n = 0; n < 80; ++n) {
    const Batch& b = loader.next();
    for (size_t row = 0; row < 3; ++row, ++sample)
      for (size_t t = 0; t < 10; ++t) {
        ASSERT_EQ(b.x[row * 10 + t], sampler->offset(sample) + static_cast<int64_t>(t));
        ASSERT_EQ(b.y[row * 10 + t], b.x[row * 10 + t] + 1);
      }
    EXPECT_EQ(b.position, sample);
    EXPECT_EQ(loader.position(), sample);
  }
}

TEST(BatchLoader, ResumesAnywhereAndRanksShareTheOrder) {
  const auto source = counting(1000);
  const std::shared_ptr<const Sampler> sampler = make_sampler("prime", 1000, 8, 0);
  BatchLoader whole(source, sampler, {.rows = 4, .length = 8});
  std::vector<Ids> rows;
  for (int n = 0; n < 12; ++n) {
    const Batch& b = whole.next();
    for (std::ptrdiff_t r = 0; r < 4; ++r)
      rows.emplace_back(b.x.begin() + r * 8, b.x.begin() + (r + 1) * 8);
  }
  // Two ranks with two rows each see the same samples; started at position 12, in another state.
  BatchLoader r0(source, sampler, {.rows = 2, .length = 8, .rank = 0, .world = 2, .position = 12});
  BatchLoader r1(source, sampler, {.rows = 2, .length = 8, .rank = 1, .world = 2, .position = 12});
  for (size_t n = 0; n < 9; ++n) {
    const Batch &a = r0.next(), &b = r1.next();
    for (size_t r = 0; r < 2; ++r) {
      const auto at = static_cast<std::ptrdiff_t>(r * 8);
      ASSERT_EQ(Ids(a.x.begin() + at, a.x.begin() + at + 8), rows[12 + n * 4 + 2 * r]);
      ASSERT_EQ(Ids(b.x.begin() + at, b.x.begin() + at + 8), rows[12 + n * 4 + 2 * r + 1]);
    }
    EXPECT_EQ(a.position, 12 + (n + 1) * 4);
  }
}

/// Fails from some position on.
class Broken final : public TokenSource {
 public:
  int64_t size() const override { return 1000; }
  int32_t vocab_size() const override { return 10; }
  std::string describe() const override { return "broken"; }
  void read(int64_t offset, std::span<int32_t> out) const override {
    if (offset >= 60) throw IoError("the disk is gone");
    std::fill(out.begin(), out.end(), 1);
  }
};

TEST(BatchLoader, ExceptionsSurfaceAfterTheGoodBatches) {
  const std::shared_ptr<const Sampler> sampler = make_sampler("sequential", 1000, 10, 0);
  BatchLoader loader(std::make_shared<Broken>(), sampler, {.rows = 2, .length = 10});
  for (int n = 0; n < 3; ++n) EXPECT_EQ(loader.next().x[0], 1);
  for (int again = 0; again < 2; ++again)
    EXPECT_NE(error_of<IoError>([&] { loader.next(); }).find("gone"), std::string::npos);
  EXPECT_EQ(loader.position(), 6u);
}

TEST(BatchLoader, StopsCleanlyWhateverItIsDoing) {
  const std::shared_ptr<const Sampler> sampler = make_sampler("sequential", 1000, 10, 0);
  for (int n = 0; n < 50; ++n) {
    BatchLoader loader(counting(1000), sampler, {.rows = 2, .length = 10, .prefetch = 1});
    for (int k = 0; k < n % 4; ++k) loader.next();
  }
}

TEST(BatchLoader, ReadsTokenFilesWhileAnotherFileIsWritten) {
  TempDir dir;
  TokenFileWriter w(dir.file("t.h5"), bytes(), "{}");
  for (int d = 0; d < 100; ++d) {
    Ids doc;
    for (int i = 0; i < 100; ++i) doc.push_back(1 + (d * 100 + i) % 250);
    w.add_document(doc);
  }
  w.finish();
  const auto t = TokenFile::open(dir.file("t.h5"));
  const std::shared_ptr<const Sampler> sampler = make_sampler("sequential", t->size(), 50, 0);
  BatchLoader loader(t, sampler, {.rows = 4, .length = 50});
  int64_t at = 0;
  for (int n = 0; n < 40; ++n) {
    auto file = Hdf5File::create(dir.file("other.h5"));
    file.write<int32_t>("x", {1000}, Ids(1000, n));
    file.close();
    const Batch& b = loader.next();
    for (size_t i = 0; i < 200; ++i) ASSERT_EQ(b.x[i], 1 + (at + static_cast<int64_t>(i)) % 250);
    at += 200;
  }
}

TEST(BatchLoader, RefusesWrongOptions) {
  const std::shared_ptr<const Sampler> s = make_sampler("sequential", 100, 10, 0);
  const auto make = [&](const LoaderOptions& o) { BatchLoader(counting(100), s, o); };
  EXPECT_THROW(make({.rows = 0}), ConfigError);
  EXPECT_THROW(make({.rows = 1, .length = 100}), ConfigError);
  EXPECT_THROW(make({.length = 10, .rank = 2, .world = 2}), ConfigError);
  EXPECT_THROW(make({.length = 10, .prefetch = 0}), ConfigError);
}

}  // namespace
}  // namespace rwkv
