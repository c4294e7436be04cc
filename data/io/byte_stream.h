#pragma once
/// Bytes from plain files, zstd files and standard input, front to back in constant memory.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace rwkv {

class ByteStream {
 public:
  virtual ~ByteStream() = default;
  /// Up to `size` bytes; 0 only at the end. Throws IoError (unreadable, damaged, truncated).
  virtual size_t read(char* out, size_t size) = 0;
  /// Bytes taken from the file itself so far (compressed ones for zstd): for progress.
  virtual int64_t consumed() const = 0;
};

/// Opens `path`, "-" for standard input. zstd is recognised by its first bytes, whatever the name:
/// any number of frames, skippable frames, windows up to 2^27 bytes. Throws IoError; also for zstd
/// in a build without it, and for gzip and xz, with the command that decompresses them.
std::unique_ptr<ByteStream> open_byte_stream(const std::string& path);

}  // namespace rwkv
