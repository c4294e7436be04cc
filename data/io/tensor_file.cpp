#include "data/io/tensor_file.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <filesystem>

#include "data/io/byte_file.h"
#include "data/io/hdf5_shards.h"
#include "data/io/pickle.h"

namespace rwkv {
namespace {

constexpr size_t kMaxNameBytes = 4096;
constexpr uint64_t kMaxElements = uint64_t{1} << 48;

bool starts(std::span<const std::byte> head, std::string_view magic) {
  return head.size() >= magic.size() && std::memcmp(head.data(), magic.data(), magic.size()) == 0;
}

}  // namespace

std::string_view tensor_format_name(TensorFormat format) {
  constexpr std::array<std::string_view, 4> kNames = {"HDF5", "pth", "safetensors", "GGUF"};
  return kNames[static_cast<size_t>(format)];
}

uint64_t checked_numel(const Shape& shape, std::string_view name, const std::string& path) {
  uint64_t n = 1;
  for (const int64_t d : shape) {
    RWKV_CHECK(d >= 0 && (d == 0 || n <= kMaxElements / static_cast<uint64_t>(d)), IoError,
               "reading ", name, " of ", path, ": shape ", shape_string(shape),
               " is not sane; the file is damaged");
    n *= static_cast<uint64_t>(d);
  }
  return n;
}

std::optional<size_t> TensorFile::find(std::string_view name) const {
  const auto it = index_.find(std::string(name));
  if (it == index_.end()) return std::nullopt;
  return it->second;
}

void TensorFile::add_tensor(TensorInfo info) {
  RWKV_CHECK(!info.name.empty() && info.name.size() <= kMaxNameBytes &&
                 info.name.find('\0') == std::string::npos,
             IoError, "reading ", path_, ": a tensor's name has ", info.name.size(),
             " bytes or holds a NUL; the file is damaged");
  checked_numel(info.shape, info.name, path_);
  RWKV_CHECK(index_.emplace(info.name, tensors_.size()).second, IoError, "reading ", path_,
             ": there are two tensors called ", info.name);
  tensors_.push_back(std::move(info));
}

void TensorFile::read(size_t index, std::span<float> out) const {
  const TensorInfo& t = tensors_.at(index);
  RWKV_CHECK(t.type != TensorType::kOther, IoError, "reading ", t.name, " of ", path_, ": type ",
             t.type_name, " is not supported; convert the file to f32, f16 or bf16 first");
  RWKV_CHECK(out.size() == checked_numel(t.shape, t.name, path_), ShapeError, "reading ", t.name,
             " of ", path_, ": it has shape ", shape_string(t.shape), ", ", out.size(),
             " values were asked for");
  read_values(index, out);
}

std::unique_ptr<TensorFile> open_tensor_file(const std::string& path) {
  std::error_code ec;
  if (std::filesystem::is_directory(path, ec))
    return is_shard_folder(path) ? open_hdf5_shards(path) : open_safetensors(path);
  std::array<std::byte, 16> buffer{};
  std::span<std::byte> head;
  {
    const ByteFile file = ByteFile::open(path);
    RWKV_CHECK(file.size() > 0, IoError, "opening ", path, ": the file is empty");
    head = std::span(buffer).first(std::min<uint64_t>(buffer.size(), file.size()));
    file.read(0, head, "the first bytes");
  }
  if (starts(head, "\x89HDF\r\n\x1a\n")) return open_hdf5_tensors(path);
  if (starts(head, "GGUF")) return open_gguf(path);
  if (starts(head, "PK\x03\x04") || starts(head, kLegacyTorchMagic)) return open_pth(path);
  // safetensors has no magic: the length of the header, then the header.
  if (head.size() > 8 && head[8] == std::byte{'{'}) return open_safetensors(path);
  RWKV_CHECK(!starts(head, "fmgg") && !starts(head, "lmgg") && !starts(head, "tjgg"), IoError,
             "opening ", path, ": this is an old ggml file (rwkv.cpp); convert from the .pth");
  throw IoError(str("opening ", path,
                    ": this is none of HDF5, .pth, safetensors and GGUF by its first bytes; is it "
                    "a model file, and complete?"));
}

}  // namespace rwkv
