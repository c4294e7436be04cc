// safetensors: u64 length of the header, the header (JSON), the tensors without gaps. Reading of
// single files and of Hugging Face folders with one file or shards; writing.

#include <algorithm>
#include <array>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "data/io/atomic_file.h"
#include "data/io/byte_file.h"
#include "data/io/json_depth.h"
#include "data/io/tensor_file.h"

namespace rwkv {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // what the owner's reader allows
constexpr const char* kSingle = "model.safetensors";
constexpr const char* kIndex = "model.safetensors.index.json";

struct NamedType {
  std::string_view name;
  TensorType type;
  uint64_t bytes;  ///< per element
};
constexpr std::array<NamedType, 16> kTypes = {{{"F64", TensorType::kF64, 8},
                                               {"F32", TensorType::kF32, 4},
                                               {"F16", TensorType::kF16, 2},
                                               {"BF16", TensorType::kBF16, 2},
                                               {"I64", TensorType::kI64, 8},
                                               {"I32", TensorType::kI32, 4},
                                               {"I16", TensorType::kI16, 2},
                                               {"I8", TensorType::kI8, 1},
                                               {"U8", TensorType::kU8, 1},
                                               {"BOOL", TensorType::kBool, 1},
                                               {"U64", TensorType::kOther, 8},
                                               {"U32", TensorType::kOther, 4},
                                               {"U16", TensorType::kOther, 2},
                                               {"F8_E4M3", TensorType::kOther, 1},
                                               {"F8_E5M2", TensorType::kOther, 1},
                                               {"F8_E8M0", TensorType::kOther, 1}}};

/// Follows the JSON of a header piece by piece and keeps only what belongs there, so that a
/// hostile header needs no more memory than its own size. Anything else ends the parse.
class HeaderParser final : public nlohmann::json_sax<Json> {
 public:
  struct Entry {
    std::string name, dtype;
    Shape shape;
    std::vector<uint64_t> offsets;
    bool has_dtype = false, has_shape = false, has_offsets = false;
  };
  std::vector<Entry> entries;
  std::vector<std::pair<std::string, std::string>> metadata;
  std::string problem;

  bool null() override { return refuse("null"); }
  bool boolean(bool) override { return refuse("a boolean"); }
  bool number_integer(number_integer_t) override { return refuse("a negative number"); }
  bool number_float(number_float_t, const string_t&) override { return refuse("a fraction"); }
  bool binary(binary_t&) override { return refuse("binary data"); }
  bool number_unsigned(number_unsigned_t value) override {
    if (in_array_ == nullptr) return refuse("a number");
    if (in_array_->size() >= kMaxRank) return refuse("a longer array");
    in_array_->push_back(value);
    return true;
  }
  bool string(string_t& value) override {
    if (depth_ == 2 && in_metadata_) {
      metadata.emplace_back(key_, value);
      return true;
    }
    if (depth_ != 2 || key_ != "dtype" || in_array_ != nullptr || entries.back().has_dtype)
      return refuse("a string");
    entries.back().dtype = value;
    return entries.back().has_dtype = true;
  }
  bool start_object(size_t) override {
    if (in_array_ != nullptr) return refuse("an object in an array");
    if (++depth_ > 2) return refuse("an object");
    if (depth_ < 2) return true;
    in_metadata_ = key_ == "__metadata__";
    if (!in_metadata_) {
      if (!names_.insert(key_).second) {
        problem = str("two tensors called ", key_);
        return false;
      }
      entries.push_back({});
      entries.back().name = key_;
    }
    return true;
  }
  bool key(string_t& value) override {
    key_ = value;
    return true;
  }
  bool end_object() override {
    if (depth_ == 2 && !in_metadata_) {
      const Entry& e = entries.back();
      if (!e.has_dtype || !e.has_shape || !e.has_offsets || e.offsets.size() != 2)
        return refuse("an entry without dtype, shape and two data_offsets");
    }
    --depth_;
    return true;
  }
  bool start_array(size_t) override {
    if (depth_ != 2 || in_metadata_ || in_array_ != nullptr) return refuse("an array");
    Entry& e = entries.back();
    if (key_ == "shape" && !e.has_shape) {
      e.has_shape = true;
      values_.clear();
      in_array_ = &values_;
    } else if (key_ == "data_offsets" && !e.has_offsets) {
      e.has_offsets = true;
      in_array_ = &e.offsets;
    } else {
      return refuse("an array");
    }
    return true;
  }
  bool end_array() override {
    if (in_array_ == &values_)
      for (const uint64_t v : values_) {
        if (v > static_cast<uint64_t>(INT64_MAX)) return refuse("a huge extent");
        entries.back().shape.push_back(static_cast<int64_t>(v));
      }
    in_array_ = nullptr;
    return true;
  }
  bool parse_error(size_t position, const std::string&,
                   const nlohmann::detail::exception&) override {
    problem = str("no JSON at byte ", position);
    return false;
  }

