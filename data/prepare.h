#pragma once
/// Text files to token files: streamed, on several threads, with the same result for any number of
/// threads.

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "data/documents.h"
#include "data/tokenizer/tokenizer.h"

namespace rwkv {

struct PrepareProgress {
  double seconds = 0;
  int64_t input_bytes = 0;   ///< read so far, as stored (compressed)
  int64_t input_total = -1;  ///< -1 when unknown (standard input)
  int64_t text_bytes = 0, tokens = 0, documents = 0;
  bool finished = false;  ///< the last call
};

struct PrepareOptions {
  std::vector<std::string> inputs;  ///< files, folders, "-"
  std::string output;               ///< token file; replaced only when everything succeeded
  TextFormat format = TextFormat::kAuto;
  std::string field = "text";  ///< member of the JSON objects that holds the text
  std::string split_at;        ///< plain text: documents are separated by this; empty: one per file
  bool end_of_document = true;   ///< append id 0 to every document
  bool skip_bad_lines = false;   ///< else the first malformed line ends everything
  double valid_fraction = 0;     ///< in (0, 1): also write `valid_output`
  std::string valid_output;      ///< empty: OUTPUT with .valid before its extension
  int threads = 0;               ///< tokenising threads; 0: num_threads()
  size_t piece_bytes = 1 << 20;  ///< size of a work item; the result does not depend on it
  std::function<void(const PrepareProgress&)> progress;     ///< a few times per second
  std::function<void(const std::string&)> report_bad_line;  ///< FILE:LINE: reason
};

struct PrepareResult {
  int64_t tokens = 0, documents = 0, text_bytes = 0;  ///< of the training part
  int64_t valid_tokens = 0, valid_documents = 0;
  int64_t bad_lines = 0;
  std::string valid_output;  ///< empty if none was written
};

/// Tokenises the inputs into a token file.
///
/// The validation part takes every document i with floor((i + 1) F) > floor(i F), so it is spread
/// evenly. If that selects none (fewer than 1/F documents), the last share F of the tokens is cut
/// off instead, in the middle of a document if need be.
///
/// Throws IoError (unreadable or malformed input, full disk, no text at all), ConfigError (an
/// output that is an input or the other output, a validation file without a fraction), DeviceError
/// (no threads).
PrepareResult prepare_tokens(const PrepareOptions& options,
                             std::shared_ptr<const Tokenizer> tokenizer);

/// "data/train.h5" to "data/train.valid.h5"
std::string default_valid_path(const std::string& output);

}  // namespace rwkv
