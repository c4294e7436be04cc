#include "data/io/gguf.h"

#include <algorithm>
#include <array>
#include <map>

#include "data/io/atomic_file.h"
#include "data/io/byte_file.h"

namespace rwkv {
namespace {

constexpr uint32_t kVersion = 3;
constexpr uint64_t kAlignment = 32;
constexpr uint64_t kMaxHeaderBytes = uint64_t{64} << 20;  // five times that of large vocabularies
constexpr size_t kMaxRank = 4;

enum ValueType : uint32_t {
  kU8,
  kI8,
  kU16,
  kI16,
  kU32,
  kI32,
  kF32,
  kBool,
  kString,
  kArray,
  kU64,
  kI64,
  kF64
};
constexpr std::array<uint64_t, 13> kWidths = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};

/// Types of tensors by their numbers, with the block they are stored in; "" where none is known.
struct BlockType {
  std::string_view name;
  TensorType type;
  uint64_t block, bytes;
};
constexpr BlockType kUnknown = {"", TensorType::kOther, 1, 0};
constexpr std::array<BlockType, 31> kTypes = {{{"F32", TensorType::kF32, 1, 4},
                                               {"F16", TensorType::kF16, 1, 2},
                                               {"Q4_0", TensorType::kOther, 32, 18},
                                               {"Q4_1", TensorType::kOther, 32, 20},
                                               kUnknown,
                                               kUnknown,
                                               {"Q5_0", TensorType::kOther, 32, 22},
                                               {"Q5_1", TensorType::kOther, 32, 24},
                                               {"Q8_0", TensorType::kQ8_0, 32, 34},
                                               {"Q8_1", TensorType::kOther, 32, 36},
                                               {"Q2_K", TensorType::kOther, 256, 84},
                                               {"Q3_K", TensorType::kOther, 256, 110},
                                               {"Q4_K", TensorType::kOther, 256, 144},
                                               {"Q5_K", TensorType::kOther, 256, 176},
                                               {"Q6_K", TensorType::kOther, 256, 210},
                                               {"Q8_K", TensorType::kOther, 256, 292},
                                               kUnknown,
                                               kUnknown,
                                               kUnknown,
                                               kUnknown,
                                               kUnknown,
                                               kUnknown,
                                               kUnknown,
                                               kUnknown,
                                               {"I8", TensorType::kI8, 1, 1},
                                               {"I16", TensorType::kI16, 1, 2},
                                               {"I32", TensorType::kI32, 1, 4},
                                               {"I64", TensorType::kI64, 1, 8},
                                               {"F64", TensorType::kF64, 1, 8},
                                               kUnknown,
                                               {"BF16", TensorType::kBF16, 1, 2}}};

/// Reads the header in order, a piece of the file at a time.
class HeaderReader {
 public:
  explicit HeaderReader(const ByteFile& file) : file_(file) {}

  void read(std::span<std::byte> out) {
    while (!out.empty()) {
      if (used_ == buffer_.size()) refill();
      const size_t n = std::min(out.size(), buffer_.size() - used_);
      std::memcpy(out.data(), buffer_.data() + used_, n);
      used_ += n;
      out = out.subspan(n);
    }
  }
  template <class T>
  T number() {
    std::byte raw[sizeof(T)];
    read(raw);
    T value;
    std::memcpy(&value, raw, sizeof(T));
    return value;
  }
  std::string text() {
    const auto n = number<uint64_t>();
    need(n);
    RWKV_CHECK(n <= kMaxHeaderBytes, IoError, "reading the header of ", file_.path(),
               ": a text of ", n, " bytes; the file is damaged");
    std::string s(n, '\0');
    read(std::as_writable_bytes(std::span(s)));
    return s;
  }
  /// Throws unless so many bytes can follow: ahead of every allocation.
  void need(uint64_t bytes) const { file_.check_range(position(), bytes, "the header"); }
  void skip(uint64_t bytes) {
    need(bytes);
    const uint64_t to = position() + bytes;
    begin_ = to;
    buffer_.clear();
    used_ = 0;
  }
  uint64_t position() const { return begin_ + used_; }
  uint64_t remaining() const { return file_.size() - position(); }

