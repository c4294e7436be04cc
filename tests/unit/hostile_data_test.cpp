// Damaged and hostile files of tokens, texts and vocabularies, see hostile.h.

#include <filesystem>

#include "data/binidx.h"
#include "data/dataset.h"
#include "data/documents.h"
#include "data/io/seal.h"
#include "tests/unit/data_test_util.h"
#include "tests/unit/hostile.h"

namespace rwkv {
namespace {

using test::attempt;
using test::put_file;
using test::Victim;

class HostileData : public testing::TestWithParam<std::string> {
 protected:
  const test::TempDir dir_;
  const std::shared_ptr<const Tokenizer> world_ =
      make_tokenizer("world", test::tiny_world_vocabulary());

  void SetUp() override {
    TokenFileWriter out(dir_.file("t.h5"), world_, "{}");
    for (int32_t d = 1; d <= 30; ++d) {
      std::vector<int32_t> ids(static_cast<size_t>(d), d);
      ids.push_back(kEndOfDocument);
      out.add_document(ids);
    }
    out.finish();
    write_binidx(*TokenFile::open(dir_.file("t.h5")), dir_.file("b"));
    // The body without its seal and without the mark that it had one.
    std::filesystem::copy(dir_.file("t.h5"), dir_.file("bare.h5"));
    const std::string bytes = read_file(dir_.file("bare.h5"));
    uint64_t body = 0;
    std::memcpy(&body, &bytes[bytes.size() - 28], 8);
    put_file(dir_.file("bare.h5"), bytes.substr(0, body));

    put_file(dir_.file("world.txt"), test::tiny_world_vocabulary());
    std::filesystem::copy(std::string(RWKV_SOURCE_DIR) + "/tests/unit/tiny_neox.json",
                          dir_.file("neox.json"));
    std::string lines;
    for (int i = 0; i < 40; ++i)
      lines += "{\"text\": \"line \\u00e9 \\ud83d\\ude80 " + std::to_string(i) +
               "\\n\", \"meta\": {\"pile_set_name\": \"x\"}}\n";
    put_file(dir_.file("t.jsonl"), lines);
  }

  /// Everything of a token source, in pieces.
  static void read_all(const TokenSource& tokens) {
    std::vector<int32_t> ids;
    for (int64_t at = 0; at < tokens.size(); at += 4096) {
      ids.resize(static_cast<size_t>(std::min<int64_t>(4096, tokens.size() - at)));
      tokens.read(at, ids);
    }
  }

  Victim victim(const std::string& name) const {
    const auto of = [&](const char* file, const std::function<void(const std::string&)>& open,
                        bool cuts_show = true) {
      const std::string path = dir_.file(file);
      return Victim{name, path,     [=] { return attempt("opening", [&] { open(path); }); },
                    0,    SIZE_MAX, cuts_show};
    };
    const auto binidx = [](const std::string& path) {
      const auto b = BinidxFile::open(path, 300);
      read_all(*b);
      int64_t n = 0;
      b->for_each_document([&](int64_t tokens) { n += tokens; });
      EXPECT_EQ(n, b->size());
    };
    const auto token_file = [](const std::string& path) {
      const auto t = TokenFile::open(path);
      t->verify();
      t->tokenizer();
      read_all(*t);
    };
    const auto vocabulary = [](const std::string& path) {
      const auto t = load_tokenizer("auto", {.file = path, .beside = ""});
      const std::string text = "the 'quoted' \xc3\xa9 \xff\xfe there  12";
      for (const int32_t id : t->encode(text)) t->token_bytes(id);
      t->safe_cut(text, 0);
    };
    if (name == "binidx_index") return of("b.idx", binidx);
    if (name == "binidx_tokens") return of("b.bin", binidx);
    if (name == "token_file") return of("t.h5", token_file);
    if (name == "token_file_without_seal")
      return of("bare.h5", [](const std::string& path) {
        const auto t = TokenFile::open_unsealed(path);
        RWKV_CHECK(t->verify().empty(), IoError, path, " has problems");
        read_all(*t);
      });
    if (name == "world_vocabulary") return of("world.txt", vocabulary, false);
    if (name == "neox_vocabulary") return of("neox.json", vocabulary);
    if (name == "json_lines")
      return of(
          "t.jsonl",
          [this](const std::string& path) {
            WorkReader reader(find_inputs({path}, TextFormat::kAuto), world_, "", 500);
            WorkItem item;
            std::vector<int32_t> ids;
            while (reader.next(item)) {
              size_t at = 0;
              while (at < item.raw.size()) {
                const size_t end = std::min(item.raw.find('\n', at), item.raw.size());
                const std::string_view line = std::string_view(item.raw).substr(at, end - at);
                if (!line.empty()) world_->encode_to(text_of_json_line(line, "text"), ids);
                at = end + 1;
              }
            }
          },
          false);
    throw InternalError("no victim " + name);
  }
};

std::vector<std::string> formats() {
  std::vector<std::string> all = {"binidx_index",     "binidx_tokens",
                                  "token_file",       "token_file_without_seal",
                                  "world_vocabulary", "json_lines"};
  if (has_neox_tokenizer()) all.push_back("neox_vocabulary");
  return all;
}

INSTANTIATE_TEST_SUITE_P(Format, HostileData, testing::ValuesIn(formats()),
                         [](const auto& format) { return format.param; });

TEST_P(HostileData, TruncatedAtEveryPercent) {
  test::truncate_everywhere(victim(GetParam()));
}

TEST_P(HostileData, Mutated) {
  test::mutate_often(victim(GetParam()));
}

}  // namespace
}  // namespace rwkv
