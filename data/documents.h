#pragma once
/// From input files to pieces of text that threads can tokenise independently.

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "data/io/byte_stream.h"
#include "data/tokenizer/tokenizer.h"

namespace rwkv {

enum class TextFormat : uint8_t {
  kAuto,   ///< by name: .jsonl and .ndjson are JSON lines, .txt, .text and .md plain text
  kText,   ///< plain text: one document per file, or cut at a separator
  kJsonl,  ///< one JSON object per line
};

/// "auto", "text" or "jsonl"; throws ConfigError otherwise.
TextFormat parse_text_format(std::string_view name);

struct InputFile {
  std::string path;  ///< "-" is standard input
  TextFormat format = TextFormat::kText;
  int64_t bytes = -1;  ///< size on disk; -1 unknown
};

/// Resolves formats and folders. Folders are searched for .txt, .text, .md, .jsonl and .ndjson,
/// each also with .zst, in the order of their paths. Throws IoError for missing files and for
/// folders without any, ConfigError if a format cannot be told from the name.
std::vector<InputFile> find_inputs(const std::vector<std::string>& paths, TextFormat format);

/// The string member `field` of a JSON object. Escaped lone surrogates become U+FFFD.
/// Throws IoError with the reason if the line is not valid JSON or has no such string.
std::string text_of_json_line(std::string_view line, const std::string& field);

/// A piece of work. For text: segments of `raw`; for JSON lines: whole lines in `raw`.
struct WorkItem {
  struct Segment {
    size_t begin = 0, end = 0;
    bool ends_document = false;
  };
  TextFormat format = TextFormat::kText;
  std::string raw;
  std::vector<Segment> segments;  ///< text only
  std::string source;             ///< file, for messages
  int64_t first_line = 1;         ///< JSON lines only
  int64_t consumed = 0;           ///< bytes read from all files up to the end of this item
};

/// Cuts the inputs into work items of about `piece_bytes`, in order. A document larger than that
/// is cut where the tokenizer says that no token can span the cut, so the ids are those of the
/// whole document. Memory: a piece, the longest JSON line, or the longest
/// stretch without such a place. Each byte is searched once.
class WorkReader {
 public:
  WorkReader(std::vector<InputFile> inputs, std::shared_ptr<const Tokenizer> tokenizer,
             std::string split_at, size_t piece_bytes);
  /// False at the end. Throws IoError.
  bool next(WorkItem& item);

 private:
  bool next_lines(WorkItem& item);
  bool next_text(WorkItem& item);
  bool fill(size_t want);

  std::vector<InputFile> inputs_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  std::string split_at_;
  size_t piece_bytes_;
  size_t file_ = 0;
  std::unique_ptr<ByteStream> stream_;
  std::string buffer_;
  bool at_end_ = false;  ///< of the current file's bytes
  bool open_ = false;    ///< a part of the current document was handed out
  bool done_ = false;    ///< the current text file was handed out
  int64_t line_ = 1, consumed_before_ = 0;
};

}  // namespace rwkv