 private:
  static constexpr size_t kMaxRank = 8;
  bool refuse(std::string_view what) {
    problem = str("found ", what, " at or after \"", key_.substr(0, 100), '"');
    return false;
  }
  int depth_ = 0;
  bool in_metadata_ = false;
  std::string key_;
  std::vector<uint64_t> values_;
  std::vector<uint64_t>* in_array_ = nullptr;
  std::set<std::string> names_;
};

class SafetensorsFile final : public TensorFile {
 public:
  explicit SafetensorsFile(const std::string& path) {
    path_ = path;
    std::error_code ec;
    if (!fs::is_directory(path, ec)) {
      add_file(path);
    } else if (fs::exists(fs::path(path) / kSingle, ec)) {
      add_file((fs::path(path) / kSingle).string());
    } else {
      for (const std::string& shard : shards()) add_file((fs::path(path) / shard).string());
    }
  }
  TensorFormat format() const override { return TensorFormat::kSafetensors; }

 private:
  struct Place {
    size_t file;
    uint64_t offset;
  };

  /// File names of the shards, each once, in order.
  std::set<std::string> shards() const {
    const fs::path index = fs::path(path_) / kIndex;
    std::error_code ec;
    RWKV_CHECK(fs::exists(index, ec), IoError, "opening ", path_, ": the folder has neither ",
               kSingle, " nor ", kIndex, "; expected a Hugging Face model folder");
    RWKV_CHECK(fs::file_size(index, ec) <= kMaxHeaderBytes, IoError, "opening ", index.string(),
               ": it is too large for an index");
    std::set<std::string> names;
    const std::string text = read_file(index.string());
    RWKV_CHECK(!json_deeper_than(text), IoError, "reading ", index.string(),
               ": it is nested too deep");
    try {
      const Json j = Json::parse(text);
      for (const auto& [tensor, file] : j.at("weight_map").items())
        names.insert(file.get<std::string>());
    } catch (const Json::exception& e) {
      throw IoError(str("reading ", index.string(), ": ", e.what()));
    }
    for (const std::string& n : names)
      RWKV_CHECK(!n.empty() && n.find_first_of("/\\") == std::string::npos && n != "." && n != "..",
                 IoError, "reading ", index.string(), ": refusing the shard '", n,
                 "': expected a file name without folders");
    RWKV_CHECK(!names.empty(), IoError, "reading ", index.string(), ": it lists no shards");
    return names;
  }

  void add_file(const std::string& path) {
    files_.push_back(ByteFile::open(path));
    const ByteFile& file = files_.back();
    file_bytes_ += file.size();
    const auto n = file.number<uint64_t>(0, "the header's length");
    RWKV_CHECK(n >= 2 && n <= kMaxHeaderBytes, IoError, "opening ", path,
               ": the header would have ", n, " bytes; this is no safetensors file, or damaged");
    const std::vector<std::byte> raw = file.read(8, n, "the header");
    RWKV_CHECK(raw[0] == std::byte{'{'}, IoError, "opening ", path,
               ": the header is no JSON object; this is no safetensors file, or damaged");
    HeaderParser parsed;
    const char* text = reinterpret_cast<const char*>(raw.data());
    const bool ok = Json::sax_parse(text, text + n, &parsed);
    RWKV_CHECK(ok && parsed.problem.empty(), IoError, "reading the header of ", path, ": ",
               parsed.problem);
    for (auto& m : parsed.metadata) header_.push_back({"metadata." + m.first, m.second});
    place(file, 8 + n, std::move(parsed.entries));
  }

