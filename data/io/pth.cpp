// PyTorch state dicts: the zip files of today and the streams from before version 1.6.

#include <algorithm>
#include <unordered_map>

#include "data/io/atomic_file.h"
#include "data/io/byte_file.h"
#include "data/io/crc32.h"
#include "data/io/pickle.h"
#include "data/io/tensor_file.h"
#include "data/io/zip_file.h"

namespace rwkv {
namespace {

using Kind = PickledValue::Kind;

constexpr uint64_t kMaxPickleBytes = uint64_t{16} << 20;
/// A view may have more elements than its storage (stride 0), but not to fill the memory.
constexpr uint64_t kMaxExpanded = uint64_t{1} << 20;
/// Views whose elements lie further apart than this are read one by one.
constexpr uint64_t kSparse = 64;

/// Steps through the elements of a strided view in row-major order.
template <class Visit>
void for_each_index(const PickledTensor& t, const Visit& visit) {
  const size_t rank = t.shape.size();
  std::vector<int64_t> at(rank, 0);
  auto index = static_cast<uint64_t>(t.offset);
  for (;;) {
    visit(index);
    size_t d = rank;
    for (; d > 0; --d) {
      const auto stride = static_cast<uint64_t>(t.stride[d - 1]);
      index += stride;
      if (++at[d - 1] < t.shape[d - 1]) break;
      index -= stride * static_cast<uint64_t>(t.shape[d - 1]);
      at[d - 1] = 0;
    }
    if (d == 0) return;
  }
}

bool contiguous(const PickledTensor& t) {
  int64_t expected = 1;
  for (size_t d = t.shape.size(); d-- > 0;) {
    if (t.shape[d] != 1 && t.stride[d] != expected) return false;
    expected *= t.shape[d];
  }
  return true;
}

/// What both containers share: the dict of tensors, and views of storages.
class PthFile : public TensorFile {
 public:
  TensorFormat format() const override { return TensorFormat::kPth; }

 protected:
  /// All values of a storage, a piece at a time, compared with their checksum if there is one.
  virtual void stream_storage(size_t storage, std::span<float> out) const = 0;
  /// Bytes of a storage from `offset` on, without a check.
  virtual void read_storage(size_t storage, uint64_t offset, std::span<std::byte> out) const = 0;
  /// Reads all of a storage to compare it with its checksum, if there is one.
  virtual void check_storage(size_t storage) const = 0;

  void take_tensors(Pickle pickle) {
    pickle_ = std::move(pickle);
    checked_.assign(pickle_.storages.size(), false);
    const PickledValue& top = pickle_.values[pickle_.top];
    RWKV_CHECK(top.kind == Kind::kDict, IoError, "reading ", path_,
               ": the pickled object is no dict; expected a state_dict, names with tensors");
    const PickledValue* dict = &top;
    if (!holds_tensors(top))
      for (const char* name : {"state_dict", "model", "module"})
        if (const PickledValue* inner = member(top, name);
            inner != nullptr && holds_tensors(*inner)) {
          dict = inner;
          header_.push_back({"taken from", name});
          break;
        }
    // As in Python the last of equal keys counts.
    std::unordered_map<std::string_view, size_t> last;
    for (size_t i = 0; i + 1 < dict->items.size(); i += 2)
      if (key_of(*dict, i) != nullptr) last[key_of(*dict, i)->text] = i;
    size_t skipped = 0;
    for (size_t i = 0; i + 1 < dict->items.size(); i += 2) {
      const PickledValue* key = key_of(*dict, i);
      const PickledValue& v = pickle_.values[dict->items[i + 1]];
      if (key == nullptr || v.kind != Kind::kTensor) {
        if (key != nullptr && skipped < 20)
          notes_.push_back(str("skipped ", key->text.substr(0, 100), ": not a tensor"));
        ++skipped;
        continue;
      }
      if (last[key->text] == i) add(key->text, static_cast<size_t>(v.number));
    }
    if (skipped > 20) notes_.push_back(str("skipped ", skipped, " members that are no tensors"));
  }

  const Pickle& pickle() const { return pickle_; }
  uint64_t storage_bytes(size_t storage) const {
    const PickledStorage& s = pickle_.storages[storage];
    return tensor_bytes(s.type, static_cast<uint64_t>(s.numel));
  }

 private:
  const PickledValue* key_of(const PickledValue& dict, size_t i) const {
    const PickledValue& key = pickle_.values[dict.items[i]];
    return key.kind == Kind::kString ? &key : nullptr;
  }
  bool holds_tensors(const PickledValue& v) const {
    if (v.kind != Kind::kDict) return false;
    for (size_t i = 1; i < v.items.size(); i += 2)
      if (pickle_.values[v.items[i]].kind == Kind::kTensor) return true;
    return false;
  }
  const PickledValue* member(const PickledValue& dict, std::string_view name) const {
    for (size_t i = 0; i + 1 < dict.items.size(); i += 2)
      if (const PickledValue* key = key_of(dict, i); key != nullptr && key->text == name)
        return &pickle_.values[dict.items[i + 1]];
    return nullptr;
  }

