#include "data/io/byte_file.h"

#include <algorithm>

namespace rwkv {

ByteFile ByteFile::open(const std::string& path) {
  ByteFile f;
  f.file_ = std::make_unique<PosixReader>(path);
  return f;
}

void ByteFile::check_range(uint64_t offset, uint64_t bytes, std::string_view what) const {
  RWKV_CHECK(offset <= size() && bytes <= size() - offset, IoError, "reading ", what, " of ",
             path(), ": it should be ", bytes, " bytes at ", offset, ", but the file has ", size(),
             " bytes: it is truncated or damaged");
}

void ByteFile::read(uint64_t offset, std::span<std::byte> out, std::string_view what) const {
  check_range(offset, out.size(), what);
  file_->read_at(static_cast<int64_t>(offset), out.data(), out.size());
}

std::vector<std::byte> ByteFile::read(uint64_t offset, uint64_t bytes,
                                      std::string_view what) const {
  check_range(offset, bytes, what);
  std::vector<std::byte> out(bytes);
  read(offset, out, what);
  return out;
}

void ByteWriter::zeros(uint64_t count) {
  constexpr std::byte kZero[64] = {};
  for (; count > 0; count -= std::min<uint64_t>(count, sizeof kZero))
    write({kZero, static_cast<size_t>(std::min<uint64_t>(count, sizeof kZero))});
}

void ByteWriter::pad_to(uint64_t alignment) {
  zeros((alignment - position_ % alignment) % alignment);
}

}  // namespace rwkv
