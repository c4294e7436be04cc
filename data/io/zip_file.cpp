#include "data/io/zip_file.h"

#include <algorithm>
#include <numeric>

#include "data/io/crc32.h"
#include "kernels/core/error.h"

namespace rwkv {
namespace {

constexpr uint32_t kLocalMagic = 0x04034b50, kCentralMagic = 0x02014b50, kEndMagic = 0x06054b50;
constexpr uint32_t kEnd64Magic = 0x06064b50, kLocator64Magic = 0x07064b50;
constexpr uint64_t kLocalBytes = 30, kCentralBytes = 46, kEndBytes = 22;
constexpr uint64_t kEnd64Bytes = 56, kLocator64Bytes = 20;
constexpr uint64_t kMaxCommentBytes = 65535;
constexpr uint64_t kMaxDirectoryBytes = uint64_t{64} << 20;
constexpr uint32_t kIn64 = 0xffffffff;                    ///< the value stands in the ZIP64 record
constexpr uint16_t kExtra64 = 1, kExtraPadding = 0x4246;  // "FB"
constexpr uint16_t kFlagEncrypted = 1, kFlagUtf8 = 0x0800;
constexpr uint64_t kAlignment = 64;
constexpr uint16_t kVersion64 = 45;

/// Takes numbers from a span front to back; the caller checks the length.
class Cursor {
 public:
  Cursor(std::span<const std::byte> bytes, size_t at) : bytes_(bytes), at_(at) {}
  template <class T>
  T take() {
    T value;
    std::memcpy(&value, bytes_.data() + at_, sizeof(T));
    at_ += sizeof(T);
    return value;
  }
  void skip(size_t n) { at_ += n; }