  void add(const std::string& name, size_t tensor) {
    const PickledTensor& t = pickle_.tensors[tensor];
    const PickledStorage& s = pickle_.storages[t.storage];
    const uint64_t numel = checked_numel(t.shape, name, path_);
    RWKV_CHECK(numel <= std::max(static_cast<uint64_t>(s.numel), kMaxExpanded), IoError, "reading ",
               name, " of ", path_, ": shape ", shape_string(t.shape), " repeats ", s.numel,
               " stored values; no model does that");
    add_tensor({name, t.shape, s.type, std::string(tensor_type_name(s.type)),
                tensor_bytes(s.type, numel)});
    order_.push_back(tensor);
  }

  void read_values(size_t index, std::span<float> out) const override {
    if (out.empty()) return;
    const PickledTensor& t = pickle_.tensors[order_[index]];
    const TensorType type = pickle_.storages[t.storage].type;
    if (contiguous(t) && out.size() == static_cast<uint64_t>(pickle_.storages[t.storage].numel))
      return stream_storage(t.storage, out);
    if (!checked_[t.storage]) check_storage(t.storage);
    checked_[t.storage] = true;
    // Only what the view spans: its storage may be far larger, and viewed by many.
    const uint64_t width = tensor_bytes(type, 1);
    const auto first = static_cast<uint64_t>(t.offset);
    const auto read = [&](uint64_t element, std::span<std::byte> bytes) {
      read_storage(t.storage, element * width, bytes);
    };
    if (contiguous(t))
      return decode_pieces(type, out, [&](uint64_t offset, std::span<std::byte> bytes) {
        read(first + offset / width, bytes);
      });
    uint64_t last = first;
    for (size_t d = 0; d < t.shape.size(); ++d)
      last += static_cast<uint64_t>(t.shape[d] - 1) * static_cast<uint64_t>(t.stride[d]);
    float* to = out.data();
    std::vector<std::byte> bytes(width);
    if (last - first >= kSparse * out.size())
      return for_each_index(t, [&](uint64_t i) {
        read(i, bytes);
        decode_tensor(type, bytes, {to++, 1});
      });
    bytes.resize((last - first + 1) * width);
    read(first, bytes);
    for_each_index(t, [&](uint64_t i) {
      decode_tensor(type, std::span(bytes).subspan((i - first) * width, width), {to++, 1});
    });
  }

  Pickle pickle_;
  std::vector<size_t> order_;          ///< tensor i of the file is pickle_.tensors[order_[i]]
  mutable std::vector<bool> checked_;  ///< storages
};

class ZippedPth final : public PthFile {
 public:
  explicit ZippedPth(const std::string& path) : zip_(ZipFile::open(path)) {
    path_ = path;
    file_bytes_ = zip_.file().size();
    constexpr std::string_view kPickle = "/data.pkl";
    const ZipEntry* pickle = nullptr;
    for (const ZipEntry& e : zip_.entries()) {
      if (!e.name.ends_with(kPickle)) continue;
      RWKV_CHECK(pickle == nullptr, IoError, "opening ", path, ": there are two data.pkl in it");
      pickle = &e;
    }
    RWKV_CHECK(pickle != nullptr, IoError, "opening ", path, ": a zip archive without data.pkl; ",
               zip_.find("constants.pkl") ? "is it a TorchScript file? " : "",
               "expected a state_dict written by torch.save");
    root_ = pickle->name.substr(0, pickle->name.size() - kPickle.size());
    if (const ZipEntry* order = zip_.find(root_ + "/byteorder"); order && order->bytes <= 16) {
      const std::vector<std::byte> raw = zip_.read(*order);
      RWKV_CHECK(
          std::string_view(reinterpret_cast<const char*>(raw.data()), raw.size()).find("big") ==
              std::string_view::npos,
          IoError, "opening ", path, ": it was written on a big-endian machine");
    }
    RWKV_CHECK(pickle->bytes <= kMaxPickleBytes, IoError, "opening ", path, ": a data.pkl of ",
               pickle->bytes, " bytes is not sane");
    header_.push_back({"container", "zip"});
    header_.push_back({"archive root", root_});
    take_tensors(read_pickle(zip_.read(*pickle), str(pickle->name, " in ", path)));
    for (size_t s = 0; s < this->pickle().storages.size(); ++s) entry(s);
  }

