// HDF5 files as files of tensors: every numeric dataset by its path.

#include <filesystem>

#include "data/io/crc32.h"
#include "data/io/hdf5_shards.h"
#include "data/io/seal.h"
#include "data/io/tensor_file.h"
#include "data/io/trial.h"
#include "kernels/core/error.h"

namespace rwkv {
namespace {

TensorType type_of(H5Type type) {
  switch (type) {
    case H5Type::kF16:
      return TensorType::kF16;
    case H5Type::kF32:
      return TensorType::kF32;
    case H5Type::kF64:
      return TensorType::kF64;
    case H5Type::kI8:
      return TensorType::kI8;
    case H5Type::kU8:
      return TensorType::kU8;
    case H5Type::kI16:
      return TensorType::kI16;
    case H5Type::kI32:
      return TensorType::kI32;
    case H5Type::kI64:
      return TensorType::kI64;
    default:
      return TensorType::kOther;
  }
}

constexpr uint64_t kMostBytes = uint64_t{32} << 20;  // of a vocabulary

/// Everything that this program reads of a file; the values only of what a file of its size can
/// hold, and with `sealed` not of tensors that lie in one piece: those are only copied.
void read_everything(const std::string& path, bool sealed) {
  const Hdf5File file = Hdf5File::open(path);
  std::error_code ec;
  const uint64_t most = std::filesystem::file_size(path, ec) / 2;
  std::vector<float> values;
  file.has_attr("", kSealedAttribute);
  for (const std::string& name : file.list_datasets()) {
    if (file.type(name) == H5Type::kString) {
      file.read_string(name);
      continue;
    }
    const uint64_t numel = checked_numel(file.shape(name), name, path);
    // Vocabularies: compressed, and in chunks that may be far larger than they are.
    if (file.type(name) == H5Type::kU8 && numel <= kMostBytes) file.read<uint8_t>(name);
    if (file.type(name) != H5Type::kF32 || numel > most) continue;
    if (file.has_attr(name, "crc32")) file.attr_int(name, "crc32");
    if (sealed && file.data_offset(name) >= 0) continue;
    values.resize(numel);
    file.read_into<float>(name, values);
  }
}

/// The HDF5 library crashes on some damaged files and asks for absurd amounts of memory on others.
/// A seal tells damage apart before it sees the file, but whoever makes a file on purpose can seal
/// it: a child process reads it first, which may fail in our place.
class Hdf5Tensors final : public TensorFile {
 public:
  explicit Hdf5Tensors(const std::string& path) : file_(open_untrusted_hdf5(path)) {
    path_ = path;
    std::error_code ec;
    file_bytes_ = std::filesystem::file_size(path, ec);
    for (const std::string& name : file_.list_datasets()) {
      const H5Type type = file_.type(name);
      if (type == H5Type::kString) {
        header_.push_back({name, file_.read_string(name)});
        continue;
      }
      const Shape shape = file_.shape(name);
      const uint64_t numel = checked_numel(shape, name, path);
      add_tensor({name, shape, type_of(type), std::string(h5type_name(type)),
                  tensor_bytes(type_of(type), numel)});
    }
  }
  TensorFormat format() const override { return TensorFormat::kHdf5; }

 private:
  void read_values(size_t index, std::span<float> out) const override {
    const TensorInfo& t = tensors()[index];
    RWKV_CHECK(t.type == TensorType::kF32, IoError, "reading ", t.name, " of ", path_, ": it is ",
               t.type_name, ", expected f32");
    file_.read_into<float>(t.name, t.shape, out);
    if (file_.has_attr(t.name, "crc32"))
      RWKV_CHECK(static_cast<uint32_t>(file_.attr_int(t.name, "crc32")) ==
                     crc32_of(std::span<const float>(out)),
                 IoError, "loading ", t.name, " from ", path_,
                 ": the checksum does not match: the file is corrupt; use another copy");
  }

  Hdf5File file_;
};

}  // namespace

Hdf5File open_untrusted_hdf5(const std::string& path) {
  const bool sealed = has_seal(path);
  if (sealed) check_seal(path, "");
  try_in_child(path, [&] { read_everything(path, sealed); });
  return Hdf5File::open(path);
}

std::unique_ptr<TensorFile> open_hdf5_tensors(const std::string& path) {
  return std::make_unique<Hdf5Tensors>(path);
}

}  // namespace rwkv
