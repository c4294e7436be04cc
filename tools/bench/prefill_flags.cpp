// Flags of rwkv-bench prefill.
#include <CLI/CLI.hpp>

#include "tools/bench/prefill.h"

namespace rwkv::bench {

void add_prefill_flags(CLI::App* app, PrefillBenchOptions& o) {
  auto* const sizes = app->add_option_group("model");
  sizes->add_option("--random", o.sizes, "random weights: 0.1B, 1.5B or 7.2B, repeatable");
  sizes->add_option("--model", o.models, "a model file, repeatable");
  sizes->require_option(1, 2);
  app->add_option("--tokens", o.tokens, "of a prompt, repeatable (default: 1024 4096)");
  app->add_option("--batch", o.batch, "prompts at a time")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app->add_option("--piece", o.piece, "tokens that are worked on at once, per prompt")
      ->capture_default_str();
  app->add_option("--dtype", o.dtype, "of the weights: f16 or bf16")->capture_default_str();
  app->add_option("--state", o.state, "f16 (with dither) or f32")->capture_default_str();
  app->add_option("--text", o.text, "with --model: the average loss of this file");
  app->add_option("--vocab", o.vocab, "with --model: vocabulary file, or 'bytes'");
  app->add_flag("--stages", o.stages, "where the time goes");
}

}  // namespace rwkv::bench
