// Tokenizers: a small made-up World vocabulary, the real one where it is available, UTF-8 streams.

#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>

#include "data/io/atomic_file.h"
#include "data/io/hdf5_file.h"
#include "data/io/sha256.h"
#include "data/tokenizer/id_list.h"
#include "data/tokenizer/tokenizer.h"
#include "data/tokenizer/utf8.h"
#include "data/tokenizer/world_tokenizer.h"
#include "kernels/core/error.h"
#include "kernels/core/rng.h"
#include "tests/unit/data_test_util.h"

namespace rwkv {
namespace {

using test::error_of;
using test::TempDir;
using test::tiny_world_vocabulary;
using Ids = std::vector<int32_t>;

TEST(Tokenizer, Sha256KnownAnswers) {
  EXPECT_EQ(sha256_hex(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(sha256_hex("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(sha256_hex("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  EXPECT_EQ(sha256_hex(std::string(1000000, 'a')),
            "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
  Sha256 pieces;
  for (size_t n = 0, left = 1000; left > 0; n = (n + 13) % 97) {
    const size_t k = std::min(n, left);
    pieces.update(std::string(k, 'x'));
    left -= k;
  }
  EXPECT_EQ(pieces.hex(), sha256_hex(std::string(1000, 'x')));
}

TEST(Tokenizer, Bytes) {
  const ByteTokenizer t;
  std::string all;
  for (int b = 0; b < 256; ++b) all += static_cast<char>(b);
  const Ids ids = t.encode(all);
  for (int b = 0; b < 256; ++b) EXPECT_EQ(ids[static_cast<size_t>(b)], b + 1);
  EXPECT_EQ(t.decode(ids), all);
  EXPECT_EQ(t.decode(Ids{0, 'H' + 1, 0, 'i' + 1, 300, -1}), "Hi");
  EXPECT_EQ(t.vocab_size(), 257);
  EXPECT_EQ(t.hash().size(), 64u);
}

TEST(Tokenizer, WorldTakesTheLongestMatch) {
  const WorldTokenizer t(tiny_world_vocabulary());
  EXPECT_EQ(t.encode("the cat"), (Ids{260, 33, 100, 98, 117}));
  EXPECT_EQ(t.encode("the the there"), (Ids{260, 33, 260, 33, 261}));
  // "thexy" is an entry; "thex" alone is not, so the walk goes back to "the".
  EXPECT_EQ(t.encode("thexy"), Ids{262});
  EXPECT_EQ(t.encode("thexz"), (Ids{260, 'x' + 1, 'z' + 1}));
  EXPECT_EQ(t.encode("'\"\\ \n"), (Ids{'\'' + 1, '"' + 1, '\\' + 1, 33, 11}));
  EXPECT_EQ(t.encode("a 'quoted' word"), (Ids{263, 33, 'w' + 1, 'o' + 1, 'r' + 1, 'd' + 1}));
  EXPECT_EQ(t.encode("\xc2\x80"), Ids{264});          // '\x80' in a text literal is a code point
  EXPECT_EQ(t.encode("\xe4\xbd"), Ids{265});          // b'\xe4\xbd'
  EXPECT_EQ(t.encode("\xf0\x9f\x9a\x80"), Ids{266});  // '\U0001f680'
  EXPECT_EQ(t.encode(""), Ids{});
  EXPECT_EQ(t.vocab_size(), 270);
  EXPECT_EQ(t.token_bytes(267), "");  // a gap
  EXPECT_EQ(t.token_bytes(269), "\xc3\xa9t\xc3\xa9");
  EXPECT_EQ(t.token_bytes(0), "");
  EXPECT_EQ(t.token_bytes(1000), "");
}

TEST(Tokenizer, WorldLineEndsDoNotMatter) {
  const std::string lf = tiny_world_vocabulary();
  std::string crlf;
  for (const char c : lf) crlf += c == '\n' ? "\r\n" : std::string(1, c);
  const WorldTokenizer a(lf), b(crlf);
  EXPECT_EQ(a.hash(), b.hash());
  EXPECT_EQ(a.hash(), sha256_hex(lf));
  EXPECT_EQ(a.encode("the there\r\n"), b.encode("the there\r\n"));
}

TEST(Tokenizer, WorldRoundTripsAndAgreesWithASlowSearch) {
  const WorldTokenizer t(tiny_world_vocabulary());
  const Rng rng(1, hash_name("bytes"));
  uint64_t draw = 0;
  const std::string alphabet = "thexyr'aquoted \xc3\xa9\xf0\x9f\x9a\x80\xe4\xbd\xc2";
  for (int round = 0; round < 200; ++round) {
    std::string text(rng.below(draw++, 60), '\0');
    for (char& c : text)
      c = rng.below(draw++, 4) > 0 ? alphabet[rng.below(draw++, alphabet.size())]
                                   : static_cast<char>(rng.below(draw++, 256));
    Ids slow;
    for (size_t at = 0; at < text.size();) {
      int32_t best = -1;
      for (int32_t id = 1; id < t.vocab_size(); ++id) {
        const auto bytes = t.token_bytes(id);
        if (!bytes.empty() && std::string_view(text).substr(at).starts_with(bytes) &&
            (best < 0 || bytes.size() > t.token_bytes(best).size()))
          best = id;
      }
      slow.push_back(best);
      at += t.token_bytes(best).size();
    }
    const Ids fast = t.encode(text);
    ASSERT_EQ(fast, slow);
    ASSERT_EQ(t.decode(fast), text);
  }
}

TEST(Tokenizer, WorldErrorsNameTheLine) {
  const std::string good = tiny_world_vocabulary();
  const auto fails = [&](const std::string& line) {
    return error_of<IoError>([&] { WorldTokenizer(good + line + "\n", "v.txt"); });
  };
  EXPECT_NE(fails("270 'abc' 4").find("v.txt, line 266: the literal has 3 bytes, the line says 4"),
            std::string::npos)
      << fails("270 'abc' 4");
  for (const char* bad :
       {"270 'abc", "x 'abc' 3", "270 abc 3", "270 '' 0", "270 'a\\q' 2", "270 b'\\u1234' 2",
        "270 '\\ud800' 3", "270 'a'b' 3", "-1 'abc' 3", "270 '\\x4' 1", "9999999 'abc' 3", "270"})
    EXPECT_FALSE(fails(bad).empty()) << bad;
  EXPECT_NE(fails("260 'abc' 3").find("id 260 occurs twice"), std::string::npos);
  EXPECT_THROW(WorldTokenizer(""), IoError);
  EXPECT_THROW(WorldTokenizer("1 'a' 1\n"), IoError);
}

TEST(Tokenizer, TravelsInsideAFile) {
  TempDir dir;
  auto out = Hdf5File::create(dir.file("t.h5"));
  const WorldTokenizer world(tiny_world_vocabulary());
  write_tokenizer(out, "tokenizer", world);
  write_tokenizer(out, "other", ByteTokenizer());
  out.write_string("broken/name", "world");
  out.write_string("broken/hash", world.hash());
  out.write<uint8_t>("broken/vocabulary", {3}, {1, 2, 3});
  out.write_string("future/name", "klingon");
  out.write_string("future/hash", "00");
  out.close();
  const auto in = Hdf5File::open(dir.file("t.h5"));
  const auto again = read_tokenizer(in, "tokenizer");
  EXPECT_EQ(again->name(), "world");
  EXPECT_EQ(again->hash(), world.hash());
  EXPECT_EQ(again->encode("the thexy"), world.encode("the thexy"));
  EXPECT_EQ(read_tokenizer(in, "other")->name(), "bytes");
  EXPECT_THROW(read_tokenizer(in, "broken"), IoError);
  EXPECT_THROW(read_tokenizer(in, "absent"), IoError);
  const std::string unknown = error_of<IoError>([&] { read_tokenizer(in, "future"); });
  EXPECT_NE(unknown.find("klingon"), std::string::npos);
}

TEST(Tokenizer, SaysWhenTheBuildLacksOne) {
  if (has_neox_tokenizer()) GTEST_SKIP() << "this build has all; data_neox_test tests the rest";
  const std::string text =
      error_of<ConfigError>([] { make_tokenizer("neox", "{}", "some/file.json"); });
  for (const char* part : {"some/file.json", "built without", "libpcre2-dev", "libutf8proc-dev"})
    EXPECT_NE(text.find(part), std::string::npos) << part << " in " << text;
}

TEST(Tokenizer, FindsTheVocabularyFile) {
  TempDir dir;
  const std::string model = dir.file("models/m.h5");
  std::filesystem::create_directories(dir.file("models"));
  std::filesystem::create_directories(dir.file("cache/greylag"));
  const char* old = std::getenv("XDG_CACHE_HOME");
  const std::string saved = old != nullptr ? old : "";
  ::setenv("XDG_CACHE_HOME", dir.file("cache").c_str(), 1);
  const std::string text = error_of<IoError>([&] { load_tokenizer("world", {.beside = model}); });
  for (const char* part : {"models/rwkv_vocab", "cache/greylag/rwkv_vocab", "package rwkv",
                           "tools/fetch_vocab.sh", "--vocab"})
    EXPECT_NE(text.find(part), std::string::npos) << part << " in " << text;
  const std::string v = tiny_world_vocabulary();
  write_file_atomic(dir.file("cache/greylag/") + std::string(kWorldVocabularyFile), v);
  EXPECT_EQ(load_tokenizer("world", {.beside = model})->vocab_size(), 270);
  write_file_atomic(dir.file("models/") + std::string(kWorldVocabularyFile), v + "270 'zz' 2\n");
  EXPECT_EQ(load_tokenizer("world", {.beside = model})->vocab_size(), 271);
  write_file_atomic(dir.file("mine.txt"), v + "270 'zz' 2\n271 'yy' 2\n");
  EXPECT_EQ(load_tokenizer("world", {.file = dir.file("mine.txt"), .beside = model})->vocab_size(),
            272);
  EXPECT_THROW(load_tokenizer("world", {.file = dir.file("absent.txt")}), IoError);
  EXPECT_THROW(load_tokenizer("klingon"), ConfigError);
  EXPECT_EQ(load_tokenizer("bytes")->vocab_size(), 257);
  if (old != nullptr)
    ::setenv("XDG_CACHE_HOME", saved.c_str(), 1);
  else
    ::unsetenv("XDG_CACHE_HOME");
}

TEST(Utf8, StreamHoldsBackAndReplaces) {
  const std::string text = "na\xc3\xafve \xe6\x97\xa5\xe6\x9c\xac \xf0\x9f\x9a\x80!";
  for (size_t piece = 1; piece <= 5; ++piece) {
    Utf8Stream s;
    std::string out;
    for (size_t i = 0; i < text.size(); i += piece) {
      const std::string now = s.push(std::string_view(text).substr(i, piece));
      EXPECT_EQ(to_valid_utf8(now), now);
      out += now;
    }
    EXPECT_EQ(out + s.finish(), text);
  }
  const std::string r = "\xEF\xBF\xBD";
  EXPECT_EQ(to_valid_utf8("a\xff\xfe"
                          "b"),
            "a" + r + r + "b");
  EXPECT_EQ(to_valid_utf8("\xe6\x97"), r);              // cut: one replacement
  EXPECT_EQ(to_valid_utf8("\xe6\x97z"), r + "z");       // one per maximal part
  EXPECT_EQ(to_valid_utf8("\xc0\xaf"), r + r);          // overlong
  EXPECT_EQ(to_valid_utf8("\xed\xa0\x80"), r + r + r);  // surrogate
  EXPECT_EQ(to_valid_utf8("\xf4\x90\x80\x80"), r + r + r + r);
  EXPECT_EQ(to_valid_utf8("\xf0\x9f\x9a"), r);
  Utf8Stream s;
  EXPECT_EQ(s.push("\xf0\x9f\x9a"), "");
  EXPECT_EQ(s.push("z"), r + "z");
  EXPECT_EQ(s.finish(), "");
}

TEST(Utf8, RandomBytesBecomeTheSameTextForAnyPieces) {
  const Rng rng(2, hash_name("utf8"));
  uint64_t draw = 0;
  for (int round = 0; round < 300; ++round) {
    std::string bytes(rng.below(draw++, 40), '\0');
    for (char& c : bytes) {
      const uint64_t kind = rng.below(draw++, 3);
      c = static_cast<char>(kind == 0 ? rng.below(draw++, 256) : 0x80 + rng.below(draw++, 0x80));
    }
    const std::string whole = to_valid_utf8(bytes);
    ASSERT_EQ(to_valid_utf8(whole), whole);
    Utf8Stream s;
    std::string out;
    for (size_t i = 0; i < bytes.size();) {
      const size_t n = 1 + rng.below(draw++, 5);
      out += s.push(std::string_view(bytes).substr(i, n));
      i += n;
    }
    ASSERT_EQ(out + s.finish(), whole);
  }
}

// --- the real vocabulary -----------------------------------------------------------------------

class RealWorld : public testing::Test {
 protected:
  void SetUp() override {
    const char* folder = std::getenv("RWKV_TEST_DATA");
    if (folder == nullptr) GTEST_SKIP() << "RWKV_TEST_DATA is not set";
    folder_ = folder;
    tokenizer_ =
        load_tokenizer("world", {.file = folder_ + "/tokenizers/rwkv_vocab_v20230424.txt"});
    reference_ = nlohmann::json::parse(read_file(folder_ + "/refs/tokenizer_reference.json"));
  }
  void check_stream(const std::string& corpus, const Ids& ids) {
    std::string bytes;
    for (const int32_t id : ids) {
      bytes += static_cast<char>(id & 255);
      bytes += static_cast<char>(id >> 8);
    }
    const auto& expected = reference_["corpora"]["world"][corpus];
    EXPECT_EQ(static_cast<int64_t>(ids.size()), expected["tokens"].get<int64_t>()) << corpus;
    EXPECT_EQ(sha256_hex(bytes), expected["sha256_u16le"].get<std::string>()) << corpus;
  }
  std::string folder_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  nlohmann::json reference_;
};

TEST_F(RealWorld, TextsAndByteStrings) {
  EXPECT_EQ(tokenizer_->vocab_size(), 65530);
  EXPECT_EQ(tokenizer_->hash(), "e6dee3d4e31b4d5c40ac99508ac6c701ceef4bed681bf2167ce9a908552bca89");
  EXPECT_EQ(tokenizer_->token_bytes(65529), std::string(128, ' '));
  size_t texts = 0, strings = 0;
  for (const auto& c : reference_["cases"]) {
    const auto text = c["text"].get<std::string>();
    const Ids ids = tokenizer_->encode(text);
    EXPECT_EQ(ids, c["world"].get<Ids>()) << c["name"];
    EXPECT_EQ(tokenizer_->decode(ids), text) << c["name"];
    ++texts;
  }
  for (const auto& c : reference_["world_byte_cases"]) {
    const auto hex = c["hex"].get<std::string>();
    std::string bytes;
    for (size_t i = 0; i < hex.size(); i += 2)
      bytes += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
    EXPECT_EQ(tokenizer_->encode(bytes), c["world"].get<Ids>()) << hex;
    ++strings;
  }
  EXPECT_EQ(texts, 252u);
  EXPECT_EQ(strings, 13u);
}

TEST_F(RealWorld, Corpora) {
  check_stream("tinyshakespeare",
               tokenizer_->encode(read_file(folder_ + "/text/tinyshakespeare.txt")));
  check_stream("wt2_test", tokenizer_->encode(read_file(folder_ + "/text/wikitext2_test.txt")));
  check_stream("wt2_valid", tokenizer_->encode(read_file(folder_ + "/text/wikitext2_valid.txt")));
  Ids ids;
  std::ifstream lines(folder_ + "/text/lambada_test.jsonl");
  for (std::string line; std::getline(lines, line);) {
    tokenizer_->encode_to(nlohmann::json::parse(line)["text"].get<std::string>(), ids);
    ids.push_back(kEndOfDocument);
  }
  check_stream("lambada_test", ids);
}

TEST(IdList, WhatIsWrittenIsRead) {
  const std::vector<int32_t> ids = {33155, 0, 40213, 34};
  EXPECT_EQ(format_ids(ids), "[33155, 0, 40213, 34]");
  EXPECT_EQ(format_ids({}), "[]");
  for (const char* text : {"[33155, 0, 40213, 34]", "33155 0 40213 34", " 33155,0, 40213 ,34 ",
                           "[33155,0,40213,34]\r", "[ 33155 , 0 , 40213 , 34 ] "})
    EXPECT_EQ(parse_ids(text, 65536, "test"), ids) << text;
  for (const char* text : {"", "  ", "[]", " [ ] "})
    EXPECT_TRUE(parse_ids(text, 10, "test").empty()) << text;
  for (const char* text : {"[1, 2", "1, 2]", "[1, 2] 3", "[1 2]", "[1,, 2]", "[,]", "[1,]", "x",
                           "1x", "1.5", "-1", "10", "99999999999999999999", "[[1]]", "\"a\""})
    EXPECT_NE(test::error_of<IoError>([&] { parse_ids(text, 10, "test"); }).find("test, column"),
              std::string::npos)
        << text;
}

}  // namespace
}  // namespace rwkv