  /// Checks that the tensors fill the file without gaps and overlaps, as the format demands.
  void place(const ByteFile& file, uint64_t begin, std::vector<HeaderParser::Entry> entries) {
    std::ranges::sort(entries, {},
                      [](const auto& e) { return std::pair(e.offsets[0], e.offsets[1]); });
    uint64_t end = 0;
    for (HeaderParser::Entry& e : entries) {
      const auto type = std::ranges::find(kTypes, e.dtype, &NamedType::name);
      RWKV_CHECK(type != kTypes.end(), IoError, "reading ", e.name, " of ", file.path(),
                 ": unknown type '", e.dtype.substr(0, 100), "'");
      const uint64_t bytes = checked_numel(e.shape, e.name, file.path()) * type->bytes;
      RWKV_CHECK(e.offsets[0] == end && e.offsets[1] >= end && e.offsets[1] - end == bytes, IoError,
                 "reading ", e.name, " of ", file.path(), ": bytes ", e.offsets[0], " to ",
                 e.offsets[1], " for shape ", shape_string(e.shape), " of ", e.dtype, ", expected ",
                 bytes, " bytes from ", end, "; the file is damaged");
      file.check_range(begin, e.offsets[1], e.name);
      places_.push_back({files_.size() - 1, begin + end});
      end = e.offsets[1];
      add_tensor({std::move(e.name), std::move(e.shape), type->type, e.dtype, bytes});
    }
    RWKV_CHECK(begin + end == file.size(), IoError, "opening ", file.path(),
               ": the tensors end at ", begin + end, ", the file at ", file.size(),
               "; it is truncated or damaged");
  }

  void read_values(size_t index, std::span<float> out) const override {
    const TensorInfo& t = tensors()[index];
    const Place& p = places_[index];
    decode_pieces(t.type, out, [&](uint64_t offset, std::span<std::byte> bytes) {
      files_[p.file].read(p.offset + offset, bytes, t.name);
    });
  }

  std::vector<ByteFile> files_;
  std::vector<Place> places_;
};

class SafetensorsWriter final : public TensorWriter {
 public:
  SafetensorsWriter(const std::string& path, std::vector<TensorPlan> plan,
                    const std::vector<std::pair<std::string, std::string>>& metadata)
      : plan_(std::move(plan)), target_(path), out_(target_.temp_path()) {
    nlohmann::ordered_json header;
    header["__metadata__"]["format"] = "pt";
    for (const auto& [key, value] : metadata) header["__metadata__"][key] = value;
    uint64_t end = 0;
    for (const TensorPlan& t : plan_) {
      const auto type = std::ranges::find(kTypes, t.type, &NamedType::type);
      RWKV_ASSERT(type != kTypes.end(), t.name);
      const uint64_t begin = end;
      end += static_cast<uint64_t>(shape_numel(t.shape)) * type->bytes;
      header[t.name] = {{"dtype", type->name}, {"shape", t.shape}, {"data_offsets", {begin, end}}};
    }
    std::string text = header.dump();
    text.append((8 - text.size() % 8) % 8, ' ');
    out_.number<uint64_t>(text.size());
    out_.text(text);
  }

  void write(std::span<const float> values) override {
    RWKV_ASSERT(next_ < plan_.size() &&
                    values.size() == static_cast<size_t>(shape_numel(plan_[next_].shape)),
                "tensor ", next_, " with ", values.size(), " values");
    encode_pieces(plan_[next_++].type, values,
                  [&](std::span<const std::byte> bytes) { out_.write(bytes); });
  }

  void finish() override {
    RWKV_ASSERT(next_ == plan_.size(), next_, " of ", plan_.size(), " tensors written");
    out_.close();
    target_.commit();
  }

 private:
  std::vector<TensorPlan> plan_;
  AtomicFile target_;
  ByteWriter out_;
  size_t next_ = 0;
};

}  // namespace

bool is_safetensors_folder(const std::string& path) {
  std::error_code ec;
  return fs::is_regular_file(fs::path(path) / kSingle, ec) ||
         fs::is_regular_file(fs::path(path) / kIndex, ec);
}

std::unique_ptr<TensorFile> open_safetensors(const std::string& path) {
  return std::make_unique<SafetensorsFile>(path);
}

std::unique_ptr<TensorWriter> create_safetensors(
    const std::string& path, std::vector<TensorPlan> plan,
    const std::vector<std::pair<std::string, std::string>>& metadata) {
  return std::make_unique<SafetensorsWriter>(path, std::move(plan), metadata);
}

}  // namespace rwkv
