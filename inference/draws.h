#pragma once
/// Draws for several sequences at once.

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "inference/sampler.h"

namespace rwkv {

struct DrawRequest {
  TokenSampler* sampler = nullptr;  ///< draws and counts the token
  /// Names the sampler: another one in the same slot has another number. While a runner draws for
  /// it, nobody else makes it count.
  uint64_t id = 0;
  int64_t vocab = 0;           ///< ids from here on are never drawn; 0: none of the model's
  int64_t top_log_probs = -1;  ///< -1: no log-probabilities; n: with the n most probable tokens
};

/// What became of a request: a token, or an error, by which the sampler has not changed.
struct Drawn {
  int32_t token = -1;
  std::optional<LogProbs> log_probs;
  std::string error;
};

/// On the CPU, from all logits of the model (V).
Drawn draw(const DrawRequest& request, std::span<const float> logits, DrawScratch& scratch);

/// The same for several, each from its own logits, by several threads; nothing for those without a
/// sampler. `scratch` grows as needed.
void draw_all(std::span<const DrawRequest> requests, std::span<const std::span<const float>> logits,
              std::span<Drawn> drawn, std::vector<DrawScratch>& scratch);

}  // namespace rwkv
