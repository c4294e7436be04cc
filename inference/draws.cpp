#include "inference/draws.h"

#include "kernels/core/error.h"

namespace rwkv {

Drawn draw(const DrawRequest& request, std::span<const float> logits, DrawScratch& scratch) {
  Drawn d;
  if (request.vocab > 0) logits = logits.first(static_cast<size_t>(request.vocab));
  try {
    d.token = request.sampler->next(logits, scratch);
    if (request.top_log_probs >= 0) d.log_probs = log_probs(logits, d.token, request.top_log_probs);
  } catch (const NonFiniteError& e) {
    d.error = e.what();
  }
  return d;
}

}  // namespace rwkv
