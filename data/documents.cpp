#include "data/documents.h"

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>

#include "kernels/core/error.h"

namespace fs = std::filesystem;

namespace rwkv {
namespace {

/// Of JSON: compressed, a line can be longer than any memory. Far more than any document has.
constexpr size_t kMaxLineBytes = size_t{256} << 20;

std::optional<TextFormat> format_by_name(std::string name) {
  if (name.ends_with(".zst")) name.resize(name.size() - 4);
  for (const char* ext : {".jsonl", ".ndjson"})
    if (name.ends_with(ext)) return TextFormat::kJsonl;
  for (const char* ext : {".txt", ".text", ".md"})
    if (name.ends_with(ext)) return TextFormat::kText;
  return std::nullopt;
}

/// The value of the four hex digits at `at`, if they are there.
std::optional<unsigned> hex4(std::string_view s, size_t at) {
  unsigned value = 0;
  if (at + 4 > s.size()) return std::nullopt;
  const auto [end, error] = std::from_chars(s.data() + at, s.data() + at + 4, value, 16);
  if (error != std::errc{} || end != s.data() + at + 4) return std::nullopt;
  return value;
}

/// JSON text in which escaped surrogates without a partner are replaced by \ufffd.
std::string repair_surrogates(std::string_view line) {
  std::string out(line);
  for (size_t i = out.find('\\'); i != std::string::npos && i + 1 < out.size();
       i = out.find('\\', i)) {
    if (out[i + 1] != 'u') {
      i += 2;
      continue;
    }
    const auto unit = hex4(out, i + 2);
    if (!unit || *unit < 0xD800 || *unit > 0xDFFF) {
      i += 2;
      continue;
    }
    const bool high = *unit < 0xDC00;
    if (high && out.compare(i + 6, 2, "\\u") == 0) {
      const auto low = hex4(out, i + 8);
      if (low && *low >= 0xDC00 && *low <= 0xDFFF) {
        i += 12;
        continue;
      }
    }
    out.replace(i + 2, 4, "fffd");
    i += 6;
  }
  return out;
}

/// Finds one member of an object in passing: whatever else a line holds costs no memory.
class MemberFinder final : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit MemberFinder(std::string_view field) : field_(field) {}
  std::string root, kind;  ///< types of the line and of the member; "": there is none
  std::string text;        ///< the member, if it is a string
  std::string problem;     ///< what is no JSON; "": nothing

  bool null() override { return value("null"); }
  bool boolean(bool) override { return value("boolean"); }
  bool number_integer(number_integer_t) override { return value("number"); }
  bool number_unsigned(number_unsigned_t) override { return value("number"); }
  bool number_float(number_float_t, const string_t&) override { return value("number"); }
  bool binary(binary_t&) override { return value("binary"); }
  bool string(string_t& s) override {
    value("string");
    if (depth_ == 1 && wanted_) text = std::move(s);
    return true;
  }
  bool start_object(size_t) override {
    value("object");
    return ++depth_ > 0;
  }
  bool start_array(size_t) override {
    value("array");
    return ++depth_ > 0;
  }
  bool end_object() override { return depth_-- > 0; }
  bool end_array() override { return depth_-- > 0; }
  bool key(string_t& name) override {
    if (depth_ == 1) wanted_ = name == field_;
    return true;
  }
  bool parse_error(size_t, const std::string&, const nlohmann::detail::exception& e) override {
    // The library's text starts with an identifier in brackets; keep what follows.
    const std::string_view what = e.what();
    const size_t bracket = what.find("] ");
    problem = bracket == std::string_view::npos ? what : what.substr(bracket + 2);
    return false;
  }

 private:
  /// Of equal members the last one counts.
  bool value(const char* type) {
    if (depth_ == 0) root = type;
    if (depth_ == 1 && wanted_) kind = type;
    return true;
  }
  std::string_view field_;
  size_t depth_ = 0;
  bool wanted_ = false;  ///< the member that was begun last, of the outermost object
};

}  // namespace

TextFormat parse_text_format(std::string_view name) {
  if (name == "auto") return TextFormat::kAuto;
  if (name == "text") return TextFormat::kText;
  if (name == "jsonl") return TextFormat::kJsonl;
  throw ConfigError(str("unknown format \"", name, "\"; known are auto, text, jsonl"));
}

std::vector<InputFile> find_inputs(const std::vector<std::string>& paths, TextFormat format) {
  std::vector<InputFile> out;
  const auto add = [&](const std::string& path, TextFormat f) {
    std::error_code ec;
    const auto size = fs::is_regular_file(path, ec) ? fs::file_size(path, ec) : uintmax_t(-1);
    out.push_back({path, f, ec || size == uintmax_t(-1) ? -1 : static_cast<int64_t>(size)});
  };
  for (const auto& path : paths) {
    std::error_code ec;
    if (path == "-") {
      RWKV_CHECK(format != TextFormat::kAuto, ConfigError,
                 "reading standard input: say --format text or --format jsonl");
      add(path, format);
    } else if (fs::is_directory(path, ec)) {
      std::vector<std::string> found;
      for (fs::recursive_directory_iterator it(path, ec), end; !ec && it != end; it.increment(ec))
        if (it->is_regular_file(ec) && format_by_name(it->path().string()))
          found.push_back(it->path().string());
      RWKV_CHECK(!ec, IoError, "searching ", path, ": ", ec.message());
      RWKV_CHECK(!found.empty(), IoError, "searching ", path,
                 ": no .txt, .md or .jsonl files (also .zst) in it");
      std::sort(found.begin(), found.end());
      for (const auto& file : found)
        add(file, format == TextFormat::kAuto ? *format_by_name(file) : format);
    } else {
      RWKV_CHECK(fs::exists(path, ec), IoError, "reading ", path, ": no such file or folder");
      const auto by_name = format_by_name(path);
      RWKV_CHECK(format != TextFormat::kAuto || by_name, ConfigError, "reading ", path,
                 ": the name does not tell the format; say --format text or --format jsonl");
      add(path, format == TextFormat::kAuto ? *by_name : format);
    }
  }
  RWKV_CHECK(!out.empty(), ConfigError, "no input files given");
  return out;
}

