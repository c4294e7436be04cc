#include "tools/data_commands.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <iomanip>
#include <iostream>
#include <vector>

#include "data/binidx.h"
#include "data/dataset.h"
#include "data/io/atomic_file.h"
#include "data/io/seal.h"
#include "data/sampler.h"
#include "data/tokenizer/id_list.h"
#include "kernels/core/error.h"
#include "tools/cli_common.h"

namespace rwkv {
namespace {

std::ostream& row(const char* name) {
  return std::cout << "  " << std::left << std::setw(18) << name;
}

void context_row(int64_t tokens, int64_t ctx) {
  if (ctx > tokens)
    row("context") << ctx << ": longer than the data\n";
  else if (ctx > 0)
    row("context") << ctx << ": " << tokens / ctx << " slots, magic prime "
                   << magic_prime(tokens, ctx) << "\n";
}

std::string read_input(const std::string& path) {
  return path == "-" ? read_stdin() : read_file(path);
}

void write_output(const std::string& path, const std::string& text) {
  if (!path.empty())
    write_file_atomic(path, text);
  else
    RWKV_CHECK(std::fwrite(text.data(), 1, text.size(), stdout) == text.size(), IoError,
               "writing to standard output failed");
}

/// Calls f(line, number from 1) for each line, without its line end.
template <class F>
void for_each_line(std::string_view text, F&& f) {
  size_t number = 1;
  for (size_t at = 0; at < text.size(); ++number) {
    const size_t end = std::min(text.find('\n', at), text.size());
    f(text.substr(at, end - at), number);
    at = end + 1;
  }
}

bool is_hdf5_name(const std::string& path) {
  return path.ends_with(".h5") || path.ends_with(".hdf5");
}

}  // namespace

void data_info(const std::string& path, int64_t ctx) {
  std::cout << path << "\n";
  if (is_binidx(path)) {
    const auto b = BinidxFile::open(path, INT32_MAX);
    row("format") << "binidx, " << b->token_type() << "\n";
    row("tokens") << b->size() << "\n";
    row("documents") << b->documents() << "\n";
    row("tokenizer") << "not recorded in binidx data\n";
    context_row(b->size(), ctx);
    return;
  }
  const auto t = TokenFile::open(path);
  const double n = static_cast<double>(std::max<int64_t>(t->size(), 1));
  const double bytes = static_cast<double>(std::max<int64_t>(t->text_bytes(), 1));
  row("tokens") << t->size() << "\n";
  row("documents") << t->documents() << "\n";
  row("text bytes") << t->text_bytes() << " (" << bytes / n << " per token)\n";
  row("tokenizer") << t->tokenizer_name() << ", sha256 " << t->tokenizer_hash() << "\n";
  row("vocabulary") << t->vocab_size() << "\n";
  const double entropy = t->unigram_entropy();
  row("unigram entropy") << entropy << " nats per token, " << entropy * n / bytes / std::log(2.0)
                         << " bits per byte\n";
  context_row(t->size(), ctx);
  row("created by") << t->created() << "\n";
}

int data_verify(const std::string& path, bool seal) {
  if (is_binidx(path)) {
    const auto b = BinidxFile::open(path, INT32_MAX);
    std::vector<int32_t> ids;
    int32_t largest = 0;
    constexpr int64_t kPiece = 1 << 18;
    for (int64_t at = 0; at < b->size(); at += kPiece) {
      ids.resize(static_cast<size_t>(std::min(kPiece, b->size() - at)));
      b->read(at, ids);
      largest = std::max(largest, *std::ranges::max_element(ids));
    }
    std::cout << path << ": good; the index fits the data, the largest id is " << largest << "\n";
    return 0;
  }
  const bool unsealed = seal && !has_seal(path);
  const auto problems =
      (unsealed ? TokenFile::open_unsealed(path) : TokenFile::open(path))->verify();
  for (const auto& p : problems) std::cout << path << ": " << p << "\n";
  if (problems.empty() && unsealed) TokenFile::seal(path);
  if (problems.empty()) std::cout << path << ": good" << (unsealed ? ", sealed now\n" : "\n");
  return problems.empty() ? 0 : 3;
}

void data_convert(const ConvertOptions& o) {
  const bool from_binidx = is_binidx(o.input);
  const bool named_binidx = o.output.ends_with(".bin") || o.output.ends_with(".idx");
  const bool to_binidx = o.to == "auto" ? named_binidx : o.to == "binidx";
  RWKV_CHECK(o.to != "auto" || named_binidx || is_hdf5_name(o.output), ConfigError, "converting ",
             o.input, ": the name ", o.output,
             " ends neither in .bin or .idx nor in .h5; say --to binidx or --to hdf5");
  if (!from_binidx && !to_binidx) TokenFile::open(o.input);  // or says that it is none
  RWKV_CHECK(from_binidx != to_binidx, ConfigError, "converting ", o.input, " to ", o.output,
             ": both are ", to_binidx ? "binidx data" : "token files",
             "; this converts from the one to the other");
  if (to_binidx) {
    RWKV_CHECK(o.tokenizer.empty() && o.vocab.empty(), ConfigError, "converting ", o.input,
               ": --tokenizer and --vocab are for binidx input; a token file has its own");
    const auto in = TokenFile::open(o.input);
    const std::string prefix = binidx_prefix(o.output);
    {
      ProgressLine progress("tokens");
      write_binidx(*in, prefix, std::ref(progress));
    }
    std::cout << prefix << ".bin, " << prefix << ".idx: " << in->size() << " tokens, "
              << in->documents() << " documents\n";
    return;
  }
  RWKV_CHECK(!o.tokenizer.empty() || !o.vocab.empty(), ConfigError, "converting ", o.input,
             ": binidx data does not say which tokenizer made it, and a token file has to; give "
             "--tokenizer world, neox or bytes, or --vocab FILE");
  const auto tokenizer = load_tokenizer(o.tokenizer.empty() ? "auto" : o.tokenizer,
                                        {.file = o.vocab, .beside = o.input});
  {
    ProgressLine progress("tokens");
    binidx_to_token_file(o.input, o.output, tokenizer, std::ref(progress));
  }
  const auto made = TokenFile::open(o.output);
  std::cout << o.output << ": " << made->size() << " tokens, " << made->documents()
            << " documents, " << made->text_bytes() << " bytes of text\n";
}

namespace {
void keep_input(const TextOptions& o) {
  RWKV_CHECK(o.input == "-" || o.output.empty() || !same_file(o.input, o.output), ConfigError,
             "writing ", o.output, ": that is the input; give another name");
}
}  // namespace

void data_encode(const TextOptions& o) {
  keep_input(o);
  const auto tokenizer = load_tokenizer(o.tokenizer, {.file = o.vocab});
  const std::string text = read_input(o.input);
  std::string out;
  const auto encode = [&](std::string_view part) {
    out += format_ids(tokenizer->encode(part)) + "\n";
  };
  if (o.lines)
    for_each_line(text, [&](std::string_view line, size_t) { encode(line); });
  else
    encode(text);
  write_output(o.output, out);
}

void data_decode(const TextOptions& o) {
  keep_input(o);
  const auto tokenizer = load_tokenizer(o.tokenizer, {.file = o.vocab});
  const std::string text = read_input(o.input);
  const std::string name = o.input == "-" ? "standard input" : o.input;
  std::string out;
  for_each_line(text, [&](std::string_view line, size_t number) {
    out += tokenizer->decode(
        parse_ids(line, tokenizer->vocab_size(), str("decoding ", name, ", line ", number)));
    if (o.lines) out += '\n';
  });
  write_output(o.output, out);
}

}  // namespace rwkv
