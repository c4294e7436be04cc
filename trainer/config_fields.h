#pragma once
/// The one list of config keys: reading, checking, printing and the docs all walk it.

#include <string_view>
#include <vector>

#include "trainer/config.h"

namespace rwkv::detail {

/// What a value may be.
struct FieldRules {
  double min = 0, max = 0;                ///< numbers, inclusive
  std::vector<std::string_view> choices;  ///< strings; empty: any
};

inline constexpr double kMaxCount = 9007199254740992.0;  // 2^53: exact in JSON numbers

/// Calls f(key, member, rules, help) for every key outside of "model", in printing order.
template <class Config, class F>
void visit_fields(Config& c, F&& f) {
  const FieldRules any{};
  const auto from = [](double min, double max = kMaxCount) { return FieldRules{min, max, {}}; };
  f("data.train", c.data.train, any,
    "token file or binidx data (NAME of NAME.bin and NAME.idx) to train on, or \"synthetic\"");
  f("data.valid", c.data.valid, any,
    "token file or binidx data for the validation loss; empty: none");
  f("data.sampler", c.data.sampler, FieldRules{0, 0, {"prime", "shuffle", "sequential"}},
    "order of the samples: the reference's prime-cube, seeded shuffle, or in file order");
  f("data.magic_prime", c.data.magic_prime, from(0),
    "prime of that prime-cube order; 0: computed from the tokens and the context");
  f("data.tokenizer", c.data.tokenizer, any,
    "binidx data does not name its tokenizer: world, neox, bytes or a vocabulary file, for text "
    "samples and checkpoints; empty: none");

  f("train.context", c.train.context, from(1, 1 << 20), "tokens per sequence");
  f("train.batch", c.train.batch, from(1, 1 << 20), "sequences per micro-batch, of each rank");
  f("train.micro_batches", c.train.micro_batches, from(1, 1 << 20),
    "micro-batches whose gradients are averaged for one optimiser step");
  f("train.steps", c.train.steps, from(0), "stop after this many steps; 0: no such limit");
  f("train.exit_tokens", c.train.exit_tokens, from(0),
    "stop after this many tokens, where the schedule ends; 0: no such limit");
  f("train.epochs", c.train.epochs, from(0, 1e9),
    "stop after this many passes over the training file; 0: no such limit");
  f("train.seed", c.train.seed, from(0), "seed of initial values and of the shuffle");
  f("train.grad_checkpointing", c.train.grad_checkpointing,
    FieldRules{0, 0, {"none", "block", "auto"}},
    "block: compute each block's forward again in the backward, bit-equal, in less memory; auto: "
    "of as few blocks as memory allows");
  f("train.recompute_blocks", c.train.recompute_blocks, from(0, 1 << 20),
    "with train.grad_checkpointing=block: compute only the first so many blocks again; 0: all");
  f("train.clip", c.train.clip, from(0, 1e9), "limit of the global gradient norm; 0: none");
  f("train.l2wrap", c.train.l2wrap, any, "the reference's pull on the largest logit");
  f("train.loss_chunk_tokens", c.train.loss_chunk_tokens, from(0),
    "0 keeps all logits for the backward; n computes them again, n tokens at a time");
  f("train.max_nonfinite", c.train.max_nonfinite, from(1, 1e6),
    "stop with exit code 5 after this many non-finite steps in a row");

  f("optimizer.lr", c.optimizer.lr, from(0, 10), "largest learning rate");
  f("optimizer.lr_final", c.optimizer.lr_final, from(0, 10), "learning rate at the end");
  f("optimizer.schedule", c.optimizer.schedule,
    FieldRules{0, 0, {"cosine", "linear", "wsd", "constant", "exponential"}},
    "shape of the learning rate, see trainer/schedule.h");
  f("optimizer.warmup", c.optimizer.warmup, from(0), "warm-up steps");
  f("optimizer.warmup_start", c.optimizer.warmup_start, from(-1, 1),
    "first factor of the warm-up; -1: 0.01 for RWKV-7, 0.2 for RWKV-4");
  f("optimizer.decay_part", c.optimizer.decay_part, from(0, 1),
    "wsd: part of the run, at its end, during which the rate falls");
  f("optimizer.hold", c.optimizer.hold, from(0), "exponential: steps before the rate falls");
  f("optimizer.beta1", c.optimizer.beta1, from(0, 0.999999), "decay of the first moment");
  f("optimizer.beta2", c.optimizer.beta2, from(0, 0.99999999), "decay of the second moment");
  f("optimizer.eps", c.optimizer.eps, from(1e-30, 1), "added to the root of the second moment");
  f("optimizer.weight_decay", c.optimizer.weight_decay, from(0, 10),
    "decoupled decay of the matrices; 0: plain Adam");

  f("kernels.wkv7", c.kernels.wkv7, any, "WKV-7 variant: auto, a family or a full name");
  f("kernels.wkv4", c.kernels.wkv4, any, "WKV-4 variant: auto, a family or a full name");
  f("kernels.dtype", c.kernels.dtype, FieldRules{0, 0, {"auto", "f32", "bf16"}},
    "type of activations and matrices: auto is bf16 on CUDA, f32 on the CPU");
  f("kernels.gemm", c.kernels.gemm, FieldRules{0, 0, {"measured", "heuristic"}},
    "CUDA: algorithms of matrix products: measured once per GPU and kept, or cuBLASLt's guess");
  f("kernels.launch_graphs", c.kernels.launch_graphs, any,
    "CUDA: record the launches of a step once and replay them");
  f("kernels.lanes", c.kernels.lanes, from(0, 16),
    "CUDA: streams on which independent kernels run side by side; 0: 4 up to 65536 tokens, else 1");

  f("eval.every", c.eval.every, from(0), "steps between validation losses; 0: never");
  f("eval.batches", c.eval.batches, from(1, 1e6),
    "micro-batches per validation loss, of each rank");

  f("sample.every", c.sample.every, from(0), "steps between text samples; 0: never");
  f("sample.prompt", c.sample.prompt, any, "start of the text sample");
  f("sample.tokens", c.sample.tokens, from(1, 1e6), "length of the text sample");
  f("sample.temperature", c.sample.temperature, from(0, 100), "0: always the likeliest token");
  f("sample.top_p", c.sample.top_p, from(1e-6, 1), "nucleus of the text sample");

  f("checkpoint.dir", c.checkpoint.dir, any, "run folder: log and checkpoints; empty: runs/NAME");
  f("checkpoint.every", c.checkpoint.every, from(0),
    "steps between checkpoints; 0: only at the end and when stopped");
  f("checkpoint.keep_last", c.checkpoint.keep_last, from(1, 1e6),
    "keep that many of the newest checkpoints");
  f("checkpoint.keep_every", c.checkpoint.keep_every, from(0),
    "also keep those whose step is a multiple of this; 0: none");

  f("log.every", c.log.every, from(1), "steps between lines of the JSON log");
  f("log.tensorboard", c.log.tensorboard, any,
    "also write the numbers of the log as a TensorBoard event file");
  f("log.print_every", c.log.print_every, from(1),
    "steps between lines when the output is not a terminal");

  f("dist.zero", c.dist.zero, from(0, 2),
    "what several ranks divide: 0 nothing, 1 moments and f32 parameters, 2 gradients, too");
  f("dist.exchange", c.dist.exchange, FieldRules{0, 0, {"f32", "bf16"}},
    "type of gradients on their way between ranks");
  f("dist.parcel", c.dist.parcel, from(-1),
    "neighbouring blocks with fewer parameters than this travel together; -1: by the model's size");
  f("dist.overlap", c.dist.overlap, any,
    "CUDA: gradients travel while the backward runs; false: after it");
  f("dist.copy_engines", c.dist.copy_engines, any,
    "CUDA, ranks of one machine: copy engines move data, where NCCL has that; false: kernels");
  f("dist.checkpoint", c.dist.checkpoint, FieldRules{0, 0, {"gathered", "parallel"}},
    "one file, which rank 0 writes, or a folder with a file of each rank");

  f("limits.peak_tflops", c.limits.peak_tflops, from(0, 1e6),
    "peak that the utilisation refers to; 0: measured on the CPU, 989 on CUDA");
  f("limits.memory_mib", c.limits.memory_mib, from(0),
    "refuse to start above this, of the device that trains; 0: what it has available");
}

}  // namespace rwkv::detail