 private:
  void refill() {
    constexpr uint64_t kPiece = 1 << 16;
    begin_ += used_;
    used_ = 0;
    RWKV_CHECK(begin_ < file_.size(), IoError, "reading the header of ", file_.path(),
               ": the file ends inside of it; it is truncated");
    RWKV_CHECK(begin_ < kMaxHeaderBytes, IoError, "reading the header of ", file_.path(),
               ": it is longer than ", kMaxHeaderBytes, " bytes; the file is damaged");
    buffer_ = file_.read(begin_, std::min(kPiece, file_.size() - begin_), "the header");
  }
  const ByteFile& file_;
  uint64_t begin_ = 0;  ///< of the buffer in the file
  size_t used_ = 0;
  std::vector<std::byte> buffer_;
};

class OpenGguf final : public GgufFile {
 public:
  explicit OpenGguf(const std::string& path) : file_(ByteFile::open(path)) {
    path_ = path;
    file_bytes_ = file_.size();
    HeaderReader in(file_);
    RWKV_CHECK(in.number<uint32_t>() == 0x46554747, IoError, "opening ", path, ": no GGUF file");
    const auto version = in.number<uint32_t>();
    RWKV_CHECK(version == 2 || version == kVersion, IoError, "opening ", path, ": GGUF version ",
               version, ", expected 2 or 3, little-endian");
    const auto tensor_count = in.number<uint64_t>(), key_count = in.number<uint64_t>();
    // A key needs 13 bytes, a tensor 25: anything else is refused before the loops.
    RWKV_CHECK(key_count <= in.remaining() / 13 && tensor_count <= in.remaining() / 25, IoError,
               "opening ", path, ": ", key_count, " keys and ", tensor_count,
               " tensors do not fit into the file; it is damaged");
    header_.push_back({"version", std::to_string(version)});
    for (uint64_t i = 0; i < key_count; ++i) read_key(in);
    std::vector<uint64_t> offsets;
    std::vector<TensorInfo> infos;
    for (uint64_t i = 0; i < tensor_count; ++i) read_info(in, infos, offsets);
    place(in.position(), std::move(infos), offsets);
  }

  std::optional<int64_t> integer(std::string_view key) const override {
    const Value* v = find_key(key);
    if (v == nullptr || v->is_array || v->type == kString || v->type == kF32 || v->type == kF64)
      return std::nullopt;
    return v->integers[0];
  }
  std::optional<double> real(std::string_view key) const override {
    const Value* v = find_key(key);
    if (v == nullptr || v->is_array || (v->type != kF32 && v->type != kF64)) return std::nullopt;
    return v->real;
  }
  std::optional<std::string> text(std::string_view key) const override {
    const Value* v = find_key(key);
    if (v == nullptr || v->is_array || v->type != kString) return std::nullopt;
    return v->texts[0];
  }
  std::vector<std::string> texts(std::string_view key) const override {
    const Value* v = find_key(key);
    return v != nullptr && v->is_array ? v->texts : std::vector<std::string>{};
  }
  std::vector<int64_t> integers(std::string_view key) const override {
    const Value* v = find_key(key);
    return v != nullptr && v->is_array ? v->integers : std::vector<int64_t>{};
  }

 private:
  struct Value {
    uint32_t type = 0;  ///< of the elements, for arrays
    bool is_array = false;
    std::vector<int64_t> integers;
    std::vector<std::string> texts;
    double real = 0;
  };
  const Value* find_key(std::string_view key) const {
    const auto it = keys_.find(key);
    return it == keys_.end() ? nullptr : &it->second;
  }

  static int64_t integer_of(HeaderReader& in, uint32_t type) {
    switch (type) {
      case kU8:
        return in.number<uint8_t>();
      case kBool:
        return in.number<uint8_t>() != 0 ? 1 : 0;
      case kI8:
        return in.number<int8_t>();
      case kU16:
        return in.number<uint16_t>();
      case kI16:
        return in.number<int16_t>();
      case kU32:
        return in.number<uint32_t>();
      case kI32:
        return in.number<int32_t>();
      default:
        return static_cast<int64_t>(in.number<uint64_t>());
    }
  }

