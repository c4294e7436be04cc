// The GPT-NeoX tokenizer: a small hand-made vocabulary (tiny_neox.json), the real one where it is
// available.

#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "data/dataset.h"
#include "data/io/atomic_file.h"
#include "data/io/hdf5_file.h"
#include "data/io/sha256.h"
#include "data/prepare.h"
#include "data/tokenizer/byte_pairs.h"
#include "data/tokenizer/neox_tokenizer.h"
#include "data/tokenizer/unicode_ranges.h"
#include "data/tokenizer/utf8.h"
#include "kernels/core/error.h"
#include "kernels/core/rng.h"
#include "tests/unit/data_test_util.h"

namespace rwkv {
namespace {

using test::error_of;
using test::TempDir;
using Ids = std::vector<int32_t>;
using Json = nlohmann::ordered_json;

const std::string kTinyFile = std::string(RWKV_SOURCE_DIR) + "/tests/unit/tiny_neox.json";

/// Id of an ASCII character in tiny_neox.json: ids 2 and up are the bytes in order.
int32_t ascii(char c) {
  return c + 2;
}

Ids joined(Ids a, const Ids& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

class Neox : public testing::Test {
 protected:
  Neox() : json_(read_file(kTinyFile)), t_(json_, kTinyFile) {}
  std::string json_;
  NeoxTokenizer t_;
};

TEST_F(Neox, MergesByRank) {
  EXPECT_EQ(t_.vocab_size(), 276);
  EXPECT_EQ(t_.hash(), sha256_hex(json_));
  EXPECT_EQ(t_.encode(""), Ids{});
  EXPECT_EQ(t_.encode("the"), Ids{246});
  EXPECT_EQ(t_.encode("there the"), (Ids{269, 247}));  // " the" begins with its space
  EXPECT_EQ(t_.encode("abc"), Ids{252});               // ab before bc, then ab c
  EXPECT_EQ(t_.encode("bcabc"), (Ids{251, 252}));
  EXPECT_EQ(t_.encode("aaaaa"), (Ids{249, ascii('a')}));  // the leftmost of equals
  EXPECT_EQ(t_.encode("aab"), (Ids{248, ascii('b')}));    // aa has the lower rank
  EXPECT_EQ(t_.encode("hello"), Ids{257});
  EXPECT_EQ(t_.encode("x's"), (Ids{ascii('x'), 260}));
  EXPECT_EQ(t_.encode("x'S"), (Ids{ascii('x'), ascii('\''), ascii('S')}));
  EXPECT_EQ(t_.encode("1234"), (Ids{263, ascii('4')}));
  EXPECT_EQ(t_.encode("the123"), (Ids{246, 263}));
  EXPECT_EQ(t_.encode("\n\nab"), (Ids{ascii('\n'), ascii('\n'), 250}));  // \s+ gives one back
  EXPECT_EQ(t_.encode("x\n\n"), (Ids{ascii('x'), 258}));
  EXPECT_EQ(t_.token_bytes(247), " the");
  EXPECT_EQ(t_.token_bytes(258), "\n\n");
  EXPECT_EQ(t_.token_bytes(267), "\xe6\x97\xa5");
  EXPECT_EQ(t_.token_bytes(-1), "");
  EXPECT_EQ(t_.token_bytes(276), "");
}

TEST_F(Neox, AddedTokens) {
  EXPECT_EQ(t_.encode("a<|endoftext|>b"), (Ids{ascii('a'), 0, ascii('b')}));
  EXPECT_EQ(t_.encode("<|endoftext|><|padding|>"), (Ids{0, 1}));
  EXPECT_EQ(t_.encode("<|endoftext<|padding|>").back(), 1);
  EXPECT_EQ(t_.encode("<|x|>"), Ids{274});
  EXPECT_EQ(t_.encode("<|x|>y"), Ids{275});  // the longest
  EXPECT_EQ(t_.encode("<|x|>z"), (Ids{274, ascii('z')}));
  EXPECT_EQ(t_.encode(" "), Ids{ascii(' ')});
  EXPECT_EQ(t_.encode("  "), Ids{272});
  EXPECT_EQ(t_.encode("   "), Ids{271});
  EXPECT_EQ(t_.encode("    "), Ids{270});
  EXPECT_EQ(t_.encode(std::string(11, ' ')), (Ids{270, 270, 271}));
  EXPECT_EQ(t_.encode("the  the"), (Ids{246, 272, 246}));  // not " " and " the"
  EXPECT_EQ(t_.encode("\n     the"), (Ids{ascii('\n'), 270, 247}));
  // Special tokens and the end of a document decode to nothing, other added tokens to themselves.
  EXPECT_EQ(t_.decode(Ids{0, 246, 1, 270, 274, 0}), "the    <|x|>");
}

TEST_F(Neox, NormalisesToNfc) {
  EXPECT_EQ(t_.encode("e\u0301"), t_.encode("\u00e9"));
  EXPECT_EQ(t_.encode("\u00e9"), Ids{264});
  EXPECT_EQ(t_.encode("e\u0301!"), Ids{273});  // added tokens of the second kind are found after it
  const auto nfc = [&](std::string_view s) { return t_.decode(t_.encode(s)); };
  EXPECT_EQ(nfc("a e\u0301\u0301 b"), "a \u00e9\u0301 b");
  EXPECT_EQ(nfc("\u0301e"), "\u0301e");
  EXPECT_EQ(nfc("q\u0307\u0323"), "q\u0323\u0307");              // marks in canonical order
  EXPECT_EQ(nfc("\u1100\u1161\u11a8"), "\uac01");                // Hangul
  EXPECT_EQ(nfc("\uac00\u11a8x\uac00"), "\uac01x\uac00");        //
  EXPECT_EQ(nfc("\u212b\u2126\u037e"), "\u00c5\u03a9;");         // singletons
  EXPECT_EQ(nfc("\u0958 \ufb2a"), "\u0915\u093c \u05e9\u05c1");  // composition exclusions
  EXPECT_EQ(nfc("<\u0338=\u0338"), "\u226e\u2260");
  EXPECT_EQ(nfc("na\u00efve \u65e5\u672c \U0001f680"), "na\u00efve \u65e5\u672c \U0001f680");
}

/// Canonical ordering as Unicode defines it: neighbours are swapped while the second is a mark of a
/// lower class.
TEST_F(Neox, OrdersMarksAsDefined) {
  struct Mark {
    std::string_view bytes;
    int combining_class;
  };
  static constexpr Mark kMarks[] = {{"\u0338", 1},   {"\u05b0", 10},  {"\u0327", 202},
                                    {"\u0323", 220}, {"\u0316", 220}, {"\u0301", 230},
                                    {"\u0307", 230}, {"\u0315", 232}, {"\u0345", 240}};
  const Rng rng(8, hash_name("marks"));
  uint64_t draw = 0;
  for (int round = 0; round < 300; ++round) {
    std::string text, expected;
    for (int letter = 0; letter < 3; ++letter) {  // q joins with no mark
      std::vector<Mark> marks(rng.below(draw++, 40));
      for (Mark& m : marks) m = kMarks[rng.below(draw++, std::size(kMarks))];
      text += 'q';
      for (const Mark& m : marks) text += m.bytes;
      for (bool swapped = true; swapped;) {
        swapped = false;
        for (size_t i = 1; i < marks.size(); ++i) {
          if (marks[i - 1].combining_class <= marks[i].combining_class) continue;
          std::swap(marks[i - 1], marks[i]);
          swapped = true;
        }
      }
      expected += 'q';
      for (const Mark& m : marks) expected += m.bytes;
    }
    ASSERT_EQ(t_.decode(t_.encode(text)), expected) << text;
  }
  // By swaps this takes hours.
  constexpr int kMany = 1 << 19;
  std::string text = "q", expected = "q";
  for (int i = 0; i < kMany; ++i) text += "\u0301\u0323";
  for (const char* mark : {"\u0323", "\u0301"})
    for (int i = 0; i < kMany; ++i) expected += mark;
  EXPECT_TRUE(t_.decode(t_.encode(text)) == expected);
}

TEST_F(Neox, BytesThatAreNotUtf8BecomeReplacementCharacters) {
  const Rng rng(3, hash_name("bytes"));
  uint64_t draw = 0;
  EXPECT_EQ(t_.decode(t_.encode("a\xff\xc3")), "a\ufffd\ufffd");
  for (int round = 0; round < 300; ++round) {
    std::string bytes(rng.below(draw++, 40), '\0');
    for (char& c : bytes) c = static_cast<char>(rng.below(draw++, 256));
    const Ids ids = t_.encode(bytes);
    ASSERT_EQ(ids, t_.encode(to_valid_utf8(bytes)));
    ASSERT_TRUE(is_valid_utf8(t_.decode(ids)));
  }
}

// --- against slow code ---------------------------------------------------------------------------

bool in(std::span<const CodePointRange> ranges, uint32_t c) {
  return std::any_of(ranges.begin(), ranges.end(),
                     [&](const CodePointRange& r) { return r.first <= c && c <= r.last; });
}

/// What the splitting expression means, written out.
std::vector<std::u32string> slow_split(std::u32string_view s) {
  const UnicodeRanges u = unicode_ranges();
  enum Kind { kLetter, kNumber, kSpace, kOther };
  const auto kind = [&](char32_t c) {
    return in(u.letters, c)      ? kLetter
           : in(u.numbers, c)    ? kNumber
           : in(u.whitespace, c) ? kSpace
                                 : kOther;
  };
  std::vector<std::u32string> out;
  while (!s.empty()) {
    size_t n = 0;
    for (const char32_t* end : {U"'s", U"'t", U"'re", U"'ve", U"'m", U"'ll", U"'d"})
      if (n == 0 && s.starts_with(end)) n = std::u32string_view(end).size();
    if (n == 0) {
      const size_t skip = s.size() > 1 && s[0] == U' ' && kind(s[1]) != kSpace ? 1 : 0;
      const Kind k = kind(s[skip]);
      for (n = skip; n < s.size() && kind(s[n]) == k;) ++n;
      if (k == kSpace && n < s.size() && n > 1) --n;
    }
    out.emplace_back(s.substr(0, n));
    s.remove_prefix(n);
  }
  return out;
}

/// Byte pair encoding as its definition says.
Ids slow_merge(Ids symbols, const std::vector<PairMerge>& rules) {
  for (;;) {
    const auto applies = [&](const PairMerge& r) {
      for (size_t i = 0; i + 1 < symbols.size(); ++i)
        if (symbols[i] == r.left && symbols[i + 1] == r.right) return i;
      return symbols.size();
    };
    const auto rule = std::find_if(rules.begin(), rules.end(),
                                   [&](const PairMerge& r) { return applies(r) < symbols.size(); });
    if (rule == rules.end()) return symbols;
    const size_t at = applies(*rule);
    symbols[at] = rule->merged;
    symbols.erase(symbols.begin() + static_cast<int64_t>(at) + 1);
  }
}

std::vector<PairMerge> rules_by_bytes(const NeoxTokenizer& t) {
  // The file's rules, spelled in bytes.
  static constexpr const char* kRules[][2] = {
      {"h", "e"},       {"t", "he"},      {" ", "the"},         {"a", "a"},   {"aa", "aa"},
      {"a", "b"},       {"b", "c"},       {"ab", "c"},          {" ", "a"},   {" a", "b"},
      {"l", "l"},       {"he", "ll"},     {"hell", "o"},        {"\n", "\n"}, {"r", "e"},
      {"'", "s"},       {"'", "re"},      {"1", "2"},           {"12", "3"},  {"\xc3", "\xa9"},
      {"\xc3", "\xaf"}, {"\xe6", "\x97"}, {"\xe6\x97", "\xa5"}, {" ", " "},   {"the", "re"}};
  const auto id = [&](const std::string& bytes) {
    for (int32_t i = 2; i < 270; ++i)
      if (t.token_bytes(i) == bytes) return i;
    ADD_FAILURE() << bytes;
    return -1;
  };
  std::vector<PairMerge> rules;
  for (const auto& r : kRules) rules.push_back({id(r[0]), id(r[1]), id(std::string(r[0]) + r[1])});
  return rules;
}

TEST_F(Neox, AgreesWithSlowCodeOnRandomTexts) {
  const auto rules = rules_by_bytes(t_);
  const std::u32string alphabet =
      U"the abcab\n\r\t' sre'll'd12309\u00b2\u00e9\u00ef\u65e5\u672c\u3000\u2003\u0085\u00a0\u0663"
      U"-_.;\u2014\U0001f680\u05d0\u0e01";
  std::array<int32_t, 256> of{};
  for (int32_t id = 2; id < 245; ++id) of[static_cast<unsigned char>(t_.token_bytes(id)[0])] = id;
  const Rng rng(4, hash_name("texts"));
  uint64_t draw = 0;
  for (int round = 0; round < 400; ++round) {
    std::u32string text;
    for (uint64_t n = rng.below(draw++, 60); n > 0; --n) {
      const char32_t c = alphabet[rng.below(draw++, alphabet.size())];
      if (c != U' ' || text.empty() || text.back() != U' ') text += c;  // runs are added tokens
    }
    const auto utf8 = [](std::u32string_view s) {
      std::string out;
      for (const char32_t c : s) append_utf8(c, out);
      return out;
    };
    Ids slow;
    for (const auto& piece : slow_split(text)) {
      Ids symbols;
      for (const char c : utf8(piece)) symbols.push_back(of[static_cast<unsigned char>(c)]);
      slow = joined(slow, slow_merge(symbols, rules));
    }
    ASSERT_EQ(t_.encode(utf8(text)), slow) << utf8(text);
    ASSERT_EQ(t_.decode(slow), utf8(text));
  }
}

TEST_F(Neox, LongWords) {
  const auto rules = rules_by_bytes(t_);
  const Rng rng(5, hash_name("words"));
  uint64_t draw = 0;
  for (const size_t length : {2u, 22u, 23u, 47u, 48u, 49u, 50u, 300u}) {
    for (int round = 0; round < 20; ++round) {
      std::string word(length, 'a');
      Ids symbols;
      for (char& c : word) {
        c = "aaabcthelo"[rng.below(draw++, 10)];
        symbols.push_back(ascii(c));
      }
      ASSERT_EQ(t_.encode(word), slow_merge(symbols, rules)) << word;
    }
  }
  // Nothing is quadratic, and nothing runs out of stack.
  EXPECT_EQ(t_.encode(std::string(1 << 20, 'a')).size(), size_t{1} << 18);
  EXPECT_EQ(t_.encode(std::string(1 << 20, '\n')).size(), size_t{1} << 19);
  EXPECT_EQ(t_.encode(std::string(1 << 20, '\n') + "a").size(), (size_t{1} << 19) + 1 + 1);
  EXPECT_EQ(t_.encode(std::string(1 << 20, ' ')).size(), size_t{1} << 18);
}

TEST_F(Neox, SafeCutsChangeNothing) {
  const std::vector<std::string> parts = {
      "the",           " ",      "  ",   "\n",       "\n\n",    "\r\n",   "\t",           "'s",
      "<|endoftext|>", "<|x|>",  "y",    "12",       "e\u0301", "\u0301", "\u65e5\u672c", "\u3000",
      "\u0085",        "\u2003", "\xff", "\xe3\x80", "-"};
  const Rng rng(6, hash_name("cuts"));
  uint64_t draw = 0;
  size_t cuts = 0;
  for (int round = 0; round < 2000; ++round) {
    std::string text, more;
    for (uint64_t n = rng.below(draw++, 12); n > 0; --n)
      text += parts[rng.below(draw++, parts.size())];
    for (uint64_t n = rng.below(draw++, 4); n > 0; --n)
      more += parts[rng.below(draw++, parts.size())];
    const size_t cut = t_.safe_cut(text, 0);
    ASSERT_LE(cut, text.size());
    cuts += cut > 0;
    for (const size_t from : {cut / 2, cut, cut + 1, text.size()})
      ASSERT_EQ(t_.safe_cut(text, from), from <= cut ? cut : 0) << text << " from " << from;
    const std::string all = text + more;
    ASSERT_EQ(joined(t_.encode(all.substr(0, cut)), t_.encode(all.substr(cut))), t_.encode(all))
        << all << " at " << cut;
  }
  EXPECT_GT(cuts, 1000u);
  EXPECT_EQ(t_.safe_cut("a b c", 0), 3u);
  EXPECT_EQ(t_.safe_cut("a  b", 0), 1u);
  EXPECT_EQ(t_.safe_cut("\u3000 ", 0), 0u);
}

TEST_F(Neox, ManyThreadsAgree) {
  const std::string text = json_ + kTinyFile;
  const Ids expected = t_.encode(text);
  std::vector<Ids> results(4);
  std::vector<std::thread> threads;
  for (Ids& r : results)
    threads.emplace_back([&] {
      for (int i = 0; i < 5; ++i) r = t_.encode(text);
    });
  for (auto& thread : threads) thread.join();
  for (const Ids& r : results) EXPECT_EQ(r, expected);
}

TEST_F(Neox, TokensAreStreamedAsWholeCharacters) {
  const std::string text = "na\u00efve \u65e5\u672c \U0001f680 \u00e9!";
  Utf8Stream s;
  std::string out;
  for (const int32_t id : t_.encode(text)) {
    const std::string now = s.push(t_.token_bytes(id));
    EXPECT_TRUE(is_valid_utf8(now));
    EXPECT_EQ(now.find("\ufffd"), std::string::npos);
    out += now;
  }
  EXPECT_EQ(out + s.finish(), text);
}

// --- files ---------------------------------------------------------------------------------------

TEST_F(Neox, TravelsInsideAFile) {
  TempDir dir;
  auto out = Hdf5File::create(dir.file("t.h5"));
  write_tokenizer(out, "tokenizer", t_);
  out.close();
  const auto again = read_tokenizer(Hdf5File::open(dir.file("t.h5")), "tokenizer");
  EXPECT_EQ(again->name(), "neox");
  EXPECT_EQ(again->hash(), t_.hash());
  EXPECT_EQ(again->encode("the  hello"), t_.encode("the  hello"));
}

TEST_F(Neox, PreparesTheSameTokensForAnyThreadsAndPieces) {
  TempDir dir;
  std::string text;
  for (int i = 0; i < 200; ++i) text += "the hello\n\n  aab e\u0301 x's 123<|endoftext|>\u65e5\n";
  write_file_atomic(dir.file("in.txt"), text);
  const Ids expected = joined(t_.encode(text), {kEndOfDocument});
  std::string first;
  for (const int threads : {1, 3})
    for (const size_t piece : {64u, 1u << 20}) {
      PrepareOptions o;
      o.inputs = {dir.file("in.txt")};
      o.output = dir.file("out.h5");
      o.threads = threads;
      o.piece_bytes = piece;
      prepare_tokens(o, load_tokenizer("auto", {.file = kTinyFile}));
      if (first.empty()) first = read_file(o.output);
      EXPECT_EQ(read_file(o.output), first);
    }
  const auto file = TokenFile::open(dir.file("out.h5"));
  Ids ids(static_cast<size_t>(file->size()));
  file->read(0, ids);
  EXPECT_EQ(ids, expected);
  EXPECT_EQ(file->tokenizer_name(), "neox");
  EXPECT_EQ(file->tokenizer()->hash(), t_.hash());
  EXPECT_EQ(file->vocab_size(), 276);
  EXPECT_TRUE(file->verify().empty());
}

TEST_F(Neox, VocabulariesAreToldApart) {
  TempDir dir;
  write_file_atomic(dir.file("world.txt"), test::tiny_world_vocabulary());
  EXPECT_EQ(load_tokenizer("auto", {.file = kTinyFile})->name(), "neox");
  EXPECT_EQ(load_tokenizer("auto", {.file = dir.file("world.txt")})->name(), "world");
  const auto wrong = [&](const char* name, const std::string& file) {
    return error_of<IoError>([&] { load_tokenizer(name, {.file = file}); });
  };
  EXPECT_NE(wrong("world", kTinyFile).find("found a JSON file"), std::string::npos);
  EXPECT_NE(wrong("neox", dir.file("world.txt")).find("found a text file"), std::string::npos);
  std::filesystem::create_directories(dir.file("models"));
  write_file_atomic(dir.file("models/20B_tokenizer.json"), json_);
  EXPECT_EQ(load_tokenizer("neox", {.beside = dir.file("models/m.h5")})->hash(), t_.hash());
}

TEST_F(Neox, ErrorsNameFileMemberFoundAndExpected) {
  using Edit = std::function<void(Json&)>;
  const struct {
    Edit edit;
    const char *member, *found;
  } cases[] = {
      {[](Json& j) { j.erase("model"); }, "model", "nothing"},
      {[](Json& j) { j["model"]["type"] = "Unigram"; }, "model.type", "Unigram"},
      {[](Json& j) { j["model"]["vocab"] = 3; }, "model.vocab", "3"},
      {[](Json& j) { j["model"]["vocab"].erase("e"); }, "model.vocab", "single byte 101"},
      {[](Json& j) { j["model"]["vocab"]["he"] = -1; }, "\"he\"", "-1"},
      {[](Json& j) { j["model"]["vocab"]["he"] = 9999999; }, "\"he\"", "9999999"},
      {[](Json& j) { j["model"]["vocab"]["he"] = "x"; }, "\"he\"", "\"x\""},
      {[](Json& j) { j["model"]["vocab"]["he"] = 246; }, "model.vocab", "246"},
      {[](Json& j) { j["model"]["vocab"]["a b"] = 300; }, "\"a b\"", "stands for no byte"},
      {[](Json& j) { j["model"]["merges"][2] = "a"; }, "model.merges[2]", "\"a\""},
      {[](Json& j) { j["model"]["merges"][2] = "a b c"; }, "model.merges[2]", "a b c"},
      {[](Json& j) { j["model"]["merges"][2] = "a z"; }, "model.merges[2]", "\"az\""},
      {[](Json& j) { j["model"]["merges"][2] = "a b"; }, "model.merges[5]", "twice"},
      {[](Json& j) { j["model"]["dropout"] = 0.1; }, "model.dropout", "0.1"},
      {[](Json& j) { j["model"]["unk_token"] = "?"; }, "model.unk_token", "?"},
      {[](Json& j) { j["normalizer"]["type"] = "NFKC"; }, "normalizer.type", "NFKC"},
      {[](Json& j) { j["pre_tokenizer"]["type"] = "Metaspace"; }, "pre_tokenizer.type",
       "Metaspace"},
      {[](Json& j) { j["pre_tokenizer"]["use_regex"] = false; }, "use_regex", "false"},
      {[](Json& j) { j["pre_tokenizer"]["add_prefix_space"] = true; }, "prefix_space", "true"},
      {[](Json& j) { j["decoder"] = nullptr; }, "decoder.type", "nothing"},
      {[](Json& j) { j.erase("added_tokens"); }, "added_tokens", "nothing"},
      {[](Json& j) { j["added_tokens"].erase(0); }, "added_tokens", "no special token with id 0"},
      {[](Json& j) { j["added_tokens"][2]["id"] = 5; }, "added_tokens[2].id", "disagrees"},
      {[](Json& j) { j["added_tokens"][3]["id"] = 270; }, "added_tokens[3].id", "twice"},
      {[](Json& j) { j["added_tokens"][2]["content"] = ""; }, "added_tokens[2].content", "empty"},
      {[](Json& j) { j["added_tokens"][2]["lstrip"] = true; }, "added_tokens[2].lstrip", "true"},
      {[](Json& j) { j["added_tokens"][2].erase("normalized"); }, "[2].normalized", "nothing"},
  };
  for (const auto& c : cases) {
    Json j = Json::parse(json_);
    c.edit(j);
    const std::string text = error_of<IoError>([&] { NeoxTokenizer(j.dump(), "some/file.json"); });
    for (const char* part : {"some/file.json", c.member, c.found, "found", "expected"})
      EXPECT_NE(text.find(part), std::string::npos) << part << " in " << text;
  }
  for (const char* bad : {"", "{", "[1]", "1 'a' 1\n", "{\"a\": \xff}"})
    EXPECT_NE(error_of<IoError>([&] { NeoxTokenizer(bad, "f.json"); }).find("f.json"),
              std::string::npos);
  // Equivalent forms are read: pairs as arrays, no normalizer, carriage returns.
  Json j = Json::parse(json_);
  j["model"]["merges"][0] = {"h", "e"};
  j["normalizer"] = nullptr;
  const NeoxTokenizer t(j.dump());
  EXPECT_EQ(t.encode("the"), Ids{246});
  EXPECT_EQ(t.decode(t.encode("e\u0301")), "e\u0301");
  std::string crlf;
  for (const char c : json_) crlf += c == '\n' ? "\r\n" : std::string(1, c);
  EXPECT_EQ(NeoxTokenizer(crlf).hash(), t_.hash());
}

// --- the real vocabulary -------------------------------------------------------------------------

class RealNeox : public testing::Test {
 protected:
  void SetUp() override {
    const char* folder = std::getenv("RWKV_TEST_DATA");
    if (folder == nullptr) GTEST_SKIP() << "RWKV_TEST_DATA is not set";
    folder_ = folder;
    tokenizer_ = load_tokenizer("neox", {.file = folder_ + "/tokenizers/20B_tokenizer.json"});
    reference_ = Json::parse(read_file(folder_ + "/refs/tokenizer_reference.json"));
  }
  void check_stream(const std::string& corpus, const Ids& ids) {
    std::string bytes;
    for (const int32_t id : ids) {
      bytes += static_cast<char>(id & 255);
      bytes += static_cast<char>(id >> 8);
    }
    const auto& expected = reference_["corpora"]["neox"][corpus];
    EXPECT_EQ(static_cast<int64_t>(ids.size()), expected["tokens"].get<int64_t>()) << corpus;
    EXPECT_EQ(sha256_hex(bytes), expected["sha256_u16le"].get<std::string>()) << corpus;
  }
  std::string folder_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  Json reference_;
};

TEST_F(RealNeox, Texts) {
  EXPECT_EQ(tokenizer_->vocab_size(), 50277);
  EXPECT_EQ(tokenizer_->hash(), "56ac4821e129d2c520fdaba60abd920fa852ada51b45c0dd52bbb6bd8c985ade");
  EXPECT_EQ(tokenizer_->token_bytes(50276), "  ");
  size_t texts = 0, changed = 0;
  for (const auto& c : reference_["cases"]) {
    const auto text = c["text"].get<std::string>();
    const Ids ids = tokenizer_->encode(text);
    EXPECT_EQ(ids, c["neox"].get<Ids>()) << c["name"];
    // The reference's texts keep special tokens; here they decode to nothing.
    const auto& differs = c["neox_decoded_differs"];
    std::string expected = differs.is_null() ? text : differs.get<std::string>();
    changed += !differs.is_null();
    for (const std::string special : {"<|endoftext|>", "<|padding|>"})
      for (size_t at; (at = expected.find(special)) != std::string::npos;)
        expected.erase(at, special.size());
    EXPECT_EQ(tokenizer_->decode(ids), expected) << c["name"];
    ++texts;
  }
  EXPECT_EQ(texts, 252u);
  EXPECT_GT(changed, 30u);
}

TEST_F(RealNeox, Corpora) {
  check_stream("tinyshakespeare",
               tokenizer_->encode(read_file(folder_ + "/text/tinyshakespeare.txt")));
  check_stream("wt2_test", tokenizer_->encode(read_file(folder_ + "/text/wikitext2_test.txt")));
  check_stream("wt2_valid", tokenizer_->encode(read_file(folder_ + "/text/wikitext2_valid.txt")));
  Ids ids;
  std::ifstream lines(folder_ + "/text/lambada_test.jsonl");
  for (std::string line; std::getline(lines, line);) {
    tokenizer_->encode_to(Json::parse(line)["text"].get<std::string>(), ids);
    ids.push_back(kEndOfDocument);
  }
  check_stream("lambada_test", ids);
}

}  // namespace
}  // namespace rwkv