 private:
  const ZipEntry& entry(size_t storage) const {
    const PickledStorage& s = pickle().storages[storage];
    const ZipEntry* e = zip_.find(str(root_, "/data/", s.key));
    RWKV_CHECK(e != nullptr, IoError, "reading ", path_, ": storage ", s.key,
               " is missing; the file is damaged");
    RWKV_CHECK(e->bytes == storage_bytes(storage), IoError, "reading ", path_, ": storage ", s.key,
               " has ", e->bytes, " bytes, expected ", storage_bytes(storage));
    return *e;
  }
  void read_storage(size_t storage, uint64_t offset, std::span<std::byte> out) const override {
    zip_.file().read(entry(storage).offset + offset, out, "a storage");
  }
  void check_storage(size_t storage) const override {
    const ZipEntry& e = entry(storage);
    if (e.crc == 0) return;
    std::vector<std::byte> piece(std::min<uint64_t>(e.bytes, 1 << 20));
    uint32_t crc = 0;
    for (uint64_t at = 0; at < e.bytes; at += piece.size()) {
      const std::span<std::byte> part =
          std::span(piece).first(std::min<uint64_t>(piece.size(), e.bytes - at));
      zip_.file().read(e.offset + at, part, e.name);
      crc = crc32(part, crc);
    }
    zip_.check_crc(e, crc);
  }
  void stream_storage(size_t storage, std::span<float> out) const override {
    const ZipEntry& e = entry(storage);
    uint32_t crc = 0;
    decode_pieces(pickle().storages[storage].type, out,
                  [&](uint64_t offset, std::span<std::byte> bytes) {
                    zip_.file().read(e.offset + offset, bytes, e.name);
                    crc = crc32(bytes, crc);
                  });
    zip_.check_crc(e, crc);
  }

  ZipFile zip_;
  std::string root_;
};

class LegacyPth final : public PthFile {
 public:
  explicit LegacyPth(const std::string& path) : file_(ByteFile::open(path)) {
    path_ = path;
    file_bytes_ = file_.size();
    const std::vector<std::byte> head =
        file_.read(0, std::min(file_.size(), kMaxPickleBytes), "the pickles");
    uint64_t at = 0;
    const auto next = [&](const char* what) {
      Pickle p = read_pickle(std::span(head).subspan(at), str(what, " of ", path));
      at += p.consumed;
      return p;
    };
    next("the magic number");
    const Pickle version = next("the version");
    RWKV_CHECK(version.values[version.top].kind == Kind::kInt &&
                   version.values[version.top].number == 1001,
               IoError, "opening ", path, ": unknown version of PyTorch's old file format");
    const Pickle system = next("the system's description");
    const auto& described = system.values[system.top];
    for (size_t i = 0; i + 1 < described.items.size(); i += 2) {
      const PickledValue& v = system.values[described.items[i + 1]];
      RWKV_CHECK(system.values[described.items[i]].text != "little_endian" ||
                     (v.kind == Kind::kBool && v.number == 1),
                 IoError, "opening ", path, ": it was written on a big-endian machine");
    }
    Pickle object = next("the object");
    const Pickle keys = next("the list of storages");
    place_storages(object, keys, at);
    header_.push_back({"container", "stream from before PyTorch 1.6"});
    take_tensors(std::move(object));
  }

 private:
  /// Per key of the list, in its order: u64 number of elements, the elements.
  void place_storages(const Pickle& object, const Pickle& keys, uint64_t at) {
    std::unordered_map<std::string, size_t> index;
    for (size_t i = 0; i < object.storages.size(); ++i) index[object.storages[i].key] = i;
    places_.assign(object.storages.size(), 0);
    const PickledValue& list = keys.values[keys.top];
    RWKV_CHECK(list.kind == Kind::kList, IoError, "reading ", path_, ": no list of storages");
    for (const uint32_t item : list.items) {
      const auto it = index.find(keys.values[item].text);
      RWKV_CHECK(it != index.end() && places_[it->second] == 0, IoError, "reading ", path_,
                 ": the list of storages does not fit the tensors");
      const PickledStorage& s = object.storages[it->second];
      const auto numel = file_.number<uint64_t>(at, str("storage ", s.key));
      RWKV_CHECK(numel == static_cast<uint64_t>(s.numel), IoError, "reading ", path_, ": storage ",
                 s.key, " has ", numel, " elements, expected ", s.numel);
      at += 8;
      places_[it->second] = at;
      // A count that has no place in the file has no place in 64 bits of bytes either.
      file_.check_range(at, numel, str("storage ", s.key));
      const uint64_t bytes = tensor_bytes(s.type, numel);
      file_.check_range(at, bytes, str("storage ", s.key));
      at += bytes;
    }
    for (size_t i = 0; i < places_.size(); ++i)
      RWKV_CHECK(places_[i] != 0, IoError, "reading ", path_, ": storage ", object.storages[i].key,
                 " is missing");
  }
  void stream_storage(size_t storage, std::span<float> out) const override {
    decode_pieces(pickle().storages[storage].type, out,
                  [&](uint64_t offset, std::span<std::byte> bytes) {
                    file_.read(places_[storage] + offset, bytes, "a storage");
                  });
  }
  void read_storage(size_t storage, uint64_t offset, std::span<std::byte> out) const override {
    file_.read(places_[storage] + offset, out, "a storage");
  }
  void check_storage(size_t) const override {}  // there are no checksums

