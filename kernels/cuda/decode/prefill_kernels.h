#pragma once
/// Kernels between the products of a prompt in the parallel form. Matrices are row-major; pointers
/// are on the device, to f16 or bf16 unless they say otherwise.

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <initializer_list>

#include "kernels/core/dtype.h"
#include "kernels/decode/layout.h"

namespace rwkv::cuda::decode {

/// The sequences of a launch. Each has `tokens` rows, a multiple of 16; the first counts[i] of them
/// are its tokens, the others change no state and nobody reads their results.
struct Prompts {
  int batch = 0, tokens = 0;
  const int32_t* slots = nullptr;   ///< [batch]
  const int32_t* counts = nullptr;  ///< [batch]; 0: the sequence stays as it is
  RWKV_HOST_DEVICE int rows() const { return batch * tokens; }
};

/// Residual stream, layer norm and token shift.
struct PromptMix {
  Prompts prompts;
  int width = 0;
  const float* residual = nullptr;  ///< [rows][width], f32
  const void* add = nullptr;        ///< [rows][width], joins the residual; null: nothing
  const void* embedding = nullptr;  ///< [vocab][width]: stands for the residual; or null
  const int32_t* ids = nullptr;     ///< [rows], with embedding
  float* sum = nullptr;  ///< [rows][width]: the residual from here on; not `residual` itself, whose
                         ///< rows neighbours still read
  const float *weight = nullptr, *bias = nullptr;  ///< of the norm
  const float* mix = nullptr;                      ///< [outputs][width]
  int outputs = 1;                                 ///< 1 or 6
  const void* shift = nullptr;                     ///< of the first slot: the row before the first
  int64_t shift_stride = 0;                        ///< elements from slot to slot
  void* last = nullptr;     ///< of the first sequence: what becomes of `shift`, written elsewhere
  int64_t last_stride = 0;  ///< elements from sequence to sequence
  void* out = nullptr;      ///< [outputs][rows][width]
  /// Only the last token of each sequence. `add` then has two rows per sequence, of the token
  /// before the last and of the last; `sum` and `out` have one.
  bool ends = false;
};
void launch_prompt_mix(DType type, const PromptMix& mix, cudaStream_t stream);

enum class PromptAct : int { kNone, kTanh, kSigmoid };
/// A first low-rank product: out = act(x w^T), x [rows][width], w [rank][width], rows of out `ld`
/// apart. Rank and ld are multiples of 8.
struct PromptDown {
  const void *x = nullptr, *w = nullptr;
  void* out = nullptr;
  int rank = 0;
  PromptAct act = PromptAct::kNone;
};
inline constexpr int kMostDowns = 4;
/// Several of them in one launch, at most kMostDowns: for narrow models and few rows.
void launch_prompt_downs(DType type, int rows, int width, int ld,
                         std::initializer_list<PromptDown> downs, cudaStream_t stream);
/// The activation alone, in place.
void launch_prompt_activation(DType type, const PromptDown& down, int64_t rows, int ld,
                              cudaStream_t stream);

/// What the WKV recurrence needs, from the products, the second low-rank products included.
struct PromptHeads {
  Prompts prompts;
  int heads = 0, layer = 0;
  const void* r = nullptr;          ///< [rows][width]
  void *k = nullptr, *v = nullptr;  ///< [rows][width], replaced; v goes out times value_scale
  /// Results of the first low-rank products of w, a, v, activated: [rows][rank], rows `middle_ld`
  /// apart; and the second matrices, [width][rank].
  const void *middle[3] = {}, *up[3] = {};
  int middle_ld = 0, rank[3] = {};
  void *w = nullptr, *a = nullptr, *b = nullptr;  ///< [rows][width]: decay logit, a, b
  void* v_first = nullptr;                        ///< [rows][width]; written by layer 0
  float* bonus = nullptr;                         ///< [rows][heads], f32: sum of r k r_k
  const float* params = nullptr;                  ///< of the layer
  float value_scale = 1;                          ///< a power of two
};
void launch_prompt_heads(DType type, const PromptHeads& heads, cudaStream_t stream);

/// Group norm, bonus and gate.
struct PromptOutput {
  Prompts prompts;
  int heads = 0;
  const void *y = nullptr, *v = nullptr;  ///< [rows][width], both times value_scale
  const void* gate = nullptr;             ///< [rows][width]
  const float* bonus = nullptr;
  const float* params = nullptr;
  float value_scale = 1;
  void* out = nullptr;  ///< [rows][width]
  bool ends = false;    ///< only the last two tokens: out has two rows per sequence
};
void launch_prompt_output(DType type, const PromptOutput& output, cudaStream_t stream);

/// Layer norm of residual + add, n rows.
struct PromptNorm {
  int rows = 0, width = 0;
  const float* residual = nullptr;
  const void* add = nullptr;
  const float *weight = nullptr, *bias = nullptr;
  void* out = nullptr;
};
void launch_prompt_norm(DType type, const PromptNorm& norm, cudaStream_t stream);

/// WKV states between slots and a place of their own.
struct PromptStates {
  Prompts prompts;
  int layers = 0, heads = 0;
  bool half_state = false;   ///< of the slots: f16 with a scale, or f32
  float slot_scale = 1;      ///< slots hold this multiple of the state
  float scale = 1;           ///< `states` holds this multiple
  std::byte* wkv = nullptr;  ///< of the first slot
  int64_t wkv_stride = 0;    ///< bytes from slot to slot
  float* states = nullptr;   ///< [layers][batch][heads][64][64], f32
  // Only going back:
  void* shift = nullptr;        ///< of the first slot
  int64_t shift_stride = 0;     ///< elements from slot to slot
  const void* last = nullptr;   ///< [batch][shift_stride]
  int8_t* exponents = nullptr;  ///< of rows of f16 states of the first slot: read, then chosen
  int32_t* elapsed = nullptr;   ///< counted up
};
void launch_prompt_states_load(const PromptStates& states, cudaStream_t stream);
void launch_prompt_states_store(DType type, const PromptStates& states, cudaStream_t stream);

/// losses[i] = log sum exp(logits[i]) - logits[i][targets[i]]; 0 where the target is negative.
void launch_prompt_losses(const float* logits, const int32_t* targets, float* losses, int rows,
                          int vocab, cudaStream_t stream);

/// out (m, n) = max(a w^T, 0)^2 with w (n, k), in one kernel.
void launch_prompt_key(DType type, const void* a, const void* w, void* out, int64_t m, int64_t n,
                       int64_t k, int multiprocessors, cudaStream_t stream);

}  // namespace rwkv::cuda::decode