 private:
  std::span<const std::byte> bytes_;
  size_t at_;
};

bool sane_name(std::string_view name) {
  if (name.empty() || name[0] == '/' || name.find('\\') != std::string_view::npos ||
      name.find('\0') != std::string_view::npos || name.find(':') == 1)
    return false;
  for (size_t at = 0; at <= name.size();) {
    const size_t end = std::min(name.find('/', at), name.size());
    if (name.substr(at, end - at) == "..") return false;
    at = end + 1;
  }
  return true;
}

}  // namespace

ZipFile ZipFile::open(const std::string& path) {
  ZipFile zip(ByteFile::open(path));
  const Directory directory = zip.find_directory();
  zip.read_directory(directory);
  zip.check_entries(directory);
  return zip;
}

ZipFile::Directory ZipFile::find_directory() const {
  const std::string& path = file_.path();
  RWKV_CHECK(file_.size() >= kEndBytes, IoError, "opening ", path, ": too short for a zip archive");
  const uint64_t tail = std::min(file_.size(), kEndBytes + kMaxCommentBytes);
  const uint64_t base = file_.size() - tail;
  const std::vector<std::byte> raw = file_.read(base, tail, "the zip directory");
  uint64_t at = tail - kEndBytes + 1;
  for (;;) {
    RWKV_CHECK(at-- > 0, IoError, "opening ", path,
               ": there is no zip directory at its end; the file is truncated");
    Cursor c(raw, at);
    if (c.take<uint32_t>() != kEndMagic) continue;
    c.skip(16);
    if (at + kEndBytes + c.take<uint16_t>() == tail) break;  // the comment reaches to the end
  }
  Cursor c(raw, at + 4);
  const auto disk = c.take<uint16_t>(), first_disk = c.take<uint16_t>();
  c.skip(2);
  Directory d{};
  d.entries = c.take<uint16_t>();
  d.bytes = c.take<uint32_t>();
  d.offset = c.take<uint32_t>();
  const uint64_t end_at = base + at;
  if (d.entries == 0xffff || d.bytes == kIn64 || d.offset == kIn64) {
    RWKV_CHECK(end_at >= kLocator64Bytes, IoError, "opening ", path, ": no ZIP64 locator");
    const std::vector<std::byte> locator =
        file_.read(end_at - kLocator64Bytes, kLocator64Bytes, "the ZIP64 locator");
    Cursor l(locator, 0);
    RWKV_CHECK(l.take<uint32_t>() == kLocator64Magic, IoError, "opening ", path,
               ": no ZIP64 locator where one should be; the file is damaged");
    l.skip(4);
    const std::vector<std::byte> record =
        file_.read(l.take<uint64_t>(), kEnd64Bytes, "the ZIP64 directory record");
    Cursor r(record, 0);
    RWKV_CHECK(r.take<uint32_t>() == kEnd64Magic, IoError, "opening ", path,
               ": no ZIP64 record where one should be; the file is damaged");
    r.skip(8 + 2 + 2 + 4 + 4 + 8);
    d.entries = r.take<uint64_t>();
    d.bytes = r.take<uint64_t>();
    d.offset = r.take<uint64_t>();
  } else {
    RWKV_CHECK(disk == 0 && first_disk == 0, IoError, "opening ", path,
               ": a zip archive in several parts; join them first");
  }
  RWKV_CHECK(d.bytes <= kMaxDirectoryBytes && d.entries <= d.bytes / kCentralBytes, IoError,
             "opening ", path, ": a zip directory of ", d.bytes, " bytes for ", d.entries,
             " entries is not sane; the file is damaged");
  file_.check_range(d.offset, d.bytes, "the zip directory");
  RWKV_CHECK(d.offset + d.bytes <= end_at, IoError, "opening ", path,
             ": the zip directory overlaps the record of its end; the file is damaged");
  return d;
}

void ZipFile::read_directory(const Directory& directory) {
  const std::string& path = file_.path();
  const std::vector<std::byte> raw =
      file_.read(directory.offset, directory.bytes, "the zip directory");
  const auto damaged = [&] {
    return IoError(
        str("reading the zip directory of ", path, ": entry ", entries_.size(), " is damaged"));
  };
  size_t at = 0;
  for (uint64_t n = 0; n < directory.entries; ++n) {
    if (raw.size() - at < kCentralBytes) throw damaged();
    Cursor c(raw, at);
    if (c.take<uint32_t>() != kCentralMagic) throw damaged();
    c.skip(4);
    const auto flags = c.take<uint16_t>(), method = c.take<uint16_t>();
    c.skip(4);
    ZipEntry e;
    e.crc = c.take<uint32_t>();
    uint64_t packed = c.take<uint32_t>();
    e.bytes = c.take<uint32_t>();
    const size_t name_bytes = c.take<uint16_t>(), extra_bytes = c.take<uint16_t>();
    const size_t comment_bytes = c.take<uint16_t>();
    c.skip(2 + 2 + 4);
    uint64_t header_at = c.take<uint32_t>();
    at += kCentralBytes;
    if (raw.size() - at < name_bytes + extra_bytes + comment_bytes) throw damaged();
    e.name.assign(reinterpret_cast<const char*>(raw.data()) + at, name_bytes);
    at += name_bytes;
    for (size_t x = at, end = at + extra_bytes; x < end;) {
      if (end - x < 4) throw damaged();
      Cursor field(raw, x);
      const auto id = field.take<uint16_t>();
      const size_t size = field.take<uint16_t>();
      if (end - x - 4 < size) throw damaged();
      size_t left = size;
      // Only the values that do not fit the 32-bit fields are there, in this order.
      for (uint64_t* value : {&e.bytes, &packed, &header_at}) {
        if (id != kExtra64 || *value != kIn64) continue;
        if (left < 8) throw damaged();
        *value = field.take<uint64_t>();
        left -= 8;
      }
      x += 4 + size;
    }
    at += extra_bytes + comment_bytes;
    RWKV_CHECK(sane_name(e.name), IoError, "opening ", path, ": refusing the archive's entry '",
               e.name.substr(0, 200), "': its name leads out of the archive");
    RWKV_CHECK((flags & kFlagEncrypted) == 0, IoError, "opening ", path, ": entry ", e.name,
               " is encrypted");
    RWKV_CHECK(method == 0 && packed == e.bytes, IoError, "opening ", path, ": entry ", e.name,
               " is compressed (method ", method,
               "); PyTorch stores entries as they are: was the file zipped again?");
    if (!index_.emplace(e.name, entries_.size()).second)
      throw IoError(str("opening ", path, ": two entries are called ", e.name));
    entries_.push_back(std::move(e));
    header_at_.push_back(header_at);
  }
}

void ZipFile::check_entries(const Directory& directory) {
  for (size_t i = 0; i < entries_.size(); ++i) {
    ZipEntry& e = entries_[i];
    const std::vector<std::byte> local = file_.read(header_at_[i], kLocalBytes, e.name);
    Cursor c(local, 0);
    RWKV_CHECK(c.take<uint32_t>() == kLocalMagic, IoError, "reading entry ", e.name, " of ",
               file_.path(), ": no entry where the directory says; the file is damaged");
    c.skip(22);
    const uint64_t name_bytes = c.take<uint16_t>(), extra_bytes = c.take<uint16_t>();
    e.offset = header_at_[i] + kLocalBytes + name_bytes + extra_bytes;
    file_.check_range(e.offset, e.bytes, str("entry ", e.name));
    RWKV_CHECK(e.offset + e.bytes <= directory.offset, IoError, "reading entry ", e.name, " of ",
               file_.path(), ": it overlaps the directory; the file is damaged");
  }
  std::vector<size_t> order(entries_.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::ranges::sort(order, {}, [&](size_t i) { return header_at_[i]; });
  for (size_t n = 1; n < order.size(); ++n) {
    const ZipEntry& before = entries_[order[n - 1]];
    RWKV_CHECK(before.offset + before.bytes <= header_at_[order[n]], IoError, "opening ",
               file_.path(), ": the entries ", before.name, " and ", entries_[order[n]].name,
               " overlap; the file is damaged");
  }
}

const ZipEntry* ZipFile::find(std::string_view name) const {
  const auto it = index_.find(std::string(name));
  return it == index_.end() ? nullptr : &entries_[it->second];
}

std::vector<std::byte> ZipFile::read(const ZipEntry& entry) const {
  std::vector<std::byte> data = file_.read(entry.offset, entry.bytes, str("entry ", entry.name));
  if (entry.crc != 0) check_crc(entry, crc32(data));
  return data;
}

void ZipFile::check_crc(const ZipEntry& entry, uint32_t crc) const {
  RWKV_CHECK(entry.crc == 0 || crc == entry.crc, IoError, "reading entry ", entry.name, " of ",
             file_.path(), ": the checksum does not match; the file is damaged");
}

void ZipWriter::add(std::string_view name, std::span<const std::byte> data) {
  begin(name, data.size(), crc32(data));
  out_.write(data);
}

void ZipWriter::begin(std::string_view name, uint64_t bytes, uint32_t crc) {
  const bool large = bytes >= kIn64;
  const uint64_t header_at = out_.position();
  const uint64_t extra64 = large ? 4 + 16 : 0;
  const uint64_t unpadded = header_at + kLocalBytes + name.size() + extra64 + 4;
  const uint64_t padding = (kAlignment - unpadded % kAlignment) % kAlignment;
  ByteBuilder b;
  b.number(kLocalMagic);
  b.number(large ? kVersion64 : uint16_t{0});
  b.number(kFlagUtf8);
  b.number<uint16_t>(0);  // stored
  b.number<uint32_t>(0);  // no time: equal content gives equal bytes
  b.number(crc);
  const auto size32 = large ? kIn64 : static_cast<uint32_t>(bytes);
  b.number(size32);
  b.number(size32);
  b.number(static_cast<uint16_t>(name.size()));
  b.number(static_cast<uint16_t>(extra64 + 4 + padding));
  b.text(name);
  if (large) {
    b.number(kExtra64);
    b.number<uint16_t>(16);
    b.number(bytes);
    b.number(bytes);
  }
  b.number(kExtraPadding);
  b.number(static_cast<uint16_t>(padding));
  b.bytes.append(padding, 'Z');
  out_.text(b.bytes);
  written_.push_back({std::string(name), bytes, header_at, crc});
}

void ZipWriter::finish() {
  const uint64_t begin = out_.position();
  for (const Written& w : written_) {
    const bool large = w.bytes >= kIn64, far = w.header_at >= kIn64;
    ByteBuilder b;
    b.number(kCentralMagic);
    b.number<uint16_t>(0);
    b.number(large || far ? kVersion64 : uint16_t{0});
    b.number(kFlagUtf8);
    b.number<uint16_t>(0);
    b.number<uint32_t>(0);
    b.number(w.crc);
    const auto size32 = large ? kIn64 : static_cast<uint32_t>(w.bytes);
    b.number(size32);
    b.number(size32);
    b.number(static_cast<uint16_t>(w.name.size()));
    const auto extra = static_cast<uint16_t>((large ? 16 : 0) + (far ? 8 : 0));
    b.number(static_cast<uint16_t>(extra > 0 ? extra + 4 : 0));
    b.number<uint16_t>(0);  // comment
    b.number<uint16_t>(0);  // disk
    b.number<uint16_t>(0);  // attributes
    b.number<uint32_t>(0);
    b.number(far ? kIn64 : static_cast<uint32_t>(w.header_at));
    b.text(w.name);
    if (extra > 0) {
      b.number(kExtra64);
      b.number(extra);
      if (large) {
        b.number(w.bytes);
        b.number(w.bytes);
      }
      if (far) b.number(w.header_at);
    }
    out_.text(b.bytes);
  }
  const uint64_t bytes = out_.position() - begin, count = written_.size();
  const bool needs64 = count >= 0xffff || begin >= kIn64 || bytes >= kIn64;
  ByteBuilder b;
  if (needs64) {
    const uint64_t record_at = out_.position();
    b.number(kEnd64Magic);
    b.number<uint64_t>(kEnd64Bytes - 12);
    b.number(kVersion64);
    b.number(kVersion64);
    b.number<uint32_t>(0);
    b.number<uint32_t>(0);
    b.number(count);
    b.number(count);
    b.number(bytes);
    b.number(begin);
    b.number(kLocator64Magic);
    b.number<uint32_t>(0);
    b.number(record_at);
    b.number<uint32_t>(1);
  }
  const auto count16 = static_cast<uint16_t>(std::min<uint64_t>(count, 0xffff));
  b.number(kEndMagic);
  b.number<uint16_t>(0);
  b.number<uint16_t>(0);
  b.number(count16);
  b.number(count16);
  b.number(needs64 ? kIn64 : static_cast<uint32_t>(bytes));
  b.number(needs64 ? kIn64 : static_cast<uint32_t>(begin));
  b.number<uint16_t>(0);
  out_.text(b.bytes);
}

}  // namespace rwkv
