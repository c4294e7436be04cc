// rwkv-data: makes token data, converts it and tells what is in it.

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <iostream>

#include "data/io/atomic_file.h"
#include "data/prepare.h"
#include "data/tasks.h"
#include "kernels/core/error.h"
#include "tools/cli_common.h"
#include "tools/data_commands.h"

namespace {

using namespace rwkv;

void show_progress(const PrepareProgress& p) {
  static const bool terminal = ::isatty(STDERR_FILENO) == 1;
  static double last_line = 0;
  if (!terminal && !p.finished && p.seconds - last_line < 5) return;
  last_line = p.seconds;
  const double s = std::max(p.seconds, 1e-3), done = static_cast<double>(p.input_bytes);
  std::string text = str(p.documents, " documents, ", p.tokens, " tokens, ");
  char rate[96];
  std::snprintf(rate, sizeof rate, "%.1f MB/s, %.0f tokens/s, %.0f s",
                static_cast<double>(p.text_bytes) / s / 1e6, static_cast<double>(p.tokens) / s, s);
  text += rate;
  if (p.input_total > 0 && p.input_bytes > 0 && !p.finished) {
    const double total = static_cast<double>(p.input_total);
    std::snprintf(rate, sizeof rate, ", %.0f %%, %.0f s left", 100 * done / total,
                  s * (total - done) / done);
    text += rate;
  }
  std::fprintf(stderr, terminal ? "\r\x1b[K%s%s" : "%s%s\n", text.c_str(),
               terminal && p.finished ? "\n" : "");
}

int tokenize(PrepareOptions o, const std::string& tokenizer, const std::string& vocab) {
  o.progress = show_progress;
  o.report_bad_line = [](const std::string& line) {
    // On a terminal the line of progress is above.
    const char* before = ::isatty(STDERR_FILENO) == 1 ? "\n" : "";
    std::fprintf(stderr, "%sskipped %s\n", before, line.c_str());
  };
  const auto r = prepare_tokens(o, load_tokenizer(tokenizer, {.file = vocab, .beside = o.output}));
  std::cout << o.output << ": " << r.tokens << " tokens, " << r.documents << " documents, "
            << r.text_bytes << " bytes of text\n";
  if (!r.valid_output.empty())
    std::cout << r.valid_output << ": " << r.valid_tokens << " tokens, " << r.valid_documents
              << " documents\n";
  if (r.bad_lines > 0) std::cout << r.bad_lines << " malformed lines skipped\n";
  return 0;
}

struct TaskOptions {
  std::string output, valid, problems, mix = "reverse=4,recall=4,add=1,permute=1";
  int64_t tokens = 4'000'000, valid_tokens = 20'000, per_task = 250;
  uint64_t seed = 1;
};

void make_tasks(const TaskOptions& o) {
  RWKV_CHECK(!o.output.empty() || !o.valid.empty() || !o.problems.empty(), ConfigError,
             "making tasks: nothing to write; give -o, --valid or --problems");
  for (const auto& [a, b] :
       {std::pair{&o.output, &o.valid}, {&o.output, &o.problems}, {&o.valid, &o.problems}})
    RWKV_CHECK(a->empty() || b->empty() || !same_file(*a, *b), ConfigError,
               "making tasks: two of the outputs have the name ", *a, "; give each its own");
  const TaskMix mix = parse_task_mix(o.mix);
  const auto tokens = [&](const std::string& path, TaskSplit split, int64_t count) {
    if (path.empty()) return;
    const int64_t n = write_task_tokens(path, TaskGenerator(o.seed, split, mix), o.seed, count);
    std::cout << path << ": " << n << " problems\n";
  };
  tokens(o.output, TaskSplit::kTrain, o.tokens);
  tokens(o.valid, TaskSplit::kHeldOut, o.valid_tokens);
  if (o.problems.empty()) return;
  const int64_t n = write_task_problems(o.problems, o.seed, TaskSplit::kHeldOut, mix, o.per_task);
  std::cout << o.problems << ": " << n << " held-out problems\n";
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Token files for training: make, inspect, check", "rwkv-data");
  app.require_subcommand(1);

  PrepareOptions prepare;
  std::string tokenizer = "auto", vocab, format = "auto", on_error = "stop", path;
  bool no_end = false, seal = false;
  auto* t = app.add_subcommand("tokenize", "Text, folders, JSON lines (also .zst) to a token file");
  t->add_option("inputs", prepare.inputs, "Files, folders, or - for standard input")->required();
  t->add_option("-o,--output", prepare.output, "Token file to write")->required();
  t->add_option("--tokenizer", tokenizer, "world, neox, bytes; auto: by --vocab, else world")
      ->capture_default_str();
  t->add_option("--vocab", vocab, "Vocabulary file: World's text, or NeoX' JSON");
  t->add_option("--format", format, "auto, text or jsonl")->capture_default_str();
  t->add_option("--field", prepare.field, "JSON member with the text")->capture_default_str();
  t->add_option("--split-at", prepare.split_at, "Separator of documents in plain text");
  t->add_flag("--no-end-of-document", no_end, "Do not put id 0 after each document");
  t->add_option("--valid-fraction", prepare.valid_fraction, "Share split off for validation");
  t->add_option("--valid", prepare.valid_output, "Validation file; default OUTPUT.valid.h5");
  t->add_option("--on-error", on_error, "Malformed lines: stop or skip")
      ->check(CLI::IsMember({"stop", "skip"}))
      ->capture_default_str();
  add_threads_flag(*t, prepare.threads);

  int64_t ctx = 0;
  auto* i = app.add_subcommand("info", "What a token file or binidx data holds");
  i->add_option("file", path)->required();
  i->add_option("--ctx", ctx, "Context length: also print the magic prime")->check(at_least(1));
  auto* v = app.add_subcommand("verify", "Read a token file or binidx data and check everything");
  v->add_option("file", path)->required();
  v->add_flag("--seal", seal, "Seal a good token file that has no seal (other programs' files)");

  ConvertOptions convert;
  auto* c = app.add_subcommand("convert", "Token file to binidx (NAME.bin, NAME.idx) and back");
  c->add_option("input", convert.input)->required();
  c->add_option("output", convert.output)->required();
  c->add_option("--to", convert.to, "hdf5 or binidx; auto: by the output's name")
      ->check(CLI::IsMember({"auto", "hdf5", "binidx"}))
      ->capture_default_str();
  c->add_option("--tokenizer", convert.tokenizer, "binidx input: world, neox or bytes made it");
  c->add_option("--vocab", convert.vocab, "binidx input: the tokenizer's vocabulary file");

  TextOptions text;
  const auto text_command = [&](const char* name, const char* help, const char* lines_help) {
    auto* command = app.add_subcommand(name, help);
    command->add_option("input", text.input, "File, or - for standard input")
        ->capture_default_str();
    command->add_option("-o,--output", text.output, "File to write; default: standard output");
    command
        ->add_option("--tokenizer", text.tokenizer,
                     "world, neox, bytes; auto: by --vocab, else world")
        ->capture_default_str();
    command->add_option("--vocab", text.vocab, "Vocabulary file: World's text, or NeoX' JSON");
    command->add_flag("--lines", text.lines, lines_help);
    return command;
  };
  auto* e = text_command("encode", "Text (any bytes) to token ids, a JSON array",
                         "Each line is a text of its own and gives an array of its own");
  auto* d = text_command("decode", "Token ids, one array per line, to their text",
                         "A line end after the text of each array");

  TaskOptions tasks;
  auto* m = app.add_subcommand("make-tasks", "The embedded corpus: problems with answers");
  m->add_option("-o,--output", tasks.output, "Training token file");
  m->add_option("--tokens", tasks.tokens, "Its size")->capture_default_str();
  m->add_option("--valid", tasks.valid, "Token file of held-out problems");
  m->add_option("--valid-tokens", tasks.valid_tokens, "Its size")->capture_default_str();
  m->add_option("--problems", tasks.problems, "JSON lines of held-out problems");
  m->add_option("--per-task", tasks.per_task, "How many of each task")->capture_default_str();
  m->add_option("--mix", tasks.mix, "Shares of the tasks")->capture_default_str();
  m->add_option("--seed", tasks.seed)->capture_default_str();

  return run_program(app, argc, argv, [&] {
    if (t->parsed()) {
      prepare.format = parse_text_format(format);
      prepare.end_of_document = !no_end;
      prepare.skip_bad_lines = on_error == "skip";
      return tokenize(prepare, tokenizer, vocab);
    }
    if (i->parsed()) data_info(path, ctx);
    if (v->parsed()) return data_verify(path, seal);
    if (c->parsed()) data_convert(convert);
    if (e->parsed()) data_encode(text);
    if (d->parsed()) data_decode(text);
    if (m->parsed()) make_tasks(tasks);
    return 0;
  });
}
