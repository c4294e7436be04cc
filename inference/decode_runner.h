#pragma once
/// Many sequences of one RWKV-7 model on the decoding kernels, behind the interface of the
/// scheduler.

#include <memory>

#include "inference/decode_model.h"
#include "inference/engine.h"
#include "inference/sequence_runner.h"

namespace rwkv {

struct DecodeRunnerOptions {
  /// The longest prefill piece: a multiple of 16, with an engine a power of two.
  int64_t prefill_tokens = 2048;
  /// Prefill pieces below this length go token by token through the decoding kernels; 0: none of
  /// those that are computed together with others, else below 4, with an engine below 64.
  int64_t least_parallel = 0;
  /// Pieces of equal padded length share calls of so many rows, padding included, but of no more
  /// pieces than 32 or slots. If exact, that is the size of every such call, however many pieces
  /// there are. 0: every piece has a call of its own.
  int64_t shared_rows = 0;
  /// All decoding is in batches, whose results do not depend on the bucket. False: one sequence
  /// alone goes through the kernel for one, which is faster and differs by rounding.
  bool exact = true;
};

/// Decodes with `model`. Prefill is in the parallel form on the same weights (decode_prefill.h) if
/// they were made for it (DecodeOptions::prefill: f16 or bf16). Otherwise with `engine`, an engine
/// of the same weights on CUDA, whose WKV states have the type of the model's: variant
/// fp16-dithered where they are f16 (decode_engine_options). Neither: prefill is token by token.
///
/// exact() unless DecodeRunnerOptions::exact is false or the model's products are cuBLASLt's
/// (DecodeOptions::vendor) in more than one bucket. Without buckets every sequence is decoded by
/// itself, which is exact too.
///
/// Prefill runs in pieces that depend on the prompt's length alone; with DecodePrefill several
/// sequences at a time (DecodeRunnerOptions::shared_rows).
///
/// Model and engine must outlive the runner and are its alone.
std::unique_ptr<SequenceRunner> make_decode_runner(DecodeModel& model, const ModelConfig& config,
                                                   Engine* engine,
                                                   const DecodeRunnerOptions& options = {});

/// Options of an engine that serves the runner.
EngineOptions decode_engine_options(const DecodeModel& model, const DecodeRunnerOptions& options);

}  // namespace rwkv
