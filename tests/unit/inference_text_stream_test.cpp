// Stop strings and UTF-8 in streams, whatever the cuts between tokens.

#include "inference/text_stream.h"

#include <gtest/gtest.h>

#include "kernels/core/error.h"
#include "kernels/core/rng.h"

namespace rwkv {
namespace {

struct Result {
  std::string text;
  std::string stop;
  bool operator==(const Result&) const = default;
};

/// The rule, stated on the whole text: the stop string that ends first, the longest among those.
Result plain(const std::string& text, const std::vector<std::string>& stops) {
  for (size_t end = 1; end <= text.size(); ++end) {
    const std::string* best = nullptr;
    for (const std::string& s : stops)
      if (std::string_view(text).substr(0, end).ends_with(s) &&
          (best == nullptr || s.size() > best->size()))
        best = &s;
    if (best != nullptr) return {text.substr(0, end - best->size()), *best};
  }
  return {text, ""};
}

TEST(StopFinder, AgreesWithTheRuleForAllShortTextsAndCuts) {
  const std::vector<std::vector<std::string>> sets = {
      {},      {"a"},          {"ab"},        {"aab"},          {"aba", "b"},
      {"bab"}, {"abab", "ba"}, {"aa", "aab"}, {"b", "ab", "bb"}};
  for (const auto& stops : sets)
    for (int length = 0; length <= 7; ++length)
      for (int code = 0; code < 1 << length; ++code) {
        std::string text;
        for (int i = 0; i < length; ++i) text += (code >> i & 1) != 0 ? 'b' : 'a';
        const Result want = plain(text, stops);
        for (int cut = 0; cut <= length; ++cut) {
          StopFinder finder(stops);
          const auto at = static_cast<size_t>(cut);
          std::string got = finder.push(text.substr(0, at));
          // What is out must be certain: a part of the final text.
          ASSERT_TRUE(want.text.starts_with(got)) << text << " cut at " << cut;
          got += finder.push(text.substr(at));
          got += finder.finish();
          ASSERT_EQ((Result{got, finder.stop()}), want) << text << " cut at " << cut;
          ASSERT_EQ(finder.found(), !want.stop.empty());
        }
      }
}

TEST(StopFinder, HoldsBackNoMoreThanNeeded) {
  StopFinder finder({"\n\nUser:"});
  EXPECT_EQ(finder.push("hello\n"), "hello");
  EXPECT_EQ(finder.push("\n"), "");
  EXPECT_EQ(finder.push("Us"), "");
  EXPECT_EQ(finder.push("ual"), "\n\nUsual");
  EXPECT_EQ(finder.push("\n\n\nUse"), "\n");
  EXPECT_EQ(finder.push("r: more"), "");
  EXPECT_TRUE(finder.found());
  EXPECT_EQ(finder.push("anything"), "");
  EXPECT_EQ(finder.finish(), "");
}

TEST(StopFinder, RefusesAnEmptyStop) {
  EXPECT_THROW(StopFinder({"a", ""}), ConfigError);
}

std::vector<std::string> pieces(const std::string& bytes, const std::vector<std::string>& stops) {
  const ByteTokenizer tokenizer;
  TextStream stream(tokenizer, stops);
  std::vector<std::string> out;
  for (const int32_t id : tokenizer.encode(bytes)) {
    out.push_back(stream.push(id));
    if (stream.stopped()) break;
  }
  out.push_back(stream.finish());
  return out;
}

TEST(TextStream, NeverSplitsACharacter) {
  const std::string text = "aé日🚀!";
  const auto out = pieces(text, {});
  std::string all;
  for (const std::string& p : out) {
    EXPECT_EQ(p, to_valid_utf8(p));
    EXPECT_EQ(p.find("\xEF\xBF\xBD"), std::string::npos);
    all += p;
  }
  EXPECT_EQ(all, text);
  EXPECT_EQ(out[0], "a");
  EXPECT_EQ(out[1], "");
  EXPECT_EQ(out[2], "é");
}

TEST(TextStream, StopStringAcrossTokensAndCharacters) {
  const auto joined = [](const std::vector<std::string>& p) {
    std::string s;
    for (const auto& x : p) s += x;
    return s;
  };
  EXPECT_EQ(joined(pieces("日本。語", {"。"})), "日本");
  EXPECT_EQ(joined(pieces("one two END three", {"END"})), "one two ");
  EXPECT_EQ(joined(pieces("one two EN", {"END"})), "one two EN");
  // A character that is cut off at the end, or broken by the stop string, is replaced.
  EXPECT_EQ(joined(pieces("x\xE6\x97", {})), "x\xEF\xBF\xBD");
  EXPECT_EQ(joined(pieces("x\xE6\x97STOP", {"STOP"})), "x\xEF\xBF\xBD");
}

TEST(TextStream, IdsWithoutTextAddNothing) {
  const ByteTokenizer tokenizer;
  TextStream stream(tokenizer, {"ab"});
  EXPECT_EQ(stream.push('a' + 1), "");
  EXPECT_EQ(stream.push(kEndOfDocument), "");
  EXPECT_EQ(stream.push(300), "");
  EXPECT_EQ(stream.finish(), "a");
}

TEST(TextStream, RandomBytesInRandomPiecesAreValid) {
  Rng rng(5, 0);
  for (int round = 0; round < 200; ++round) {
    std::string bytes;
    for (uint64_t n = rng.next_below(40); n > 0; --n)
      bytes +=
          static_cast<char>(rng.next_below(4) == 0 ? rng.next_below(256)
                                                   : "ab\xE6\x97\xA5\xF0\x9F"[rng.next_below(7)]);
    std::string all;
    for (const std::string& p : pieces(bytes, {"abba"})) {
      EXPECT_EQ(p, to_valid_utf8(p));
      all += p;
    }
    EXPECT_EQ(all, to_valid_utf8(plain(bytes, {"abba"}).text));
  }
}

}  // namespace
}  // namespace rwkv
