#pragma once
/// Prompts of RWKV-7 in the parallel form on a GPU, on the weights that decoding has: from and to
/// the states of its slots. Products by cuBLASLt, the WKV recurrence in chunks on the tensor cores
/// (kernels/wkv/cuda/wkv7_cuda.h), one kernel each for what lies between. In builds with CUDA.

#include <cstddef>
#include <cstdint>
#include <functional>

#include "kernels/core/context.h"
#include "kernels/decode/batch.h"
#include "kernels/decode/layout.h"

namespace rwkv::decode {

/// Rows of a sequence are a multiple of this.
inline constexpr int kPromptRows = 16;

struct PrefillCall {
  const std::byte* weights = nullptr;  ///< of the layout
  const std::byte* plain = nullptr;    ///< of the plain layout
  const float* params = nullptr;
  std::byte *shift = nullptr, *wkv = nullptr;  ///< states of all slots, as in StepCall
  int8_t* exponents = nullptr;
  int32_t* elapsed = nullptr;
  bool half_state = false;
  float state_scale = 1;
  int batch = 0, tokens = 0;  ///< sequences; rows of each, a multiple of kPromptRows
  const int32_t *slots = nullptr, *counts = nullptr;  ///< [batch]; counts: see Prompts
  const int32_t* ids = nullptr;                       ///< [batch][tokens]
  /// [batch][vocab], after the last token of each sequence.
  float* logits = nullptr;
  /// Null; or the losses of all rows go out, [batch][tokens], for these targets: [batch][tokens],
  /// -1: none. There are no logits then.
  float* losses = nullptr;
  const int32_t* targets = nullptr;
  std::byte* work = nullptr;  ///< prefill_bytes(), for this call alone
  /// Null, or called on the host when all up to the end of the stage of this name is queued.
  const std::function<void(const char*)>* mark = nullptr;
};

size_t prefill_bytes(const Layout& layout, int batch, int tokens, bool losses);

/// Queued on the context and its lanes (kBatchLanes). `weights`: f16 or bf16. States are read and
/// written once; between layers and tokens the WKV state is in f32. A sequence's results do not
/// depend on the others, only, in their last bits, on batch and tokens.
void prefill(Context& ctx, const Layout& layout, const PlainLayout& plain, DType weights,
             const PrefillCall& call, BatchEvents& events);

}  // namespace rwkv::decode
