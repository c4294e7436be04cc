// rwkv-generate: continues a text with a trained model, or holds a conversation.
// docs/generation.md explains the options.

#include <unistd.h>

#include <cstdio>
#include <optional>

#include "data/io/atomic_file.h"
#include "data/tokenizer/utf8.h"
#include "inference/generate.h"
#include "inference/load.h"
#include "inference/state_file.h"
#include "tools/chat_console.h"
#include "tools/cli_common.h"
#include "tools/device_flags.h"
#include "tools/generate_flags.h"

namespace {

using namespace rwkv;

using Flags = GenerateFlags;

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

int chat(const CLI::App& app, const Flags& f) {
  ChatOptions chat = chat_options(app, f);
  check_device(f.device);
  const std::string path = resolve_model(f.model);
  ServingOptions options = serving_options(f.device, ModelFile::open(path).config());
  options.runner.slots = ChatSession::kSlots;
  options.exact = false;
  const LoadedModel loaded = load_model(path, f.vocab);
  const Tokenizer& tokenizer = loaded.need_tokenizer();
  if (f.free_numbers) chat.sampling.uncounted_tokens = number_tokens(tokenizer);
  const auto serving = make_serving(*loaded.model, *loaded.weights, options);
  ChatSession session(serving->runner(), tokenizer, std::move(chat));
  if (!f.state_in.empty()) session.load(f.state_in);
  run_chat(session, {.stats = f.stats});
  if (f.state_out.empty()) return 0;
  // Nobody wants an empty state, least of all in place of an older one.
  if (session.tokens() > 0)
    session.save(f.state_out);
  else
    std::fprintf(stderr, "rwkv-generate: nothing was said, so %s is not written\n",
                 f.state_out.c_str());
  return 0;
}

int run(const CLI::App& app, Flags& f) {
  f.generate.sampling.check();
  use_threads(f.threads);
  if (!f.state_out.empty()) AtomicFile{f.state_out};  // a wrong place is found before the work
  if (f.chat) return chat(app, f);
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
  CLI::App app("Continues a text with a trained model, or holds a conversation.", "rwkv-generate");
  Flags flags;
  declare_generate_flags(app, flags);
  return run_program(app, argc, argv, [&] { return run(app, flags); });
}
