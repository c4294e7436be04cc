#include "tools/serve_flags.h"

#include "tools/cli_common.h"

namespace rwkv {

void declare_serve_flags(CLI::App& app, ServeFlags& f) {
  const auto at_least = [](int64_t n) { return CLI::Range(n, int64_t{1} << 40); };
  auto* model = app.add_option("--model", f.model,
                               "model file of any format, checkpoint, or run folder (its newest)");
  auto* random = app.add_option("--random", f.random,
                                "for load tests: random weights of a public size, 0.1B to 13.3B");
  model->excludes(random);
  app.add_flag("--dry-run", f.dry_run, "print what memory it takes, and end");
  app.add_option("--name", f.api.model,
                 "the name that clients see (default: the file's or the run folder's)");
  app.add_option("--host", f.http.host, "address to listen on")->capture_default_str();
  app.add_option("--port", f.http.port, "0: any free one, which is printed")
      ->check(CLI::Range(0, 65535))
      ->capture_default_str();
  app.add_option("--api-key-file", f.key_file,
                 "file whose first line clients must send as a bearer token (else: the "
                 "environment's RWKV_API_KEY; none: no key is asked for)");
  app.add_option("--cors", f.http.cors_origin, "origin of pages that may use the server, or '*'");
  app.add_flag("--page,!--no-page", f.page, "serve the chat page at / (default)");
  app.add_option("--chat-template", f.chat, "world or raven")->capture_default_str();
  app.add_option("--thinking", f.thinking, "plain, on or off, for chats that do not say")
      ->capture_default_str();
  app.add_flag("--ignore-unknown-fields", f.api.ignore_unknown,
               "leave unknown members of requests alone instead of refusing them");
  app.add_option("--slots", f.slots, "sequences that run at the same time")
      ->check(at_least(1))
      ->capture_default_str();
  app.add_option("--queue", f.scheduler.max_waiting, "requests that may wait for slots")
      ->check(at_least(0))
      ->capture_default_str();
  app.add_option("--cache-mib", f.cache_mib, "memory for states of shared prompts; 0: off")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 24))
      ->capture_default_str();
  app.add_option("--prefill-tokens", f.prefill_tokens,
                 "longest piece of a prompt between two decoding steps, a power of two (default: "
                 "64 on the CPU, 2048 on cuda)");
  app.add_flag("--fast-batches", f.fast,
               "larger batches; texts may then differ in rounding with what else is running");
  app.add_option("--max-connections", f.http.max_connections, "beyond them: 429")
      ->check(CLI::Range(int64_t{1}, int64_t{65536}))
      ->capture_default_str();
  app.add_option("--max-body-bytes", f.http.max_body_bytes)
      ->check(at_least(1))
      ->capture_default_str();
  app.add_option("--max-prompt-tokens", f.api.limits.prompt_tokens)
      ->check(at_least(1))
      ->capture_default_str();
  app.add_option("--max-tokens", f.api.limits.max_tokens, "of one answer")
      ->check(at_least(1))
      ->capture_default_str();
  app.add_option("--request-seconds", f.http.request_seconds, "an answer ends after them")
      ->check(at_least(1))
      ->capture_default_str();
  app.add_option("--drain-seconds", f.drain_seconds,
                 "after SIGTERM, SIGINT or SIGHUP running answers have so long")
      ->check(CLI::Range(int64_t{0}, int64_t{86400}))
      ->capture_default_str();
  app.add_option("--vocab", f.vocab, "vocabulary file, for models that carry none");
  add_decode_flags(app, f.device);
  add_threads_flag(app, f.threads);
}

}  // namespace rwkv
