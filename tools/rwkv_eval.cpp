// rwkv-eval: measures a trained model. docs/generation.md describes the subcommands.

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>

#include "data/binidx.h"
#include "data/dataset.h"
#include "data/io/json_depth.h"
#include "inference/load.h"
#include "tools/bench/report.h"
#include "tools/cli_common.h"
#include "tools/device_flags.h"
#include "tools/eval_report.h"
#include "tools/wkv_compare_report.h"

namespace {

using namespace rwkv;

struct Flags {
  std::string model, vocab, file;
  DeviceFlags device;
  bool json = false, text = false, last = false;
  int64_t ctx = 1024, max_tokens = 0, limit = 0, batch = 0, errors = 0;
  int threads = 0;
  WkvCompareOptions compare{.variants = {}};
  std::string plot, json_file;
};

/// A model that is ready to run.
struct Loaded {
  EngineOptions options;
  LoadedModel file;
  Engine engine;
  explicit Loaded(const Flags& f)
      : options(engine_options(f.device)),
        file(load_model(resolve_model(f.model), f.vocab)),
        engine(*file.model, *file.weights, options) {}

  bool cuda() const { return options.device == Device::kCuda; }
  /// --batch of lambada and tasks.
  int64_t texts(const Flags& f) const { return f.batch > 0 ? f.batch : cuda() ? 64 : 16; }
  /// --batch of loss: a GPU wants some 16384 tokens at a time.
  int64_t windows(const Flags& f) const {
    if (f.batch > 0) return f.batch;
    return cuda() ? std::clamp<int64_t>(16384 / std::min(f.ctx, options.prefill_tokens), 1, 64) : 1;
  }
};

void print(const Flags& f, const Report& report) {
  std::puts((f.json ? report.json : report.text).c_str());
}

/// A token file, or with --text a text file. Refuses tokens of another vocabulary.
std::shared_ptr<const TokenSource> open_tokens(const Flags& f, const LoadedModel& m) {
  if (f.text) {
    std::vector<int32_t> ids{kEndOfDocument};
    m.need_tokenizer().encode_to(read_file(f.file), ids);
    return std::make_shared<MemoryTokens>(std::move(ids), m.need_tokenizer().vocab_size());
  }
  // binidx data does not say what made it: any id that the model has may occur.
  if (is_binidx(f.file))
    return BinidxFile::open(f.file, static_cast<int32_t>(m.model->config().vocab_size));
  auto tokens = TokenFile::open(f.file);
  RWKV_CHECK(m.tokenizer == nullptr || m.tokenizer->hash() == tokens->tokenizer_hash(), IoError,
             f.file, " was made with tokenizer ", tokens->tokenizer_name(), " (",
             tokens->tokenizer_hash(), "), ", f.model, " was trained with ", m.tokenizer->name(),
             " (", m.tokenizer->hash(), "); tokenize the text again with the model's");
  RWKV_CHECK(m.model->config().vocab_size >= tokens->vocab_size(), IoError, f.file,
             " was made with tokenizer ", tokens->tokenizer_name(), " of ", tokens->vocab_size(),
             " ids, ", f.model, " has ", m.model->config().vocab_size,
             "; tokenize the text with the model's tokenizer");
  return tokens;
}

void run_loss(const Flags& f) {
  Loaded m(f);
  const auto tokens = open_tokens(f, m.file);
  int64_t count = tokens->size();
  if (f.max_tokens > 0) count = std::min(count, f.max_tokens + 1);
  const auto read = [&](int64_t begin, std::span<int32_t> out) { tokens->read(begin, out); };
  ProgressLine progress("loss, tokens");
  const LossSum sum = evaluate_loss(m.engine, count, read, f.ctx, m.file.tokenizer.get(),
                                    std::ref(progress), m.windows(f));
  print(f, loss_report(sum, f.ctx));
}

void run_wkv_compare(Flags f) {
  bench::check_outputs(f.json_file, f.plot);
  const EngineOptions options = engine_options(f.device);
  const LoadedModel file = load_model(resolve_model(f.model), f.vocab);
  if (f.compare.variants.empty() && file.model->config().architecture == "rwkv4")
    f.compare.variants = {"serial", "scan"};  // a binary16 state is there for RWKV-7 only
  if (f.compare.variants.empty()) f.compare.variants = WkvCompareOptions().variants;
  const auto tokens = open_tokens(f, file);
  int64_t count = tokens->size();
  if (f.max_tokens > 0) count = std::min(count, f.max_tokens + 1);
  const auto read = [&](int64_t begin, std::span<int32_t> out) { tokens->read(begin, out); };
  ProgressLine progress("tokens");
  const WkvComparison result =
      compare_wkv(*file.model, *file.weights, options, count, read, f.compare, std::ref(progress));
  const Report report = wkv_compare_report(result);
  print(f, report);
  if (!f.json_file.empty()) bench::write_file(f.json_file, report.json + "\n");
  if (!f.plot.empty()) plot_wkv_comparison(f.plot, result);
}

void run_lambada(const Flags& f) {
  Loaded m(f);
  std::vector<std::string> texts = read_lambada(f.file);
  if (f.limit > 0 && f.limit < std::ssize(texts)) texts.resize(static_cast<size_t>(f.limit));
  ProgressLine progress("LAMBADA, texts");
  print(f, lambada_report(evaluate_lambada(m.engine, m.file.need_tokenizer(), texts, m.texts(f),
                                           std::ref(progress))));
}

void run_tasks(const Flags& f) {
  Loaded m(f);
  std::vector<TaskProblem> problems = read_tasks(f.file);
  std::map<std::string, int64_t> seen;
  if (f.limit > 0)
    std::erase_if(problems, [&](const TaskProblem& p) { return ++seen[p.task] > f.limit; });
  ProgressLine progress("tasks, problems");
  const auto outcomes =
      evaluate_tasks(m.engine, m.file.need_tokenizer(), problems, m.texts(f), std::ref(progress));
  print(f, tasks_report(problems, outcomes, f.errors));
}

/// The token ids of a JSON array; IoError, begun with `where`, for anything else.
std::vector<int32_t> parse_ids(const std::string& line, const std::string& where, int64_t vocab) {
  RWKV_CHECK(!json_deeper_than(line), IoError, where, ": nested too deep");
  const auto json = nlohmann::json::parse(line, nullptr, false);
  RWKV_CHECK(json.is_array() && !json.empty(), IoError, where,
             ": expected a JSON array of at least one token id, like [1,2,3]; found ",
             line.substr(0, 40));
  std::vector<int32_t> ids;
  for (const auto& id : json) {
    // Numbers above 2^63 are unsigned in the parser; get<int64_t> would wrap them.
    const bool fits = id.is_number_integer() && id >= 0 && id < vocab;
    RWKV_CHECK(fits, IoError, where, ": ", id.dump().substr(0, 40),
               " is no token id: integers from 0 to ", vocab - 1, " are");
    ids.push_back(id.get<int32_t>());
  }
  return ids;
}

void run_logits(const Flags& f) {
  Loaded m(f);
  const bool standard_input = f.file.empty() || f.file == "-";
  std::ifstream file;
  if (!standard_input) file.open(f.file);
  std::istream& in = standard_input ? std::cin : file;
  RWKV_CHECK(in.good(), IoError, "opening ", f.file, ": no such file, or not readable");
  const auto v = static_cast<size_t>(m.file.model->config().vocab_size);
  const std::string name = standard_input ? "standard input" : f.file;
  std::string line;
  bool any = false;
  for (int64_t n = 1; std::getline(in, line); ++n) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    any = true;
    const std::vector<int32_t> ids =
        parse_ids(line, str("reading ", name, ", line ", n), int64_t(v));
    RnnState state = m.engine.new_state();
    std::string out;
    if (f.last) {
      append_json_row(out, {m.engine.prefill(state, ids).f32(), v});
    } else {
      m.engine.all_logits(state, ids, [&](int64_t, TensorView logits) {
        for (int64_t t = 0; t < logits.dim(1); ++t) {
          out += out.empty() ? '[' : ',';
          append_json_row(out, {logits.f32() + static_cast<size_t>(t) * v, v});
        }
      });
      out += ']';
    }
    std::puts(out.c_str());
  }
  RWKV_CHECK(!in.bad(), IoError, "reading ", name, ": read error; is it a folder?");
  RWKV_CHECK(any, IoError, "reading ", name, ": there are no token ids in it");
}

