// Text, folders and JSON lines to token files: streaming, threads, zstd, malformed input.

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "data/dataset.h"
#include "data/io/atomic_file.h"
#include "data/prepare.h"
#include "data/tokenizer/world_tokenizer.h"
#include "kernels/core/error.h"
#include "kernels/core/rng.h"
#include "tests/unit/data_test_util.h"

namespace rwkv {
namespace {

using test::error_of;
using test::TempDir;
using Ids = std::vector<int32_t>;
using Texts = std::vector<std::string>;

void put(const std::string& path, std::string_view content) {
  std::ofstream(path, std::ios::binary) << content;
}

std::shared_ptr<const Tokenizer> bytes() {
  return std::make_shared<ByteTokenizer>();
}
std::shared_ptr<const Tokenizer> world() {
  return std::make_shared<WorldTokenizer>(test::tiny_world_vocabulary());
}

/// The documents of a token file as text; checks the file on the way.
Texts documents(const std::string& path) {
  const auto t = TokenFile::open(path);
  EXPECT_TRUE(t->verify().empty()) << path;
  const auto tokenizer = t->tokenizer();
  const auto offsets = t->document_offsets(0, t->documents());
  Texts out;
  for (size_t d = 0; d + 1 < offsets.size(); ++d) {
    Ids ids(static_cast<size_t>(offsets[d + 1] - offsets[d]));
    t->read(offsets[d], ids);
    out.push_back(tokenizer->decode(ids));
  }
  return out;
}

Ids tokens(const std::string& path) {
  const auto t = TokenFile::open(path);
  Ids ids(static_cast<size_t>(t->size()));
  t->read(0, ids);
  return ids;
}

TEST(JsonLine, TextsAndReasons) {
  const auto text = [](std::string_view line) { return text_of_json_line(line, "text"); };
  EXPECT_EQ(text(R"({"meta":{"a":[1]},"text":"a\nb"})"), "a\nb");
  EXPECT_EQ(text(R"({"text":"\u0000\u00e9"})"), std::string("\0\xc3\xa9", 3));
  EXPECT_EQ(text(R"({"text":"\ud83d\ude80"})"), "\xf0\x9f\x9a\x80");
  const std::string r = "\xef\xbf\xbd";
  EXPECT_EQ(text(R"({"text":"a\ud800b"})"), "a" + r + "b");
  EXPECT_EQ(text(R"({"text":"\uDE80"})"), r);
  EXPECT_EQ(text(R"({"text":"\ud83d\ud83d\ude80"})"), r + "\xf0\x9f\x9a\x80");
  EXPECT_EQ(text(R"({"text":"\ud83d\u0041"})"), r + "A");
  EXPECT_EQ(text(R"({"text":"\\ud800 \\\ud800"})"), "\\ud800 \\" + r);
  const auto reason = [&](std::string_view line) { return error_of<IoError>([&] { text(line); }); };
  EXPECT_NE(reason("{\"text\":").find("malformed JSON"), std::string::npos);
  EXPECT_NE(reason("{\"text\":\"\\ud8\"}").find("malformed JSON"), std::string::npos);
  EXPECT_NE(reason("{\"text\":\"\xff\"}").find("malformed JSON"), std::string::npos);
  EXPECT_NE(reason("[1]").find("JSON array"), std::string::npos);
  EXPECT_NE(reason("{\"txt\":1}").find("no member \"text\""), std::string::npos);
  EXPECT_NE(reason("{\"text\":1}").find("JSON number"), std::string::npos);
}

TEST(Prepare, TextFilesFoldersAndSeparators) {
  TempDir dir;
  std::filesystem::create_directories(dir.file("in/sub"));
  put(dir.file("in/b.txt"), "second");
  put(dir.file("in/a.md"), "first");
  put(dir.file("in/sub/c.jsonl"),
      "{\"text\":\"third\"}\r\n\n{\"text\":\"\"}\n{\"text\":\"fifth\"}");
  put(dir.file("in/picture.png"), "no");
  put(dir.file("in/empty.txt"), "");
  PrepareOptions o{.inputs = {dir.file("in")}, .output = dir.file("out.h5")};
  const auto r = prepare_tokens(o, bytes());
  EXPECT_EQ(documents(o.output), (Texts{"first", "second", "", "third", "", "fifth"}));
  EXPECT_EQ(r.documents, 6);
  EXPECT_EQ(r.text_bytes, 21);
  EXPECT_EQ(r.tokens, 27);
  EXPECT_EQ(tokens(o.output).back(), kEndOfDocument);
  const auto created = nlohmann::json::parse(TokenFile::open(o.output)->created());
  EXPECT_EQ(created["input_count"], 4);

  put(dir.file("s.txt"), "<|>one<|><|>two\n<|thr<|>ee<|>");
  for (size_t piece = 1; piece < 12; ++piece) {
    o = {.inputs = {dir.file("s.txt")}, .output = dir.file("s.h5"), .split_at = "<|>"};
    o.piece_bytes = piece;
    o.end_of_document = false;
    prepare_tokens(o, bytes());
    EXPECT_EQ(documents(o.output), (Texts{"one", "two\n<|thr", "ee"})) << piece;
  }
}

TEST(Prepare, PiecesAndThreadsDoNotChangeTheResult) {
  TempDir dir;
  const Rng rng(11, 12);
  uint64_t draw = 0;
  const std::string alphabet = "the re xy\n'aquoted\xc3\xa9\xe4\xbd 0123";
  std::string text, lines;
  for (int d = 0; d < 60; ++d) {
    std::string doc(rng.below(draw++, 300), ' ');
    for (char& c : doc) c = alphabet[rng.below(draw++, alphabet.size())];
    text += doc;
    lines += nlohmann::json{{"text", doc}}.dump(-1, ' ', true,
                                                nlohmann::json::error_handler_t::replace) +
             "\n";
  }
  put(dir.file("t.txt"), text);
  put(dir.file("l.jsonl"), lines);
  const auto tokenizer = world();
  Ids whole = tokenizer->encode(text);
  whole.push_back(kEndOfDocument);
  std::string reference;
  for (const int threads : {1, 3})
    for (const size_t piece : {40, 1000, 1 << 20}) {
      PrepareOptions o{.inputs = {dir.file("t.txt")}, .output = dir.file("t.h5")};
      o.threads = threads;
      o.piece_bytes = piece;
      prepare_tokens(o, tokenizer);
      ASSERT_EQ(tokens(o.output), whole) << piece;  // cut in pieces, the ids are those of the whole
      o.inputs = {dir.file("t.txt"), dir.file("l.jsonl")};
      o.output = dir.file("tl.h5");
      prepare_tokens(o, tokenizer);
      const std::string now = read_file(o.output);
      if (reference.empty()) reference = now;
      ASSERT_TRUE(now == reference) << threads << " threads, pieces of " << piece;
    }
}

/// Bytes that are cut before every 'X', counting what is looked at.
class Counting final : public Tokenizer {
 public:
  std::string_view name() const override { return bytes_.name(); }
  const std::string& hash() const override { return bytes_.hash(); }
  int32_t vocab_size() const override { return bytes_.vocab_size(); }
  std::string_view token_bytes(int32_t id) const override { return bytes_.token_bytes(id); }
  void encode_to(std::string_view text, Ids& ids) const override { bytes_.encode_to(text, ids); }
  size_t safe_cut(std::string_view text, size_t from) const override {
    const size_t first = std::min(from, text.size());
    looked_at += text.size() - first;
    const size_t cut = text.substr(first).rfind('X');
    return cut == std::string_view::npos ? 0 : first + cut;
  }
  std::string_view vocabulary() const override { return {}; }
  mutable size_t looked_at = 0;

