// rwkv-bench: measures the parts of the project. Parses and dispatches; see tools/bench/.
#include <CLI/CLI.hpp>
#include <initializer_list>

#include "tools/bench/bench.h"
#include "tools/bench/cpu_inference.h"
#include "tools/bench/decode.h"
#include "tools/bench/ops.h"
#include "tools/bench/prefill.h"
#include "tools/bench/report.h"
#include "tools/bench/scale.h"
#include "tools/bench/serve.h"
#include "tools/bench/step.h"
#include "tools/bench/tokenize.h"
#include "tools/bench/train_times.h"
#include "tools/bench/wkv_fp16.h"
#include "tools/cli_common.h"

namespace {

void add_common(CLI::App* app, rwkv::bench::CommonOptions& o) {
  app->add_option("--threads", o.threads, "threads (default: all this process may use)")
      ->check(CLI::Range(1, 4096));
  app->add_option("--repeats", o.repeats, "timed runs per row")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
  app->add_option("--json", o.json, "also write the rows to this file");
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Benchmarks. Results are checked against a double-precision reference first.",
               "rwkv-bench");
  app.require_subcommand(1);

  rwkv::bench::WkvOptions wkv;
  CLI::App* wkv_app = app.add_subcommand("wkv", "WKV variants, forward and backward");
  add_common(wkv_app, wkv);
  wkv_app->add_option("--plot", wkv.plot,
                      "draw time against length: a gnuplot script (FILE.gp) or a picture "
                      "(FILE.png)");
  wkv_app->add_flag("--list", wkv.list, "list all variants, and which fit, without timing");
  wkv_app->add_option("--variant", wkv.variants,
                      "variant or family to time, repeatable (default: all that fit)");
  wkv_app->add_option("--arch", wkv.architecture, "rwkv7 or rwkv4")->capture_default_str();
  wkv_app->add_option("--shape", wkv.shapes,
                      "B,T,H,N: batch, tokens, heads, head size; T = 1 decodes. rwkv4: B,T,C: "
                      "batch, tokens, channels; repeatable");
  wkv_app->add_option("--device", wkv.device, "cpu or cuda")->capture_default_str();
  wkv_app->add_option("--dtype", wkv.dtypes,
                      "f32 or bf16 (default: f32 on cpu, bf16 on cuda; rwkv4: repeatable, both)");
  wkv_app->add_option("--lengths", wkv.lengths,
                      "FIRST:LAST: for each shape T = FIRST, 2 FIRST, ... up to LAST");
  wkv_app
      ->add_option("--seconds", wkv.seconds,
                   "time per variant and shape after which runs are fewer, but 3 at least")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  wkv_app
      ->add_option("--limit", wkv.limit,
                   "rwkv4: leave out points of which one run takes more seconds (default: 0.1 on "
                   "cpu, 1 on cuda)")
      ->check(CLI::PositiveNumber);
  wkv_app->add_flag("--decode", wkv.decode,
                    "time one token of many sequences, as a share of the copy bandwidth");
  wkv_app->add_flag("--state-error", wkv.state_error,
                    "relative error of binary16 states against float64, with and without dither");
  wkv_app->add_option("--steps", wkv.steps, "tokens of --state-error")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  wkv_app->add_option("--from", wkv.from, "draw this JSON record (with --plot), measure nothing");

  rwkv::bench::OpsOptions ops;
  CLI::App* ops_app = app.add_subcommand("ops", "every op by itself, forward and backward");
  add_common(ops_app, ops);
  ops_app->add_option("--device", ops.device, "cpu or cuda")->capture_default_str();
  ops_app->add_option("--dtype", ops.dtype, "f32 or bf16 (default: f32 on cpu, bf16 on cuda)");
  ops_app->add_option("--op", ops.ops, "part of a case's name, repeatable (default: all)");
  ops_app->add_option("--batch", ops.batch, "sequences (default: 1 on cpu, 8 on cuda)")
      ->check(CLI::PositiveNumber);
  ops_app->add_option("--tokens", ops.tokens, "tokens each (default: 512 on cpu, 4096 on cuda)")
      ->check(CLI::PositiveNumber);
  ops_app->add_option("--width", ops.width, "channels")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  ops_app->add_option("--head-size", ops.head_size, "32, 64 or 128")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  ops_app->add_option("--vocab", ops.vocab, "vocabulary")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();

  rwkv::bench::StepOptions step;
  step.repeats = 5;
  CLI::App* step_app = app.add_subcommand("step", "one training step, taken apart");
  add_common(step_app, step);
  step_app->add_option("--device", step.device, "cpu or cuda")->capture_default_str();
  step_app->add_option("--dtype", step.dtype, "of activations: auto (bf16 on cuda), f32, bf16")
      ->capture_default_str();
  step_app->add_option("--arch", step.architecture, "rwkv7 or rwkv4")->capture_default_str();
  step_app->add_option("--layers", step.layers, "layers")->capture_default_str();
  step_app->add_option("--width", step.width, "channels")->capture_default_str();
  step_app->add_option("--vocab", step.vocab, "vocabulary (default: 50304; rwkv4: 50277)")
      ->check(CLI::PositiveNumber);
  step_app->add_option("--head-size", step.head_size, "32, 64 or 128")->capture_default_str();
  step_app->add_option("--batch", step.batch, "sequences")->capture_default_str();
  step_app->add_option("--tokens", step.tokens, "tokens per sequence")->capture_default_str();
  step_app->add_option("--micro-batches", step.micro_batches, "micro-batches per step")
      ->capture_default_str();
  step_app
      ->add_option("--loss-chunk-tokens", step.loss_chunk_tokens,
                   "0 keeps all logits; n computes them again, n tokens at a time")
      ->capture_default_str();
  step_app->add_option("--gemm", step.gemm, "CUDA products: measured or heuristic")
      ->capture_default_str();
  step_app->add_flag("!--no-launch-graphs", step.launch_graphs, "CUDA: launch kernels one by one");
  step_app->add_option("--lanes", step.lanes, "CUDA: streams side by side; 0: by size")
      ->check(CLI::Range(0, 16))
      ->capture_default_str();
  step_app->add_option("--peak-tflops", step.peak_tflops, "what the utilisation refers to");
  step_app->add_option("--wkv", step.wkv, "WKV variant")->capture_default_str();
  step_app->add_option("--grad-checkpointing", step.grad_checkpointing, "none or block")
      ->capture_default_str();