  void read_key(HeaderReader& in) {
    std::string key = in.text();
    RWKV_CHECK(!key.empty() && key.size() < 65536, IoError, "reading the header of ", path_,
               ": a key of ", key.size(), " bytes; the file is damaged");
    Value v;
    v.type = in.number<uint32_t>();
    std::string shown;
    if (v.type == kArray) {
      v.is_array = true;
      v.type = in.number<uint32_t>();
      const auto n = in.number<uint64_t>();
      RWKV_CHECK(v.type < kWidths.size() && v.type != kArray, IoError, "reading key ", key, " of ",
                 path_, ": an array of type ", v.type, " is not supported");
      const uint64_t least = v.type == kString ? 8 : kWidths[v.type];
      RWKV_CHECK(n <= in.remaining() / least, IoError, "reading key ", key, " of ", path_, ": ", n,
                 " elements do not fit into the file; it is damaged");
      if (v.type == kString)
        for (uint64_t i = 0; i < n; ++i) v.texts.push_back(in.text());
      else if (v.type == kF32 || v.type == kF64)
        in.skip(n * kWidths[v.type]);  // scores of tokens: nothing here uses them
      else
        for (uint64_t i = 0; i < n; ++i) v.integers.push_back(integer_of(in, v.type));
      shown = str("array of ", n);
    } else {
      RWKV_CHECK(v.type < kWidths.size(), IoError, "reading key ", key, " of ", path_, ": type ",
                 v.type, " is not one of GGUF's; the file is damaged");
      if (v.type == kString) {
        v.texts.push_back(in.text());
        shown = v.texts[0];
      } else if (v.type == kF32 || v.type == kF64) {
        v.real = v.type == kF32 ? static_cast<double>(in.number<float>()) : in.number<double>();
        shown = str(v.real);
      } else {
        v.integers.push_back(integer_of(in, v.type));
        shown = v.type == kBool ? (v.integers[0] != 0 ? "true" : "false") : str(v.integers[0]);
      }
    }
    header_.push_back({key, shown});
    RWKV_CHECK(keys_.emplace(std::move(key), std::move(v)).second, IoError,
               "reading the header of ", path_, ": key ", header_.back().first, " comes twice");
  }

  void read_info(HeaderReader& in, std::vector<TensorInfo>& infos, std::vector<uint64_t>& offsets) {
    TensorInfo t{in.text(), {}, TensorType::kOther, "", 0};
    const auto rank = in.number<uint32_t>();
    RWKV_CHECK(rank <= kMaxRank, IoError, "reading ", t.name.substr(0, 100), " of ", path_, ": ",
               rank, " dimensions, expected up to 4; the file is damaged");
    for (uint32_t d = 0; d < rank; ++d) {
      const auto n = in.number<uint64_t>();
      RWKV_CHECK(n <= static_cast<uint64_t>(INT64_MAX), IoError, "reading ", t.name.substr(0, 100),
                 " of ", path_, ": an extent of ", n, "; the file is damaged");
      t.shape.insert(t.shape.begin(), static_cast<int64_t>(n));
    }
    const auto number = in.number<uint32_t>();
    const BlockType& type = number < kTypes.size() ? kTypes[number] : kUnknown;
    t.type = type.type;
    t.type_name = type.name.empty() ? str("type ", number) : std::string(type.name);
    const uint64_t numel = checked_numel(t.shape, t.name, path_);
    const uint64_t row = t.shape.empty() ? 1 : static_cast<uint64_t>(t.shape.back());
    RWKV_CHECK(row % type.block == 0, IoError, "reading ", t.name, " of ", path_, ": rows of ", row,
               " are no multiple of the block of ", t.type_name);
    t.stored_bytes = numel / type.block * type.bytes;
    offsets.push_back(in.number<uint64_t>());
    infos.push_back(std::move(t));
  }

  void place(uint64_t header_end, std::vector<TensorInfo> infos,
             const std::vector<uint64_t>& offsets) {
    uint64_t alignment = kAlignment;
    if (const auto a = integer("general.alignment")) {
      RWKV_CHECK(*a >= 1 && *a <= 1 << 20, IoError, "opening ", path_, ": general.alignment is ",
                 *a, "; the file is damaged");
      alignment = static_cast<uint64_t>(*a);
    }
    const uint64_t begin = (header_end + alignment - 1) / alignment * alignment;
    struct Range {
      uint64_t begin, end;
      size_t tensor;
    };
    std::vector<Range> ranges;
    for (size_t i = 0; i < infos.size(); ++i) {
      RWKV_CHECK(offsets[i] <= file_.size() && offsets[i] % alignment == 0, IoError, "reading ",
                 infos[i].name, " of ", path_, ": offset ", offsets[i], "; the file is damaged");
      file_.check_range(begin + offsets[i], infos[i].stored_bytes, infos[i].name);
      places_.push_back(begin + offsets[i]);
      ranges.push_back({offsets[i], offsets[i] + infos[i].stored_bytes, i});
    }
    std::ranges::sort(ranges, {}, [](const Range& r) { return std::pair(r.begin, r.end); });
    for (size_t i = 1; i < ranges.size(); ++i)
      RWKV_CHECK(ranges[i - 1].end <= ranges[i].begin, IoError, "opening ", path_, ": ",
                 infos[ranges[i - 1].tensor].name, " and ", infos[ranges[i].tensor].name,
                 " overlap; the file is damaged");
    for (TensorInfo& t : infos) add_tensor(std::move(t));
  }

