// rwkv-generate: continues a text with a trained model. docs/generation.md explains the options.

#include <unistd.h>

#include <cstdio>
#include <optional>

#include "data/io/atomic_file.h"
#include "data/tokenizer/utf8.h"
#include "inference/generate.h"
#include "inference/load.h"
#include "inference/state_file.h"
#include "tools/cli_common.h"
#include "tools/device_flags.h"

namespace {

using namespace rwkv;

struct Flags {
  std::string model, vocab, prompt, prompt_file, state_in, state_out;
  DeviceFlags device;
  std::vector<int32_t> prompt_ids;
  GenerateOptions generate{.sampling = {.top_p = 0.85}};
  bool ids = false, echo = false, no_start_token = false, stream = true, stats = false;
  bool free_numbers = false, ignore_end = false;
  int threads = 0;
};

void declare(CLI::App& app, Flags& f) {
  SamplingOptions& s = f.generate.sampling;
  app.add_option("--model", f.model,
                 "model file of any format, checkpoint, or run folder (its newest)")
      ->required();
  auto* text = app.add_option("--prompt", f.prompt, "text to continue; else standard input");
  auto* file = app.add_option("--prompt-file", f.prompt_file, "file with the text to continue");
  auto* ids = app.add_option("--prompt-ids", f.prompt_ids, "token ids to continue, as they are");
  text->excludes(file)->excludes(ids);
  file->excludes(ids);
  app.add_flag("--no-start-token", f.no_start_token, "do not put id 0 before the prompt");
  app.add_option("--max-tokens", f.generate.max_tokens, "tokens to generate")
      ->capture_default_str();
  app.add_option("--stop", f.generate.stop, "text that ends generation, not printed; repeatable")
      ->allow_extra_args(false);
  app.add_flag("--ignore-end", f.ignore_end, "go on after id 0, the end of a document");
  app.add_option("--temperature", s.temperature, "0: greedy")->capture_default_str();
  app.add_option("--top-p", s.top_p, "acts before the temperature")->capture_default_str();
  app.add_option("--top-k", s.top_k, "0: off")->capture_default_str();
  app.add_option("--min-p", s.min_p, "0: off")->capture_default_str();
  app.add_option("--repetition-penalty", s.repetition_penalty, "1: off")->capture_default_str();
  app.add_option("--presence-penalty", s.presence_penalty, "0: off")->capture_default_str();
  app.add_option("--frequency-penalty", s.frequency_penalty, "0: off")->capture_default_str();
  app.add_option("--penalty-decay", s.penalty_decay, "1: off; the reference uses 0.996")
      ->capture_default_str();
  app.add_flag("--free-numbers", f.free_numbers, "digits and blanks pay no frequency penalty");
  app.add_option("--seed", s.seed, "equal seeds give equal texts")->capture_default_str();
  app.add_flag("--stream,!--no-stream", f.stream, "print text as it is generated (default)");
  app.add_flag("--echo", f.echo, "print the prompt first");
  app.add_flag("--ids", f.ids, "print token ids instead of text");
  app.add_flag("--stats", f.stats, "print timings to standard error");
  app.add_option("--state-in", f.state_in, "start from the state in this file");
  app.add_option("--state-out", f.state_out,
                 "write the state after prompt and output to this file");
  app.add_option("--vocab", f.vocab, kVocabHelp);
  add_decode_flags(app, f.device);
  add_threads_flag(app, f.threads);
}

std::string prompt_text(const CLI::App& app, const Flags& f) {
  if (app.count("--prompt") > 0) return f.prompt;
  if (!f.prompt_file.empty()) return read_file(f.prompt_file);
  return isatty(STDIN_FILENO) != 0 ? "" : read_stdin();
}

bool print(std::string_view text) {
  return std::fwrite(text.data(), 1, text.size(), stdout) == text.size() &&
         std::fflush(stdout) == 0;
}

void print_stats(const Generated& g, size_t activations) {
  const auto rate = [](int64_t n, double seconds) {
    return seconds > 0 ? static_cast<double>(n) / seconds : 0.0;
  };
  std::fprintf(stderr,
               "prefill %lld tokens in %.3f s, %.1f tokens/s; decode %lld tokens in %.3f s, %.1f "
               "tokens/s; ended by %s; %s of activations\n",
               static_cast<long long>(g.prompt_tokens), g.prefill_seconds,
               rate(g.prompt_tokens, g.prefill_seconds), static_cast<long long>(g.decoded_tokens),
               g.decode_seconds, rate(g.decoded_tokens, g.decode_seconds),
               std::string(finish_reason_name(g.finish)).c_str(),
               format_bytes(activations).c_str());
}

int run(const CLI::App& app, Flags& f) {
  f.generate.sampling.check();
  use_threads(f.threads);
  if (!f.state_out.empty()) AtomicFile{f.state_out};  // a wrong place is found before the work
  check_device(f.device);
  const std::string path = resolve_model(f.model);
  const bool with_state = !f.state_in.empty() || !f.state_out.empty();
  ServingOptions options = serving_options(f.device, ModelFile::open(path).config());
  options.runner.slots = 1;
  options.exact = false;  // the kernel for one sequence: nobody else is there
  // State files are read and written by the general kernels.
  if (with_state && options.decode_kernels) options = {.engine = engine_options(f.device)};
  const LoadedModel loaded = load_model(path, f.vocab);
  const bool text_in = f.prompt_ids.empty();
  if (text_in || !f.ids || f.free_numbers) loaded.need_tokenizer();
  const Tokenizer* tokenizer = loaded.tokenizer.get();
  std::vector<int32_t> prompt = f.prompt_ids;
  std::string echoed;
  if (text_in) {
    const std::string text = prompt_text(app, f);
    // A state has begun already.
    prompt = prompt_ids(*tokenizer, text, !f.no_start_token && f.state_in.empty());
    echoed = to_valid_utf8(text);
  } else if (tokenizer != nullptr) {
    echoed = to_valid_utf8(tokenizer->decode(prompt));
  }
  if (f.free_numbers) f.generate.sampling.uncounted_tokens = number_tokens(*tokenizer);
  f.generate.stop_at_end_of_document = !f.ignore_end;

  std::optional<Engine> engine;
  std::unique_ptr<Serving> serving;
  if (options.decode_kernels)
    serving = make_serving(*loaded.model, *loaded.weights, options);
  else
    engine.emplace(*loaded.model, *loaded.weights, options.engine);
  std::optional<RnnState> state;
  int64_t seen = 0;
  if (with_state) state.emplace(engine->new_state());
  if (!f.state_in.empty()) seen = read_state_file(f.state_in, *engine, *state);
  if (state) f.generate.state = &*state;
  if (f.echo && !f.ids) print(echoed);
  TextSink on_text;
  IdSink on_id;
  if (f.ids)
    on_id = [](int32_t id) { return print(str(id, "\n")); };
  else if (f.stream)
    on_text = print;
  const Generated g =
      serving ? generate(serving->runner(), tokenizer, prompt, f.generate, on_text, on_id)
              : generate(*engine, tokenizer, prompt, f.generate, on_text, on_id);
  if (!f.ids && !f.stream) print(g.text);
  if (!f.ids && isatty(STDOUT_FILENO) != 0) print("\n");
  if (!f.state_out.empty())
    write_state_file(f.state_out, *engine, *state, seen + std::ssize(prompt) + std::ssize(g.ids));
  if (f.stats) print_stats(g, serving ? serving->runner().workspace_bytes() : engine->plan_bytes());
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Continues a text with a trained model.", "rwkv-generate");
  Flags flags;
  declare(app, flags);
  return run_program(app, argc, argv, [&] { return run(app, flags); });
}
