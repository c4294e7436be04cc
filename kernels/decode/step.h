#pragma once
/// One token of one sequence on a GPU: launcher over raw device pointers, in builds with CUDA.

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/core/context.h"
#include "kernels/decode/layout.h"

namespace rwkv::decode {

/// Everything on the device. States of all slots lie in one array each; a launch works on one slot.
struct StepCall {
  const std::byte* weights = nullptr;  ///< of the layout
  const float* params = nullptr;       ///< [layers][kParams][width], then weight and bias of ln_out
  std::byte* shift = nullptr;          ///< [slot][layers][2][width] in the type of the weights
  std::byte* wkv = nullptr;            ///< [slot][layers][heads][64][64], f32 or f16
  int8_t* exponents = nullptr;         ///< [slot][layers][heads][64], of rows of f16 states
  int32_t* elapsed = nullptr;          ///< [slot]; counted up by every token
  bool half_state = false;             ///< the WKV state is f16 with dither (wkv7_fp16.h)
  float state_scale = 1;               ///< of f16 states: they hold this times S
  const int32_t* slot = nullptr;       ///< one
  const int32_t* token = nullptr;      ///< one
  float* logits = nullptr;             ///< [vocab]
  std::byte* exchange = nullptr;       ///< exchange_bytes(), zero at first, of this launch only
  bool skip = true;                    ///< rows of the value matrix whose activation is zero
  /// The value matrix comes through the stream, all of its rows: where not bytes but waiting
  /// counts.
  bool stream_value = false;
  int nap = 0;                ///< nanoseconds between two looks for what other blocks compute
  int slots = 0;              ///< of a block's ring; 0: as many as fit
  int flight = 0;             ///< of them, that are being filled at a time; 0: all
  int64_t* stamps = nullptr;  ///< null, or zeros, [blocks][layers + 1][kStamps]: SM clocks
};

/// Points in time of a layer: when stages in, lora, out, key and value have their input, and when
/// they are done.
inline constexpr int kStamps = 10;

size_t exchange_bytes(const Layout& layout);
/// Multiprocessors of the context's GPU: for make_layout.
int multiprocessors(const Context& ctx);
/// Queued on the context. `weights`: type of the weights, f16, bf16 or f32. Throws DeviceError,
/// ConfigError if shared memory is too small for the layout.
void step(Context& ctx, const Layout& layout, DType weights, const StepCall& call);
/// The last layer's squared ReLU of the last step, from its exchange. Waits.
std::vector<float> read_hidden(Context& ctx, const Layout& layout, const void* exchange);

}  // namespace rwkv::decode
