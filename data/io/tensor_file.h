#pragma once
/// Files of named tensors, whoever wrote them: one interface for reading .pth, safetensors, GGUF
/// and HDF5, one for writing the first three.
///
/// Reading believes nothing: offsets, sizes and names are checked against the file before memory
/// is allocated, what is allocated is bounded by a small multiple of the file's size, and every
/// defect is an IoError. Nothing in a file is ever executed, and no name in a file is used as a
/// path (but for the shards of a Hugging Face folder, plain file names in the same folder).

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "data/io/hdf5_file.h"
#include "data/io/tensor_type.h"

namespace rwkv {

struct TensorInfo {
  std::string name;
  Shape shape;            ///< slowest dimension first
  TensorType type;        ///< kOther: cannot be read
  std::string type_name;  ///< as the file calls it
  uint64_t stored_bytes;  ///< in the file
};

enum class TensorFormat : uint8_t { kHdf5, kPth, kSafetensors, kGguf };
std::string_view tensor_format_name(TensorFormat format);  ///< "HDF5", "pth", ...

class TensorFile {
 public:
  virtual ~TensorFile() = default;
  TensorFile() = default;
  TensorFile(const TensorFile&) = delete;
  TensorFile& operator=(const TensorFile&) = delete;

  virtual TensorFormat format() const = 0;
  const std::string& path() const { return path_; }
  uint64_t file_bytes() const { return file_bytes_; }  ///< of all shards
  std::span<const TensorInfo> tensors() const { return tensors_; }
  std::optional<size_t> find(std::string_view name) const;
  /// Keys and values for people: the header without its tensors.
  std::span<const std::pair<std::string, std::string>> header() const { return header_; }
  /// What was skipped or looks odd, for people.
  std::span<const std::string> notes() const { return notes_; }

  /// All values of a tensor, row-major, as f32 (see decode_tensor). Throws IoError for damage and
  /// for types that cannot be read, ShapeError unless out has the tensor's number of elements.
  void read(size_t index, std::span<float> out) const;

 protected:
  /// Throws IoError if the name is taken or no sane name.
  void add_tensor(TensorInfo info);
  virtual void read_values(size_t index, std::span<float> out) const = 0;

  std::string path_;
  uint64_t file_bytes_ = 0;
  std::vector<std::pair<std::string, std::string>> header_;
  std::vector<std::string> notes_;

 private:
  std::vector<TensorInfo> tensors_;
  std::unordered_map<std::string, size_t> index_;
};

/// Opens by content, not by name. A folder is a checkpoint in several files (hdf5_shards.h) or
/// taken for a Hugging Face one: model.safetensors, or the shards that model.safetensors.index.json
/// lists. Throws IoError, also for formats that are recognised and not read.
std::unique_ptr<TensorFile> open_tensor_file(const std::string& path);
/// A folder with model.safetensors or model.safetensors.index.json.
bool is_safetensors_folder(const std::string& path);

std::unique_ptr<TensorFile> open_safetensors(const std::string& path);
std::unique_ptr<TensorFile> open_pth(const std::string& path);
std::unique_ptr<TensorFile> open_gguf(const std::string& path);
/// All numeric datasets of any HDF5 file, by their paths.
std::unique_ptr<TensorFile> open_hdf5_tensors(const std::string& path);

/// Product of the extents. Throws IoError if one is negative or the product exceeds 2^48.
uint64_t checked_numel(const Shape& shape, std::string_view name, const std::string& path);

/// What a file to be written will hold, in the order of writing.
struct TensorPlan {
  std::string name;
  Shape shape;
  TensorType type;  ///< one that encode_tensor has
};

/// Writes a tensor file: every planned tensor once, in the order of the plan, then finish(). The
/// target appears complete or not at all (AtomicFile).
class TensorWriter {
 public:
  virtual ~TensorWriter() = default;
  /// The next tensor of the plan. Throws IoError, InternalError for a wrong number of values.
  virtual void write(std::span<const float> values) = 0;
  /// Throws IoError; InternalError if tensors are missing.
  virtual void finish() = 0;
};

/// Readable by torch.load(weights_only=True): a plain dict of name to tensor.
std::unique_ptr<TensorWriter> create_pth(const std::string& path, std::vector<TensorPlan> plan);
/// With {"format": "pt"} and `metadata` in its header. Tensors should come with the widest types
/// first.
std::unique_ptr<TensorWriter> create_safetensors(
    const std::string& path, std::vector<TensorPlan> plan,
    const std::vector<std::pair<std::string, std::string>>& metadata = {});

}  // namespace rwkv
