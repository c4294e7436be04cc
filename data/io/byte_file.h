#pragma once
/// Binary formats on top of data/io/posix_file.h: numbers, padding, and ranges that are checked
/// before memory is taken.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "data/io/posix_file.h"
#include "kernels/core/error.h"

namespace rwkv {

/// A file that is open for reading. Move-only; one object may be read from several threads.
class ByteFile {
 public:
  /// Throws IoError: no such file, a folder, not readable.
  static ByteFile open(const std::string& path);
  const std::string& path() const { return file_->path(); }
  uint64_t size() const { return static_cast<uint64_t>(file_->size()); }

  /// Exactly out.size() bytes from `offset`. Throws IoError naming file and `what` if the file does
  /// not have them all.
  void read(uint64_t offset, std::span<std::byte> out, std::string_view what) const;
  /// As `read`, into memory of its own: the range is checked before anything is allocated.
  std::vector<std::byte> read(uint64_t offset, uint64_t bytes, std::string_view what) const;
  /// A little-endian number.
  template <class T>
  T number(uint64_t offset, std::string_view what) const {
    static_assert(std::is_arithmetic_v<T>);
    std::byte raw[sizeof(T)];
    read(offset, raw, what);
    T value;
    std::memcpy(&value, raw, sizeof(T));
    return value;
  }
  /// Throws IoError unless [offset, offset + bytes) lies in the file.
  void check_range(uint64_t offset, uint64_t bytes, std::string_view what) const;

 private:
  std::unique_ptr<PosixReader> file_;
};

/// A file that is written front to back. Combine with AtomicFile: give it temp_path().
class ByteWriter {
 public:
  /// Creates or truncates. Throws IoError.
  explicit ByteWriter(const std::string& path) : file_(path, PosixWriter::Mode::kTruncate) {}

  void write(std::span<const std::byte> bytes) {
    file_.append(bytes.data(), bytes.size());
    position_ += bytes.size();
  }
  void text(std::string_view bytes) { write(std::as_bytes(std::span(bytes))); }
  template <class T>
  void number(T value) {
    static_assert(std::is_arithmetic_v<T>);
    write(std::as_bytes(std::span(&value, 1)));
  }
  void zeros(uint64_t count);
  /// Zeros up to the next multiple of `alignment`.
  void pad_to(uint64_t alignment);
  uint64_t position() const { return position_; }
  /// Hands everything to the operating system; nothing may be written after it. Throws IoError
  /// (disk full, ...).
  void close() { file_.close(); }

 private:
  PosixWriter file_;
  uint64_t position_ = 0;
};

/// Appends numbers and texts to a string, little-endian: headers that are built in memory.
class ByteBuilder {
 public:
  template <class T>
  void number(T value) {
    static_assert(std::is_arithmetic_v<T>);
    bytes.append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  void text(std::string_view t) { bytes.append(t); }
  std::string bytes;
};

}  // namespace rwkv
