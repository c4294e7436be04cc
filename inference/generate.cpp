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

namespace {

/// One sequence: what feeds it and draws its next token.
class Source {
 public:
  virtual ~Source() = default;
  virtual int64_t vocab() const = 0;
  /// Feeds the prompt, in the parallel form.
  virtual void begin(std::span<const int32_t> prompt) = 0;
  /// From the logits after the prompt.
  virtual int32_t first(TokenSampler& sampler, int64_t rows) = 0;
  /// Feeds `last` and draws.
  virtual int32_t next(int32_t last, TokenSampler& sampler, int64_t rows) = 0;
  virtual void feed(int32_t last) = 0;

 protected:
  int32_t draw_from(const TensorView& logits, TokenSampler& sampler, int64_t rows) {
    return sampler.next({logits.f32(), static_cast<size_t>(rows)}, scratch_);
  }

 private:
  DrawScratch scratch_;
};

class EngineSource : public Source {
 public:
  EngineSource(Engine& engine, RnnState* state) : engine_(engine), state_(state) {
    if (state == nullptr) state_ = &own_.emplace(engine.new_state());
  }
  int64_t vocab() const override { return engine_.model().config().vocab_size; }
  void begin(std::span<const int32_t> prompt) override {
    logits_ = engine_.prefill(*state_, prompt);
  }
  int32_t first(TokenSampler& sampler, int64_t rows) override {
    return draw_from(logits_, sampler, rows);
  }
  int32_t next(int32_t last, TokenSampler& sampler, int64_t rows) override {
    return draw_from(engine_.decode(*state_, {&last, 1}), sampler, rows);
  }
  void feed(int32_t last) override { engine_.decode(*state_, {&last, 1}); }

 private:
  Engine& engine_;
  std::optional<RnnState> own_;
  RnnState* state_;
  TensorView logits_;
};

class RunnerSource : public Source {
 public:
  explicit RunnerSource(SequenceRunner& runner) : runner_(runner) {}
  int64_t vocab() const override { return runner_.config().vocab_size; }
  void begin(std::span<const int32_t> prompt) override {
    runner_.reset(kSlot);
    while (!prompt.empty()) {
      const auto n = static_cast<size_t>(runner_.prefill_piece(std::ssize(prompt)));
      logits_ = runner_.prefill(kSlot, prompt.first(n));
      prompt = prompt.subspan(n);
    }
  }
  int32_t first(TokenSampler& sampler, int64_t rows) override {
    return draw_from(logits_, sampler, rows);
  }
  int32_t next(int32_t last, TokenSampler& sampler, int64_t rows) override {
    const DrawRequest request{.sampler = &sampler, .id = 1, .vocab = rows};
    runner_.start_draws({&kSlot, 1}, {&last, 1}, {&request, 1});
    const Drawn& drawn = runner_.finish_draws().front();
    if (!drawn.error.empty()) throw NonFiniteError(drawn.error);
    return drawn.token;
  }
  void feed(int32_t last) override { runner_.decode({&kSlot, 1}, {&last, 1}); }

 private:
  static constexpr int64_t kSlot = 0;
  SequenceRunner& runner_;
  TensorView logits_;
};

Generated run(Source& source, const Tokenizer* tokenizer, std::span<const int32_t> prompt,
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
  const double start = now_seconds();
  source.begin(prompt);
  const double prefilled = now_seconds();
  g.prefill_seconds = prefilled - start;

  const int64_t rows = tokenizer != nullptr
                           ? std::min<int64_t>(tokenizer->vocab_size(), source.vocab())
                           : source.vocab();
  bool going = true;
  while (going && std::ssize(g.ids) < options.max_tokens) {
    if (!g.ids.empty()) ++g.decoded_tokens;
    const int32_t id =
        g.ids.empty() ? source.first(sampler, rows) : source.next(g.ids.back(), sampler, rows);
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
    source.feed(g.ids.back());
    ++g.decoded_tokens;
  }
  g.decode_seconds = now_seconds() - prefilled;
  return g;
}

}  // namespace

Generated generate(Engine& engine, const Tokenizer* tokenizer, std::span<const int32_t> prompt,
                   const GenerateOptions& options, const TextSink& on_text, const IdSink& on_id) {
  EngineSource source(engine, options.state);
  return run(source, tokenizer, prompt, options, on_text, on_id);
}

Generated generate(SequenceRunner& runner, const Tokenizer* tokenizer,
                   std::span<const int32_t> prompt, const GenerateOptions& options,
                   const TextSink& on_text, const IdSink& on_id) {
  RWKV_CHECK(options.state == nullptr, ConfigError,
             "generating with a runner: states from outside are the engine's");
  RunnerSource source(runner);
  return run(source, tokenizer, prompt, options, on_text, on_id);
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
