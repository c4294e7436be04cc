// rwkv-bench: measures the parts of the project. Parses and dispatches; see tools/bench/.
#include <CLI/CLI.hpp>
#include <cstdio>

#include "kernels/core/error.h"
#include "tools/bench/bench.h"
#include "tools/bench/step.h"

namespace {

void add_common(CLI::App* app, rwkv::bench::CommonOptions& o) {
  app->add_option("--threads", o.threads, "threads (default: all this process may use)")
      ->check(CLI::Range(1, 4096));
  app->add_option("--repeats", o.repeats, "timed runs per row")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
  app->add_option("--json", o.json, "also write the rows to this file");
  app->add_option("--plot", o.plot, "write a gnuplot script (FILE.gp) or a picture (FILE.png)");
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Benchmarks. Results are checked against a double-precision reference first.");
  app.require_subcommand(1);

  rwkv::bench::WkvOptions wkv;
  CLI::App* wkv_app = app.add_subcommand("wkv", "WKV variants, forward and backward");
  add_common(wkv_app, wkv);
  wkv_app->add_flag("--list", wkv.list, "list all variants, and which fit, without timing");
  wkv_app->add_option("--variant", wkv.variants,
                      "variant or family to time, repeatable (default: all that fit)");
  wkv_app->add_option("--shape", wkv.shapes,
                      "B,T,H,N: batch, tokens, heads, head size; repeatable; T = 1 decodes");

  rwkv::bench::StepOptions step;
  step.repeats = 5;
  CLI::App* step_app = app.add_subcommand("step", "one training step, taken apart");
  add_common(step_app, step);
  step_app->add_option("--layers", step.layers, "layers")->capture_default_str();
  step_app->add_option("--width", step.width, "channels")->capture_default_str();
  step_app->add_option("--vocab", step.vocab, "vocabulary")->capture_default_str();
  step_app->add_option("--head-size", step.head_size, "32, 64 or 128")->capture_default_str();
  step_app->add_option("--batch", step.batch, "sequences")->capture_default_str();
  step_app->add_option("--tokens", step.tokens, "tokens per sequence")->capture_default_str();
  step_app->add_option("--wkv", step.wkv, "WKV variant")->capture_default_str();
  step_app->add_option("--grad-checkpointing", step.grad_checkpointing, "none or block")
      ->capture_default_str();

  try {
    app.parse(argc, argv);
    if (wkv_app->parsed()) return rwkv::bench::run_wkv(wkv);
    if (step_app->parsed()) return rwkv::bench::run_step(step);
    return 0;
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? 0 : 2;
  } catch (const rwkv::Error& e) {
    std::fprintf(stderr, "rwkv-bench: %s\n", e.what());
    return e.exit_code();
  } catch (const std::exception& e) {
    std::fprintf(stderr, "rwkv-bench: %s\n", e.what());
    return 1;
  }
}
