#include "inference/generate.h"

#include <algorithm>
#include <optional>

#include "inference/text_stream.h"
#include "kernels/core/trace.h"

namespace rwkv {

std::string_view finish_reason_name(FinishReason reason) {
  switch (reason) {
    case FinishReason::kLength:
      return "length";
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kEnd:
      return "end of document";
    case FinishReason::kCancelled:
      return "cancelled";
  }
  return "?";
}

Generated generate(Engine& engine, const Tokenizer* tokenizer, std::span<const int32_t> prompt,
                   const GenerateOptions& options, const TextSink& on_text, const IdSink& on_id) {
  RWKV_CHECK(options.max_tokens >= 0, ConfigError, "generating: max_tokens is ", options.max_tokens,
             ", expected at least 0");
  RWKV_CHECK(tokenizer != nullptr || options.stop.empty(), ConfigError,
             "generating: stop strings need a tokenizer");
  std::optional<TextStream> stream;
  if (tokenizer != nullptr) stream.emplace(*tokenizer, options.stop);
  TokenSampler sampler(options.sampling, options.sequence);
  Generated g;
  const auto emit = [&](std::string text) {
    if (text.empty()) return true;
    g.text += text;
    return !on_text || on_text(text);
  };

  RWKV_CHECK(options.state == nullptr || !prompt.empty(), ConfigError,
             "generating: a state is continued by at least one token; give a prompt");
  constexpr int32_t kStart[] = {kEndOfDocument};
  if (prompt.empty()) prompt = kStart;
  g.prompt_tokens = std::ssize(prompt);
  sampler.see(prompt);
  std::optional<RnnState> own;
  if (options.state == nullptr) own.emplace(engine.new_state());
  RnnState& state = own ? *own : *options.state;
  const double start = now_seconds();
  TensorView logits = engine.prefill(state, prompt);
  const double prefilled = now_seconds();
  g.prefill_seconds = prefilled - start;

  const int64_t rows = tokenizer != nullptr
                           ? std::min<int64_t>(tokenizer->vocab_size(), logits.last())
                           : logits.last();
  bool going = true;
  while (going && std::ssize(g.ids) < options.max_tokens) {
    if (!g.ids.empty()) {
      logits = engine.decode(state, {&g.ids.back(), 1});
      ++g.decoded_tokens;
    }
    const int32_t id = sampler.next({logits.f32(), static_cast<size_t>(rows)});
    g.ids.push_back(id);
    bool wanted = !on_id || on_id(id);
    if (id == kEndOfDocument && options.stop_at_end_of_document) {
      g.finish = FinishReason::kEnd;
      going = false;
    } else if (stream) {
      wanted = emit(stream->push(id)) && wanted;
      if (stream->stopped()) {
        g.finish = FinishReason::kStop;
        going = false;
      }
    }
    if (!wanted && going) {
      g.finish = FinishReason::kCancelled;
      going = false;
    }
  }
  if (stream) emit(stream->finish());
  if (options.state != nullptr && !g.ids.empty()) {
    engine.decode(state, {&g.ids.back(), 1});
    ++g.decoded_tokens;
  }
  g.decode_seconds = now_seconds() - prefilled;
  return g;
}

std::vector<int32_t> prompt_ids(const Tokenizer& tokenizer, std::string_view text,
                                bool from_start) {
  std::vector<int32_t> ids;
  if (from_start) ids.push_back(kEndOfDocument);
  tokenizer.encode_to(text, ids);
  return ids;
}

std::vector<int32_t> number_tokens(const Tokenizer& tokenizer) {
  constexpr std::string_view kFree = " \t0123456789";
  std::vector<int32_t> ids;
  for (int32_t id = 1; id < tokenizer.vocab_size(); ++id) {
    const std::string_view bytes = tokenizer.token_bytes(id);
    if (!bytes.empty() && kFree.find(bytes) != std::string_view::npos) ids.push_back(id);
  }
  return ids;
}

}  // namespace rwkv
