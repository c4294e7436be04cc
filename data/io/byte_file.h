#pragma once
/// Binary files: reading at any position with every range checked, and writing front to back.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "kernels/core/error.h"

namespace rwkv {

/// A file that is open for reading. Move-only; one object may be read from several threads.
class ByteFile {
 public:
  /// Throws IoError: no such file, a folder, not readable.
  static ByteFile open(const std::string& path);
  ByteFile(ByteFile&& other) noexcept;
  ByteFile& operator=(ByteFile&& other) noexcept;
  ByteFile(const ByteFile&) = delete;
  ByteFile& operator=(const ByteFile&) = delete;
  ~ByteFile();

  const std::string& path() const { return path_; }
  uint64_t size() const { return size_; }

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
  ByteFile() = default;
  int fd_ = -1;
  uint64_t size_ = 0;
  std::string path_;
};

/// A file that is written front to back. Combine with AtomicFile: give it temp_path().
class ByteWriter {
 public:
  /// Creates or truncates. Throws IoError.
  explicit ByteWriter(const std::string& path);
  ~ByteWriter();
  ByteWriter(const ByteWriter&) = delete;
  ByteWriter& operator=(const ByteWriter&) = delete;

  void write(std::span<const std::byte> bytes);
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
  /// Hands everything over and closes. Throws IoError (disk full, ...).
  void close();

 private:
  void flush();
  int fd_ = -1;
  uint64_t position_ = 0;
  std::string path_;
  std::vector<std::byte> buffer_;
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
