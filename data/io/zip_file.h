#pragma once
/// ZIP archives with stored (uncompressed) entries, as PyTorch writes them; ZIP64 included.

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "data/io/byte_file.h"

namespace rwkv {

struct ZipEntry {
  std::string name;
  uint64_t bytes = 0;   ///< of the stored data
  uint64_t offset = 0;  ///< of the stored data in the file
  uint32_t crc = 0;     ///< 0: not known
};

/// An archive that is open for reading. Everything comes from the central directory; of the local
/// headers only the lengths are used.
class ZipFile {
 public:
  /// Throws IoError for what is no zip archive, and for damage: entries that overlap or leave the
  /// file, names twice, absolute names or names with "..". Refuses compressed and encrypted
  /// entries and archives in several parts.
  static ZipFile open(const std::string& path);

  const ByteFile& file() const { return file_; }
  std::span<const ZipEntry> entries() const { return entries_; }
  const ZipEntry* find(std::string_view name) const;
  /// All bytes of an entry, with its checksum compared unless that is 0.
  std::vector<std::byte> read(const ZipEntry& entry) const;
  /// Throws IoError unless `crc` is the entry's or that is 0.
  void check_crc(const ZipEntry& entry, uint32_t crc) const;

 private:
  explicit ZipFile(ByteFile file) : file_(std::move(file)) {}
  struct Directory {
    uint64_t offset, bytes, entries;
  };
  Directory find_directory() const;
  void read_directory(const Directory& directory);
  void check_entries(const Directory& directory);

  ByteFile file_;
  std::vector<ZipEntry> entries_;
  std::vector<uint64_t> header_at_;  ///< of entries_[i]
  std::unordered_map<std::string, size_t> index_;
};

/// Writes an archive front to back; the data of every entry starts at a multiple of 64, as PyTorch
/// wants it for mapping.
class ZipWriter {
 public:
  /// `out` must outlive the writer.
  explicit ZipWriter(ByteWriter& out) : out_(out) {}
  void add(std::string_view name, std::span<const std::byte> data);
  /// Everything ahead of an entry's data; the caller writes that, `bytes` bytes with this checksum.
  void begin(std::string_view name, uint64_t bytes, uint32_t crc);
  void add_text(std::string_view name, std::string_view text) {
    add(name, std::as_bytes(std::span(text)));
  }
  /// Writes the central directory; the caller closes the file.
  void finish();

 private:
  struct Written {
    std::string name;
    uint64_t bytes, header_at;
    uint32_t crc;
  };
  ByteWriter& out_;
  std::vector<Written> written_;
};

}  // namespace rwkv
