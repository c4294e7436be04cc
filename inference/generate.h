#pragma once
/// Generation of one sequence, from prompt ids to text.

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "data/tokenizer/tokenizer.h"
#include "inference/engine.h"
#include "inference/sampler.h"
#include "inference/sequence_runner.h"

namespace rwkv {

struct GenerateOptions {
  SamplingOptions sampling;
  uint64_t sequence = 0;  ///< number of this sequence: further samples of one seed differ by it
  int64_t max_tokens = 256;
  std::vector<std::string> stop;        ///< end the text; not part of it
  bool stop_at_end_of_document = true;  ///< id 0 ends the text (it has no text itself)
  /// A state to start from instead of a fresh one; afterwards it has seen the prompt and all ids
  /// that were drawn. The prompt must then have at least one id.
  RnnState* state = nullptr;
};

enum class FinishReason : uint8_t { kLength, kStop, kEnd, kCancelled };
std::string_view finish_reason_name(FinishReason reason);  ///< "length", "stop", ...

struct Generated {
  std::vector<int32_t> ids;  ///< as drawn, with those of a stop string and the final 0
  std::string text;          ///< valid UTF-8, up to the stop string
  FinishReason finish = FinishReason::kLength;
  int64_t prompt_tokens = 0;
  double prefill_seconds = 0, decode_seconds = 0;  ///< decode: everything after the prefill
  /// Forward passes of the recurrent form: the last token is drawn but not fed.
  int64_t decoded_tokens = 0;
};

/// Receives text as soon as it is certain; never an incomplete character. False cancels.
using TextSink = std::function<bool(std::string_view text)>;
/// Receives each token id as it is drawn. False cancels.
using IdSink = std::function<bool(int32_t id)>;

/// Feeds the prompt to a fresh state (or options.state), then draws up to max_tokens tokens. An
/// empty prompt stands for one end-of-document id, the beginning of a text. Ids that the tokenizer
/// has no use for (rows beyond its vocabulary) are never drawn; without a tokenizer (null) there is
/// no text and all rows may be drawn. Throws ConfigError for bad options or ids, NonFiniteError for
/// logits that are not finite.
Generated generate(Engine& engine, const Tokenizer* tokenizer, std::span<const int32_t> prompt,
                   const GenerateOptions& options, const TextSink& on_text = {},
                   const IdSink& on_id = {});

/// The same with slot 0 of a runner, which may draw on its device; options.state must be null.
Generated generate(SequenceRunner& runner, const Tokenizer* tokenizer,
                   std::span<const int32_t> prompt, const GenerateOptions& options,
                   const TextSink& on_text = {}, const IdSink& on_id = {});

/// The ids of a text: end-of-document first, which is how documents begin in training, unless
/// `from_start` is false.
std::vector<int32_t> prompt_ids(const Tokenizer& tokenizer, std::string_view text,
                                bool from_start = true);

/// Tokens that are pieces of " \t0123456789": what the reference's penalties let repeat.
std::vector<int32_t> number_tokens(const Tokenizer& tokenizer);

}  // namespace rwkv
