// Flags of rwkv-bench decode.
#include <CLI/CLI.hpp>

#include "tools/bench/decode.h"

namespace rwkv::bench {

void add_decode_flags(CLI::App* app, DecodeBenchOptions& o) {
  app->add_option("--random", o.sizes, "0.1B, 1.5B or 7.2B, repeatable")->required();
  app->add_option("--batch", o.batches, "sequences at a time, repeatable (default: 1)");
  app->add_option("--dtype", o.dtype, "of the weights: f16, bf16 or f32")->capture_default_str();
  app->add_option("--state", o.state, "f16 (with dither) or f32")->capture_default_str();
  app->add_flag("--no-skip", o.no_skip,
                "read rows of the value matrix whose activation is zero, too");
  app->add_flag("--stages", o.stages, "where the time of a token goes");
  app->add_option("--tokens", o.tokens, "tokens in a row per timed run")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
  app->add_option("--splits", o.splits, "parts of the value matrix' rows; 0: by size");
  app->add_option("--slice", o.slice, "columns of its slices; 0: by size");
  app->add_option("--nap", o.nap, "ns between looks for others' results; -1: by size");
  app->add_option("--ring", o.ring, "pieces of weights ahead; 0: what fits");
  app->add_option("--flight", o.flight,
                  "of them, that are on their way at a time; 0: all; -1: by size");
  app->add_flag("--exact", o.exact,
                "batch 1: also by the kernels of batches, which give the same bits for any batch");
  app->add_flag("--vendor", o.vendor, "batches: cuBLASLt's products instead of our own");
  app->add_option("--plans", o.plans, "ways to cut a product that are tried")
      ->capture_default_str();
  app->add_flag("--plan-times", o.plan_times, "what was tried, and how long it took");
  app->add_option("--stream-value", o.stream_value,
                  "the value matrix comes through the stream, all of it: 1 or 0; -1: by size");
}

}  // namespace rwkv::bench