  rwkv::bench::ScaleOptions scale;
  scale.repeats = 20;
  CLI::App* scale_app = app.add_subcommand(
      "scale", "training steps on several ranks against one (docs/multi-gpu.md)");
  add_common(scale_app, scale);
  rwkv::bench::add_scale_flags(scale_app, scale);

  rwkv::bench::TrainTimesOptions times;
  CLI::App* times_app =
      app.add_subcommand("train-times", "whole training steps with each WKV variant");
  times_app->add_option("--config", times.configs, "preset or path, repeatable")
      ->capture_default_str();
  times_app->add_option("--variant", times.variants,
                        "variant or family, repeatable (default: all)");
  times_app->add_option("--set", times.settings, "KEY=VALUE of the config, repeatable")
      ->allow_extra_args(false);
  times_app->add_option("--device", times.device, "cpu or cuda")->capture_default_str();
  times_app->add_option("--dtype", times.dtypes, "f32 or bf16, repeatable (default: all)");
  times_app->add_option("--shape", times.shapes,
                        "B,T: batch and context, repeatable (default: 2,1024)");
  times_app->add_option("--threads", times.threads, "threads (default: all this process may use)")
      ->check(CLI::Range(1, 4096));
  times_app->add_option("--json", times.json, "also write the rows to this file");
  times_app->add_option("--plot", times.plot, "draw bars: FILE.gp or FILE.png");
  times_app->add_option("--from", times.from, "draw this JSON record (with --plot)");

  rwkv::bench::TokenizeOptions tokenize;
  CLI::App* tokenize_app =
      app.add_subcommand("tokenize", "text to token ids and back, in memory, on one core");
  tokenize_app->add_option("--tokenizer", tokenize.tokenizers,
                           "world, neox, bytes or a vocabulary file, repeatable (default: all)");
  tokenize_app
      ->add_option("--text", tokenize.texts,
                   "plain text, or .jsonl with documents as \"text\"; repeatable")
      ->required();
  tokenize_app->add_option("--repeats", tokenize.repeats, "timed runs per row")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
  tokenize_app->add_option("--json", tokenize.json, "also write the rows to this file");

  rwkv::bench::ServeOptions serve;
  CLI::App* serve_app = app.add_subcommand("serve", "loads a running rwkv-serve with clients");
  rwkv::bench::add_serve_flags(serve_app, serve);

  rwkv::bench::DecodeBenchOptions decode;
  CLI::App* decode_app =
      app.add_subcommand("decode", "tokens per second of RWKV-7 on a GPU, random weights");
  add_common(decode_app, decode);
  rwkv::bench::add_decode_flags(decode_app, decode);

  rwkv::bench::PrefillBenchOptions prefill;
  CLI::App* prefill_app = app.add_subcommand("prefill", "prompts of RWKV-7 on a GPU");
  add_common(prefill_app, prefill);
  rwkv::bench::add_prefill_flags(prefill_app, prefill);

  rwkv::bench::CpuInferenceOptions cpu;
  CLI::App* cpu_app =
      app.add_subcommand("cpu", "decoding and prefill of RWKV-7 on the CPU, random weights");
  add_common(cpu_app, cpu);
  rwkv::bench::add_cpu_inference_flags(cpu_app, cpu);

  return rwkv::run_program(app, argc, argv, [&]() -> int {
    namespace bench = rwkv::bench;
    for (const bench::CommonOptions* o : std::initializer_list<const bench::CommonOptions*>{
             &wkv, &ops, &step, &scale, &times, &tokenize, &decode, &prefill, &cpu})
      bench::check_outputs(o->json, o->plot);
    bench::check_outputs(serve.json, "");
    if (wkv_app->parsed() && wkv.decode) return bench::run_wkv_decode(wkv);
    if (wkv_app->parsed() && wkv.state_error) return bench::run_wkv_state_error(wkv);
    if (wkv_app->parsed()) return bench::run_wkv(wkv);
    if (decode_app->parsed()) return bench::run_decode(decode);
    if (prefill_app->parsed()) return bench::run_prefill(prefill);
    if (cpu_app->parsed()) return bench::run_cpu_inference(cpu);
    if (ops_app->parsed()) return bench::run_ops(ops);
    if (serve_app->parsed()) return bench::run_serve(serve);
    if (tokenize_app->parsed()) return bench::run_tokenize(tokenize);
    if (scale_app->parsed()) return bench::run_scale(scale);
    if (times_app->parsed()) return bench::run_train_times(times);
    return bench::run_step(step);
  });
}
