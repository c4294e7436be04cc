#pragma once
/// Plain files by position and by appending, with errors that say what went wrong.

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace rwkv {

/// A regular file, read at any position by any thread. Reads go through the page cache, as those
/// of a memory mapping do; but a file that shrinks and a disk that fails become an IoError, where a
/// mapping would end the program with SIGBUS.
class PosixReader {
 public:
  /// Throws IoError for what is missing, unreadable or no regular file.
  explicit PosixReader(std::string path);
  ~PosixReader();
  PosixReader(const PosixReader&) = delete;
  PosixReader& operator=(const PosixReader&) = delete;

  const std::string& path() const { return path_; }
  int64_t size() const { return size_; }  ///< bytes, when it was opened
  /// Fills `out` with `bytes` bytes from `offset` on. Throws IoError if the file has fewer.
  void read_at(int64_t offset, void* out, size_t bytes) const;

 private:
  std::string path_;
  int fd_ = -1;
  int64_t size_ = 0;
};

/// Appends to a file by way of a buffer. Nothing else may write to it meanwhile.
class PosixWriter {
 public:
  enum class Mode : uint8_t {
    kTruncate,  ///< an old file of that name is emptied
    kNew        ///< an old file of that name is an error
  };
  /// Throws IoError.
  PosixWriter(std::string path, Mode mode, size_t buffer_bytes = size_t{1} << 20);
  /// Closes and drops what was not flushed.
  ~PosixWriter();
  PosixWriter(const PosixWriter&) = delete;
  PosixWriter& operator=(const PosixWriter&) = delete;

  const std::string& path() const { return path_; }
  void append(const void* data, size_t bytes);  ///< Throws IoError (disk full, ...).
  void append(std::string_view bytes) { append(bytes.data(), bytes.size()); }
  void flush();  ///< Hands everything to the operating system. Throws IoError.
  void close();  ///< Flushes and closes. Throws IoError; some disks are only now found full.

 private:
  std::string path_, buffer_;
  size_t limit_;
  int fd_ = -1;
};

}  // namespace rwkv