CLI::App* declare(CLI::App& app, Flags& f, const char* name, const char* what, const char* input) {
  CLI::App* sub = app.add_subcommand(name, what);
  sub->add_option("--model", f.model,
                  "model file of any format, checkpoint, or run folder (its newest)")
      ->required();
  auto* file = sub->add_option("FILE", f.file, input);
  if (sub->get_name() != "logits") file->required();
  sub->add_option("--vocab", f.vocab, kVocabHelp);
  add_device_flags(*sub, f.device);
  add_threads_flag(*sub, f.threads);
  return sub;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Measures a trained model.", "rwkv-eval");
  app.require_subcommand(1);
  Flags f;
  const auto batched = [&](CLI::App* s, const char* limit) {
    s->add_option("--batch", f.batch,
                  "texts of equal length to run together (default: 16, on cuda 64)")
        ->check(CLI::Range(1, 4096));
    s->add_option("--limit", f.limit, limit)->check(at_least(0));
  };
  auto* loss = declare(app, f, "loss", "Loss, perplexity, bits per byte of tokens",
                       "token file or binidx data");
  loss->add_option("--ctx", f.ctx, "tokens predicted from one fresh state")
      ->check(at_least(1))
      ->capture_default_str();
  loss->add_option("--max-tokens", f.max_tokens, "stop after so many predictions (0: all)")
      ->check(at_least(0));
  loss->add_option("--batch", f.batch,
                   "windows to run together (default: 1, on cuda so many as hold 16384 tokens)")
      ->check(CLI::Range(1, 4096));
  loss->add_flag("--text", f.text, "FILE is plain text: one document");
  auto* compare = declare(app, f, "wkv-compare",
                          "Loss at several context lengths under several WKV variants: what a "
                          "binary16 state costs",
                          "token file or binidx data");
  compare->add_option(
      "--variant", f.compare.variants,
      "WKV variants, the first is what the others are compared with (default: serial "
      "fp16-plain fp16-dithered; RWKV-4: serial scan)");
  compare->add_option("--ctx", f.compare.contexts, "context lengths")->capture_default_str();
  compare->add_option("--max-tokens", f.max_tokens, "use so many predictions (0: all)")
      ->check(at_least(0));
  compare->add_option("--batch-tokens", f.compare.batch_tokens, "about so many tokens together")
      ->check(at_least(1))
      ->capture_default_str();
  compare->add_flag("--text", f.text, "FILE is plain text: one document");
  compare->add_option("--json-file", f.json_file, "also write the JSON object to this file");
  compare->add_option("--plot", f.plot, "draw the difference by position: FILE.gp or FILE.png");
  auto* lambada =
      declare(app, f, "lambada", "LAMBADA accuracy and perplexity", "lines {\"text\": ...}");
  batched(lambada, "texts to use (0: all)");
  auto* tasks = declare(app, f, "tasks", "Exact-match accuracy by generation",
                        "lines {\"task\", \"prompt\", \"answer\"}");
  batched(tasks, "problems per task (0: all)");
  tasks->add_option("--errors", f.errors, "wrong outputs to show per task");
  auto* logits = declare(app, f, "logits", "Logits of token ids, as JSON lines",
                         "one JSON array of ids per line (default: standard input)");
  logits->add_flag("--last", f.last, "only those after the last token");
  for (CLI::App* s : {loss, compare, lambada, tasks})
    s->add_flag("--json", f.json, "one JSON object on stdout");
  return run_program(app, argc, argv, [&] {
    use_threads(f.threads);
    if (*loss) run_loss(f);
    if (*compare) run_wkv_compare(f);
    if (*lambada) run_lambada(f);
    if (*tasks) run_tasks(f);
    if (*logits) run_logits(f);
    return 0;
  });
}