 private:
  ByteTokenizer bytes_;
};

TEST(WorkReader, LongTextsWithoutCutsAreSearchedOnce) {
  TempDir dir;
  const std::string run(size_t{1} << 20, 'a');
  for (const std::string separator : {"", "<|>"}) {
    const std::string text = run + "X" + run + (separator.empty() ? "" : "<<|>") + run + "<|";
    put(dir.file("t.txt"), text);
    const auto tokenizer = std::make_shared<Counting>();
    // With pieces of 16 bytes, searching all of them again takes minutes.
    WorkReader reader(find_inputs({dir.file("t.txt")}, TextFormat::kAuto), tokenizer, separator,
                      16);
    Texts found = {""};
    for (WorkItem item; reader.next(item);) {
      for (const auto& s : item.segments) {
        found.back() += item.raw.substr(s.begin, s.end - s.begin);
        if (s.ends_document) found.emplace_back();
      }
    }
    const Texts expected =
        separator.empty() ? Texts{text, ""} : Texts{run + "X" + run + "<", run + "<|", ""};
    EXPECT_TRUE(found == expected) << "separator " << separator;
    EXPECT_GT(tokenizer->looked_at, text.size() / 2);
    EXPECT_LE(tokenizer->looked_at, 2 * text.size());
  }
}

TEST(Prepare, MalformedLines) {
  TempDir dir;
  put(dir.file("l.jsonl"), "{\"text\":\"a\"}\n\nnonsense\n{\"text\":\"b\"}\n{\"txt\":\"c\"}\n");
  PrepareOptions o{.inputs = {dir.file("l.jsonl")}, .output = dir.file("o.h5")};
  o.piece_bytes = 4;
  const std::string text = error_of<IoError>([&] { prepare_tokens(o, bytes()); });
  EXPECT_NE(text.find("l.jsonl:3: malformed JSON"), std::string::npos) << text;
  EXPECT_FALSE(std::filesystem::exists(o.output));
  Texts bad;
  o.skip_bad_lines = true;
  o.report_bad_line = [&](const std::string& line) { bad.push_back(line); };
  EXPECT_EQ(prepare_tokens(o, bytes()).bad_lines, 2);
  EXPECT_EQ(documents(o.output), (Texts{"a", "b"}));
  ASSERT_EQ(bad.size(), 2u);
  EXPECT_NE(bad[1].find("l.jsonl:5:"), std::string::npos);
  put(dir.file("f.jsonl"), "{\"content\":\"x\"}\n");
  o = {.inputs = {dir.file("f.jsonl")}, .output = dir.file("o.h5"), .field = "content"};
  prepare_tokens(o, bytes());
  EXPECT_EQ(documents(o.output), (Texts{"x"}));
}

TEST(Prepare, RefusesWhatItCannotRead) {
  TempDir dir;
  PrepareOptions o{.inputs = {dir.file("none.txt")}, .output = dir.file("o.h5")};
  EXPECT_THROW(prepare_tokens(o, bytes()), IoError);
  put(dir.file("x.dat"), "text");
  o.inputs = {dir.file("x.dat")};
  EXPECT_THROW(prepare_tokens(o, bytes()), ConfigError);
  o.format = TextFormat::kText;
  EXPECT_NO_THROW(prepare_tokens(o, bytes()));
  std::filesystem::create_directory(dir.file("nothing"));
  o.inputs = {dir.file("nothing")};
  EXPECT_THROW(prepare_tokens(o, bytes()), IoError);
  put(dir.file("z.txt"), "\x1f\x8b\x08 gzip");
  o.inputs = {dir.file("z.txt")};
  EXPECT_NE(error_of<IoError>([&] { prepare_tokens(o, bytes()); }).find("gzip -dc"),
            std::string::npos);
  o.inputs = {"-"};
  o.format = TextFormat::kAuto;
  EXPECT_THROW(prepare_tokens(o, bytes()), ConfigError);
  put(dir.file("blank.jsonl"), "\n \n");
  o.inputs = {dir.file("blank.jsonl")};
  EXPECT_NE(error_of<IoError>([&] { prepare_tokens(o, bytes()); }).find("no text"),
            std::string::npos);
  EXPECT_THROW(parse_text_format("xml"), ConfigError);
}

TEST(Prepare, ValidationPart) {
  TempDir dir;
  std::string lines;
  for (int i = 0; i < 100; ++i) lines += "{\"text\":\"doc " + std::to_string(i) + "\"}\n";
  put(dir.file("l.jsonl"), lines);
  PrepareOptions o{.inputs = {dir.file("l.jsonl")}, .output = dir.file("o.h5")};
  o.valid_fraction = 0.05;
  auto r = prepare_tokens(o, bytes());
  EXPECT_EQ(r.valid_output, dir.file("o.valid.h5"));
  EXPECT_EQ(documents(r.valid_output), (Texts{"doc 19", "doc 39", "doc 59", "doc 79", "doc 99"}));
  EXPECT_EQ(documents(o.output).size(), 95u);
  EXPECT_EQ(r.documents, 95);
  EXPECT_EQ(r.valid_documents, 5);

  // One document: its end.
  put(dir.file("t.txt"), std::string(90, 'a') + std::string(9, 'b'));
  o.inputs = {dir.file("t.txt")};
  o.valid_fraction = 0.1;
  o.valid_output = dir.file("v.h5");
  r = prepare_tokens(o, bytes());
  EXPECT_EQ(documents(o.output), Texts{std::string(90, 'a')});
  EXPECT_EQ(documents(dir.file("v.h5")), Texts{std::string(9, 'b')});
  EXPECT_EQ(r.tokens, 90);
  EXPECT_EQ(r.valid_tokens, 10);
  for (const auto& e : std::filesystem::directory_iterator(dir.path()))
    EXPECT_NE(e.path().extension(), ".tmp") << e.path();
  o.valid_fraction = 1;
  EXPECT_THROW(prepare_tokens(o, bytes()), ConfigError);
}

TEST(Prepare, FullDiskLeavesTheOldFile) {
  TempDir dir;
  std::string lines;
  for (int i = 0; i < 20000; ++i)
    lines += "{\"text\":\"some more text, " + std::to_string(i) + "\"}\n";
  put(dir.file("l.jsonl"), lines);
  put(dir.file("o.h5"), "old");
  PrepareOptions o{.inputs = {dir.file("l.jsonl")}, .output = dir.file("o.h5")};
  o.piece_bytes = 1000;
  const pid_t pid = ::fork();
  if (pid == 0) {
    ::signal(SIGXFSZ, SIG_IGN);
    const struct rlimit limit { 100000, 100000 };
    ::setrlimit(RLIMIT_FSIZE, &limit);
    try {
      prepare_tokens(o, bytes());
      ::_exit(1);
    } catch (const IoError&) {
      ::_exit(0);
    } catch (...) {
      ::_exit(2);
    }
  }
  int status = 0;
  ::waitpid(pid, &status, 0);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  EXPECT_EQ(read_file(o.output), "old");
  for (const auto& e : std::filesystem::directory_iterator(dir.path()))
    EXPECT_NE(e.path().extension(), ".tmp") << e.path();
}

#ifdef RWKV_HAVE_ZSTD
// Frames made by hand (RFC 8878, 3.1.1): no content size, window of 2 MiB, then raw or run-length
// blocks of at most 128 KiB.
const std::string kFrameHeader("\x28\xb5\x2f\xfd\x00\x58", 6);

std::string block(size_t size, bool last, bool run, std::string_view content) {
  const size_t header = (last ? 1 : 0) | (run ? 2 : 0) | size << 3;
  std::string out;
  for (int shift = 0; shift < 24; shift += 8) out += static_cast<char>(header >> shift);
  return out += content;
}

std::string frame(std::string_view text) {
  return kFrameHeader + block(text.size(), true, false, text);
}

TEST(Prepare, ZstdFramesSkippableFramesAndDamage) {
  TempDir dir;
  const std::string skippable("\x55\x2a\x4d\x18\x03\x00\x00\x00xyz", 11);
  const std::string long_text(700000, 'q');
  std::string file = skippable + frame("{\"text\":\"one\"}\n{\"te") + skippable +
                     frame("xt\":\"two\"}\n") + kFrameHeader +
                     block(9, false, false, "{\"text\":\"");
  for (int i = 0; i < 7; ++i) file += block(100000, false, true, "q");
  file += block(2, true, false, "\"}");
  put(dir.file("a.jsonl.zst"), file);
  PrepareOptions o{.inputs = {dir.file("a.jsonl.zst")}, .output = dir.file("o.h5")};
  for (const size_t piece : {100, 5000, 1 << 20}) {
    o.piece_bytes = piece;
    prepare_tokens(o, bytes());
    EXPECT_EQ(documents(o.output), (Texts{"one", "two", long_text}));
  }
  put(dir.file("a.jsonl.zst"), file.substr(0, file.size() - 3));
  EXPECT_NE(error_of<IoError>([&] { prepare_tokens(o, bytes()); }).find("truncated"),
            std::string::npos);
  // A block of the reserved type.
  put(dir.file("a.jsonl.zst"), kFrameHeader + std::string("\x07\x00\x00", 3));
  EXPECT_NE(error_of<IoError>([&] { prepare_tokens(o, bytes()); }).find("damaged zstd"),
            std::string::npos);
}
#endif

TEST(Prepare, PileSampleIsTheSamePlainAndCompressed) {
  const char* folder = std::getenv("RWKV_TEST_DATA");
  if (folder == nullptr) GTEST_SKIP() << "RWKV_TEST_DATA is not set";
  TempDir dir;
  const std::string data = folder;
  const auto tokenizer =
      load_tokenizer("world", {.file = data + "/tokenizers/rwkv_vocab_v20230424.txt"});
  // The reference's own token file of the same documents, ids as 16-bit numbers.
  const std::string raw = read_file(data + "/refs/binidx_sample.bin");
  Ids reference;
  for (size_t i = 0; i + 1 < raw.size(); i += 2)
    reference.push_back(static_cast<unsigned char>(raw[i]) | static_cast<unsigned char>(raw[i + 1])
                                                                 << 8);
  for (const char* name : {"/refs/pile_style_sample.jsonl", "/refs/pile_style_sample.jsonl.zst"}) {
#ifndef RWKV_HAVE_ZSTD
    if (std::string(name).ends_with(".zst")) continue;
#endif
    PrepareOptions o{.inputs = {data + name}, .output = dir.file("o.h5")};
    o.piece_bytes = 5000;
    EXPECT_EQ(prepare_tokens(o, tokenizer).documents, 40);
    EXPECT_EQ(tokens(o.output), reference) << name;
  }
}

}  // namespace
}  // namespace rwkv