  ByteFile file_;
  std::vector<uint64_t> places_;
};

std::string_view storage_class(TensorType type) {
  switch (type) {
    case TensorType::kF32:
      return "FloatStorage";
    case TensorType::kF16:
      return "HalfStorage";
    case TensorType::kBF16:
      return "BFloat16Storage";
    default:
      throw InternalError(str("a .pth with ", tensor_type_name(type)));
  }
}

/// The instructions that build a dict of tensors, each on a storage of its own.
std::string state_dict_pickle(std::span<const TensorPlan> plan) {
  ByteBuilder b;
  const auto text = [&](std::string_view t) {
    b.text("X");
    b.number(static_cast<uint32_t>(t.size()));
    b.text(t);
  };
  const auto number = [&](int64_t n) {
    if (n <= INT32_MAX) {
      b.text("J");
      b.number(static_cast<int32_t>(n));
    } else {
      b.text("\x8a\x08");
      b.number(n);
    }
  };
  const auto numbers = [&](const Shape& shape) {
    b.text("(");
    for (const int64_t n : shape) number(n);
    b.text("t");
  };
  b.text("\x80\x02}(");
  for (size_t i = 0; i < plan.size(); ++i) {
    const TensorPlan& t = plan[i];
    Shape stride(t.shape.size(), 1);
    for (size_t d = stride.size(); d-- > 1;) stride[d - 1] = stride[d] * t.shape[d];
    text(t.name);
    b.text("ctorch._utils\n_rebuild_tensor_v2\n((");
    text("storage");
    b.text(str("ctorch\n", storage_class(t.type), "\n"));
    text(std::to_string(i));
    text("cpu");
    number(shape_numel(t.shape));
    b.text("tQ");
    number(0);
    numbers(t.shape);
    numbers(stride);
    b.text(
        "\x89"
        "ccollections\nOrderedDict\n)RtR");
  }
  b.text("u.");
  return b.bytes;
}

class PthWriter final : public TensorWriter {
 public:
  PthWriter(const std::string& path, std::vector<TensorPlan> plan)
      : plan_(std::move(plan)), target_(path), out_(target_.temp_path()), zip_(out_) {
    zip_.add_text("archive/data.pkl", state_dict_pickle(plan_));
    zip_.add_text("archive/byteorder", "little");
  }
  void write(std::span<const float> values) override {
    RWKV_ASSERT(next_ < plan_.size() &&
                    values.size() == static_cast<size_t>(shape_numel(plan_[next_].shape)),
                "tensor ", next_, " with ", values.size(), " values");
    // The checksum stands ahead of the data: they are made twice, not kept.
    const TensorType type = plan_[next_].type;
    uint32_t crc = 0;
    encode_pieces(type, values, [&](auto bytes) { crc = crc32(bytes, crc); });
    zip_.begin(str("archive/data/", next_++), tensor_bytes(type, values.size()), crc);
    encode_pieces(type, values, [&](auto bytes) { out_.write(bytes); });
  }
  void finish() override {
    RWKV_ASSERT(next_ == plan_.size(), next_, " of ", plan_.size(), " tensors written");
    zip_.add_text("archive/version", "3\n");  // PyTorch refuses the file without it
    zip_.finish();
    out_.close();
    target_.commit();
  }

 private:
  std::vector<TensorPlan> plan_;
  AtomicFile target_;
  ByteWriter out_;
  ZipWriter zip_;
  size_t next_ = 0;
};

}  // namespace

std::unique_ptr<TensorFile> open_pth(const std::string& path) {
  const ByteFile file = ByteFile::open(path);
  RWKV_CHECK(file.size() >= 2, IoError, "opening ", path, ": too short for a .pth");
  if (file.number<uint16_t>(0, "the first bytes") == 0x4b50)  // "PK"
    return std::make_unique<ZippedPth>(path);
  return std::make_unique<LegacyPth>(path);
}

std::unique_ptr<TensorWriter> create_pth(const std::string& path, std::vector<TensorPlan> plan) {
  return std::make_unique<PthWriter>(path, std::move(plan));
}

}  // namespace rwkv