std::string text_of_json_line(std::string_view line, const std::string& field) {
  const bool suspicious =
      line.find("\\ud") != std::string_view::npos || line.find("\\uD") != std::string_view::npos;
  MemberFinder found(field);
  if (suspicious)
    nlohmann::json::sax_parse(repair_surrogates(line), &found);
  else
    nlohmann::json::sax_parse(line, &found);
  RWKV_CHECK(found.problem.empty(), IoError, "malformed JSON: ", found.problem);
  RWKV_CHECK(found.root == "object", IoError, "expected a JSON object, found a JSON ", found.root);
  RWKV_CHECK(!found.kind.empty(), IoError, "the object has no member \"", field, "\"");
  RWKV_CHECK(found.kind == "string", IoError, "member \"", field, "\" is a JSON ", found.kind,
             ", expected a string");
  return std::move(found.text);
}

WorkReader::WorkReader(std::vector<InputFile> inputs, std::shared_ptr<const Tokenizer> tokenizer,
                       std::string split_at, size_t piece_bytes)
    : inputs_(std::move(inputs)),
      tokenizer_(std::move(tokenizer)),
      split_at_(std::move(split_at)),
      piece_bytes_(std::max<size_t>(piece_bytes, 1)) {}

bool WorkReader::fill(size_t want) {
  const size_t before = buffer_.size();
  while (!at_end_ && buffer_.size() - before < want) {
    const size_t at = buffer_.size();
    buffer_.resize(before + want);
    const size_t n = stream_->read(buffer_.data() + at, buffer_.size() - at);
    buffer_.resize(at + n);
    at_end_ = n == 0;
  }
  return buffer_.size() > before;
}

bool WorkReader::next(WorkItem& item) {
  for (;;) {
    if (stream_ == nullptr) {
      if (file_ == inputs_.size()) return false;
      stream_ = open_byte_stream(inputs_[file_].path);
      buffer_.clear();
      at_end_ = false;
      open_ = done_ = false;
      line_ = 1;
    }
    const InputFile& input = inputs_[file_];
    item = {};
    item.format = input.format;
    item.source = input.path == "-" ? "standard input" : input.path;
    const bool got = input.format == TextFormat::kJsonl ? next_lines(item) : next_text(item);
    item.consumed = consumed_before_ + stream_->consumed();
    if (got) return true;
    consumed_before_ += stream_->consumed();
    stream_.reset();
    ++file_;
  }
}

bool WorkReader::next_lines(WorkItem& item) {
  size_t cut = std::string::npos;
  for (size_t searched = 0; cut == std::string::npos;) {
    if (!fill(piece_bytes_)) {
      if (buffer_.empty()) return false;
      cut = buffer_.size();  // the last line may lack its line end
      break;
    }
    // Only what is new: a line may be as long as the file.
    const size_t found = std::string_view(buffer_).substr(searched).rfind('\n');
    if (found != std::string_view::npos)
      cut = searched + found + 1;
    else
      searched = buffer_.size();
    RWKV_CHECK(searched <= kMaxLineBytes, IoError, "reading ", item.source, ": line ", line_,
               " has more than ", kMaxLineBytes, " bytes; expected a JSON object per line");
  }
  item.raw = buffer_.substr(0, cut);
  buffer_.erase(0, cut);
  item.first_line = line_;
  line_ += std::count(item.raw.begin(), item.raw.end(), '\n');
  return true;
}

bool WorkReader::next_text(WorkItem& item) {
  if (done_) return false;
  const size_t keep = split_at_.empty() ? 0 : split_at_.size() - 1;
  size_t used = 0;  // everything before is in segments or was a separator
  // Only what is new is searched: a text without separators or cuts may be as long as the file.
  size_t no_separator = 0, no_cut = 0;  // none begins before that
  for (;;) {
    if (!at_end_) fill(piece_bytes_);
    if (!split_at_.empty()) {
      for (size_t at; (at = buffer_.find(split_at_, no_separator)) != std::string::npos;) {
        if (at > used || open_) item.segments.push_back({used, at, true});
        open_ = false;
        no_separator = used = at + split_at_.size();
      }
      if (buffer_.size() > keep) no_separator = std::max(used, buffer_.size() - keep);
    }
    if (at_end_) {
      // Without a separator every file is one document, an empty file too.
      if (buffer_.size() > used || open_ || split_at_.empty())
        item.segments.push_back({used, buffer_.size(), true});
      item.raw = std::move(buffer_);
      buffer_.clear();
      done_ = true;
      return !item.segments.empty();
    }
    if (item.segments.empty() || buffer_.size() - used > piece_bytes_) {
      // Inside a long document: hand out what the tokenizer can cut off, keeping bytes that may be
      // the beginning of a separator.
      const std::string_view rest = std::string_view(buffer_).substr(used);
      const size_t end = rest.size() - std::min(rest.size(), keep);
      const size_t cut = tokenizer_->safe_cut(rest.substr(0, end), no_cut - std::min(no_cut, used));
      no_cut = used + end;
      if (cut > 0) {
        item.segments.push_back({used, used + cut, false});
        open_ = true;
        used += cut;
      }
    }
    if (!item.segments.empty()) {
      item.raw = buffer_.substr(0, used);
      buffer_.erase(0, used);
      return true;
    }
  }
}

}  // namespace rwkv
