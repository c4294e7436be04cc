#include "tools/bench/tokenize.h"

#include <cstdint>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "data/documents.h"
#include "data/tokenizer/tokenizer.h"
#include "kernels/core/error.h"
#include "kernels/core/trace.h"
#include "tools/bench/report.h"

namespace rwkv::bench {
namespace {

std::vector<std::string> read_documents(const std::string& path) {
  const std::string text = read_file(path);
  if (!path.ends_with(".jsonl")) return {text};
  std::vector<std::string> documents;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    if (end > at)
      documents.push_back(text_of_json_line(std::string_view(text).substr(at, end - at), "text"));
    at = end + 1;
  }
  return documents;
}

std::shared_ptr<const Tokenizer> open_tokenizer(const std::string& wanted) {
  const bool name = wanted == "world" || wanted == "neox" || wanted == "bytes";
  return name ? load_tokenizer(wanted) : load_tokenizer("auto", {.file = wanted});
}

template <class F>
Timing time_runs(int repeats, F&& run) {
  run();
  std::vector<double> seconds;
  for (int i = 0; i < repeats; ++i) {
    const double begin = now_seconds();
    run();
    seconds.push_back(now_seconds() - begin);
  }
  return summarize(seconds);
}

}  // namespace

int run_tokenize(const TokenizeOptions& o) {
  RWKV_CHECK(!o.texts.empty(), ConfigError, "rwkv-bench tokenize: give a text with --text");
  std::vector<std::string> wanted = o.tokenizers;
  if (wanted.empty()) {
    wanted = {"world", "bytes"};
    if (has_neox_tokenizer()) wanted.insert(wanted.begin() + 1, "neox");
  }
  Environment env = environment();
  env.threads = 1;
  std::printf("%s\n%-10s %-24s %10s %10s %12s %12s %8s\n", to_string(env).c_str(), "tokenizer",
              "text", "MB", "tokens", "encode MB/s", "decode MB/s", "spread");
  nlohmann::ordered_json record{{"benchmark", "tokenize"}, {"commit", env.commit},
                                {"cpu", env.cpu},          {"threads", 1},
                                {"repeats", o.repeats},    {"rows", nlohmann::json::array()}};
  bool good = true;
  for (const std::string& name : wanted) {
    const auto tokenizer = open_tokenizer(name);
    for (const std::string& path : o.texts) {
      const auto documents = read_documents(path);
      size_t bytes = 0, tokens = 0;
      std::vector<std::vector<int32_t>> ids;
      for (const std::string& d : documents) {
        bytes += d.size();
        ids.push_back(tokenizer->encode(d));
        tokens += ids.back().size();
        const std::string back = tokenizer->decode(ids.back());
        good = good && (back == d || tokenizer->encode(back) == ids.back());
      }
      RWKV_CHECK(bytes > 0, IoError, "reading ", path, ": it has no text");
      std::vector<int32_t> out;
      const Timing encode = time_runs(o.repeats, [&] {
        for (const std::string& d : documents) {
          out.clear();
          tokenizer->encode_to(d, out);
        }
      });
      const Timing decode = time_runs(o.repeats, [&] {
        for (const auto& list : ids) good = !tokenizer->decode(list).empty() && good;
      });
      const double mb = static_cast<double>(bytes) / 1e6;
      const std::string file = path.substr(path.rfind('/') + 1);
      std::printf("%-10s %-24s %10.3f %10zu %12.1f %12.1f %7.0f%%\n",
                  std::string(tokenizer->name()).c_str(), file.c_str(), mb, tokens,
                  mb / encode.median, mb / decode.median, 100 * encode.spread);
      record["rows"].push_back({{"tokenizer", tokenizer->name()},
                                {"text", file},
                                {"documents", documents.size()},
                                {"bytes", bytes},
                                {"tokens", tokens},
                                {"encode_mb_per_s", mb / encode.median},
                                {"encode_best_mb_per_s", mb / encode.minimum},
                                {"spread", encode.spread},
                                {"decode_mb_per_s", mb / decode.median}});
    }
  }
  if (!o.json.empty()) write_file(o.json, record_text(record.dump()));
  if (!good) std::fprintf(stderr, "rwkv-bench: decoding did not give back a text\n");
  return good ? 0 : 1;
}

}  // namespace rwkv::bench