  void read_values(size_t index, std::span<float> out) const override {
    const TensorInfo& t = tensors()[index];
    decode_pieces(t.type, out, [&](uint64_t offset, std::span<std::byte> bytes) {
      file_.read(places_[index] + offset, bytes, t.name);
    });
  }

  ByteFile file_;
  std::map<std::string, Value, std::less<>> keys_;
  std::vector<uint64_t> places_;
};

void put_text(ByteBuilder& b, std::string_view t) {
  b.number<uint64_t>(t.size());
  b.text(t);
}

void put_value(ByteBuilder& b, const GgufValue& value) {
  std::visit(
      [&](const auto& v) {
        using T = std::decay_t<decltype(v)>;
        if constexpr (std::is_same_v<T, uint32_t>) {
          b.number<uint32_t>(kU32);
          b.number(v);
        } else if constexpr (std::is_same_v<T, int32_t>) {
          b.number<uint32_t>(kI32);
          b.number(v);
        } else if constexpr (std::is_same_v<T, float>) {
          b.number<uint32_t>(kF32);
          b.number(v);
        } else if constexpr (std::is_same_v<T, bool>) {
          b.number<uint32_t>(kBool);
          b.number<uint8_t>(v ? 1 : 0);
        } else if constexpr (std::is_same_v<T, std::string>) {
          b.number<uint32_t>(kString);
          put_text(b, v);
        } else {
          b.number<uint32_t>(kArray);
          b.number<uint32_t>(std::is_same_v<T, std::vector<int32_t>> ? kI32 : kString);
          b.number<uint64_t>(v.size());
          for (const auto& x : v) {
            if constexpr (std::is_same_v<T, std::vector<int32_t>>)
              b.number(x);
            else
              put_text(b, x);
          }
        }
      },
      value);
}

class GgufWriter final : public TensorWriter {
 public:
  GgufWriter(const std::string& path, const std::vector<std::pair<std::string, GgufValue>>& keys,
             std::vector<TensorPlan> plan)
      : plan_(std::move(plan)), target_(path), out_(target_.temp_path()) {
    ByteBuilder b;
    b.text("GGUF");
    b.number(kVersion);
    b.number<uint64_t>(plan_.size());
    b.number<uint64_t>(keys.size());
    for (const auto& [key, value] : keys) {
      put_text(b, key);
      put_value(b, value);
    }
    uint64_t offset = 0;
    for (const TensorPlan& t : plan_) {
      const auto type = std::ranges::find(kTypes, t.type, &BlockType::type);
      RWKV_ASSERT(type != kTypes.end() && !t.shape.empty() && t.shape.size() <= kMaxRank &&
                      t.shape.back() % static_cast<int64_t>(type->block) == 0,
                  t.name, " ", shape_string(t.shape));
      put_text(b, t.name);
      b.number(static_cast<uint32_t>(t.shape.size()));
      for (size_t d = t.shape.size(); d-- > 0;) b.number(static_cast<uint64_t>(t.shape[d]));
      b.number(static_cast<uint32_t>(type - kTypes.begin()));
      b.number(offset);
      offset += tensor_bytes(t.type, static_cast<uint64_t>(shape_numel(t.shape)));
      offset = (offset + kAlignment - 1) / kAlignment * kAlignment;
    }
    out_.text(b.bytes);
    out_.pad_to(kAlignment);
  }

  void write(std::span<const float> values) override {
    RWKV_ASSERT(next_ < plan_.size() &&
                    values.size() == static_cast<size_t>(shape_numel(plan_[next_].shape)),
                "tensor ", next_, " with ", values.size(), " values");
    encode_pieces(plan_[next_++].type, values,
                  [&](std::span<const std::byte> bytes) { out_.write(bytes); });
    out_.pad_to(kAlignment);
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

std::unique_ptr<GgufFile> open_gguf_file(const std::string& path) {
  return std::make_unique<OpenGguf>(path);
}

std::unique_ptr<TensorFile> open_gguf(const std::string& path) {
  return open_gguf_file(path);
}

std::unique_ptr<TensorWriter> create_gguf(
    const std::string& path, const std::vector<std::pair<std::string, GgufValue>>& keys,
    std::vector<TensorPlan> plan) {
  return std::make_unique<GgufWriter>(path, keys, std::move(plan));
}

}  // namespace rwkv
