#include "data/io/seal.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <vector>

#include "data/io/crc32.h"
#include "data/io/hdf5_file.h"
#include "data/io/json_depth.h"
#include "data/io/posix_file.h"
#include "kernels/core/error.h"

namespace rwkv {
namespace {

constexpr std::array<char, 8> kMagic = {'G', 'R', 'E', 'Y', 'S', 'E', 'A', 'L'};
constexpr size_t kFooterBytes = 8 + 8 + 4 + 8;

struct Extent {
  std::string name;  ///< empty: skipped
  uint64_t offset = 0, bytes = 0;
  uint32_t crc = 0;
};
struct Seal {
  uint64_t body_bytes = 0;
  std::vector<Extent> extents;  ///< by offset
  uint32_t rest_crc = 0;
  uint32_t json_crc = 0;  ///< of the seal
};

uint64_t bytes_of(H5Type type) {
  switch (type) {
    case H5Type::kI8:
    case H5Type::kU8:
      return 1;
    case H5Type::kF16:
    case H5Type::kI16:
    case H5Type::kU16:
      return 2;
    case H5Type::kF32:
    case H5Type::kI32:
    case H5Type::kU32:
      return 4;
    case H5Type::kF64:
    case H5Type::kI64:
    case H5Type::kU64:
      return 8;
    default:
      return 0;
  }
}

/// Reads pieces of a file front to back.
class Reader {
 public:
  explicit Reader(const std::string& path) : file_(path) {}
  uint64_t size() const { return static_cast<uint64_t>(file_.size()); }
  void seek(uint64_t at) { at_ = static_cast<int64_t>(at); }
  void read(char* out, size_t n) {
    file_.read_at(at_, out, n);
    at_ += static_cast<int64_t>(n);
  }
  uint32_t crc(uint64_t n, uint32_t crc) {
    while (n > 0) {
      const size_t piece = std::min<uint64_t>(n, buffer_.size());
      read(buffer_.data(), piece);
      crc = crc32_of(std::span<const char>(buffer_.data(), piece), crc);
      n -= piece;
    }
    return crc;
  }

 private:
  PosixReader file_;
  int64_t at_ = 0;
  std::vector<char> buffer_ = std::vector<char>(size_t{1} << 20);
};

/// One pass over the body: the checksum of each extent and of what lies between them.
Seal measure(Reader& in, uint64_t body_bytes, std::vector<Extent> extents) {
  Seal seal{body_bytes, std::move(extents), 0, 0};
  in.seek(0);
  uint64_t at = 0;
  for (Extent& e : seal.extents) {
    seal.rest_crc = in.crc(e.offset - at, seal.rest_crc);
    if (!e.name.empty()) e.crc = in.crc(e.bytes, 0);
    at = e.offset + e.bytes;
    in.seek(at);
  }
  seal.rest_crc = in.crc(body_bytes - at, seal.rest_crc);
  return seal;
}

std::optional<Seal> read_seal(Reader& in, const std::string& path) {
  if (in.size() < kFooterBytes) return std::nullopt;
  std::array<char, kFooterBytes> footer;
  in.seek(in.size() - kFooterBytes);
  in.read(footer.data(), footer.size());
  uint64_t body = 0, json_bytes = 0;
  uint32_t json_crc = 0;
  std::memcpy(&body, footer.data(), 8);
  std::memcpy(&json_bytes, footer.data() + 8, 8);
  std::memcpy(&json_crc, footer.data() + 16, 4);
  if (std::memcmp(footer.data() + 20, kMagic.data(), kMagic.size()) != 0) return std::nullopt;
  const std::string damaged =
      str("loading ", path, ": its seal is damaged: the file is corrupt; use another copy");
  constexpr uint64_t kMostJson = uint64_t{1} << 26;
  RWKV_CHECK(body <= in.size() && json_bytes <= kMostJson && json_bytes <= in.size() - body &&
                 body + json_bytes + kFooterBytes == in.size(),
             IoError, damaged);
  std::string text(json_bytes, '\0');
  in.seek(body);
  in.read(text.data(), text.size());
  RWKV_CHECK(crc32_of(std::span<const char>(text)) == json_crc, IoError, damaged);
  RWKV_CHECK(!json_deeper_than(text), IoError, damaged);
  try {
    const auto j = nlohmann::json::parse(text);
    Seal seal{body, {}, j.at("rest_crc32").get<uint32_t>(), json_crc};
    for (const auto& d : j.at("datasets"))
      seal.extents.push_back({d.at(0).get<std::string>(), d.at(1).get<uint64_t>(),
                              d.at(2).get<uint64_t>(), d.at(3).get<uint32_t>()});
    if (j.contains("skipped"))
      for (const auto& s : j.at("skipped"))
        seal.extents.push_back({"", s.at(0).get<uint64_t>(), s.at(1).get<uint64_t>(), 0});
    std::ranges::sort(seal.extents, {}, &Extent::offset);
    uint64_t at = 0;
    for (const Extent& e : seal.extents) {
      RWKV_CHECK(e.offset >= at && e.bytes <= body && e.offset <= body - e.bytes, IoError, damaged);
      at = e.offset + e.bytes;
    }
    return seal;
  } catch (const nlohmann::json::exception&) {
    throw IoError(damaged);
  }
}

}  // namespace

void seal_hdf5(const std::string& path, const std::vector<std::string>& skipped) {
  std::vector<Extent> extents;
  {
    const auto file = Hdf5File::open(path);
    for (const auto& name : file.list_datasets()) {
      const int64_t offset = file.data_offset(name);
      const uint64_t bytes = static_cast<uint64_t>(file.numel(name)) * bytes_of(file.type(name));
      if (offset >= 0 && bytes > 0)
        extents.push_back({name, static_cast<uint64_t>(offset), bytes, 0});
    }
    for (const auto& name : skipped)
      for (const auto& [offset, bytes] : file.chunk_extents(name))
        extents.push_back({"", offset, bytes, 0});
  }
  std::ranges::sort(extents, {}, &Extent::offset);
  nlohmann::ordered_json j;
  uint64_t body = 0;
  {
    Reader in(path);
    body = in.size();
    const Seal seal = measure(in, body, std::move(extents));
    j["datasets"] = nlohmann::ordered_json::array();
    for (const Extent& e : seal.extents) {
      if (e.name.empty())
        j["skipped"].push_back({e.offset, e.bytes});
      else
        j["datasets"].push_back({e.name, e.offset, e.bytes, e.crc});
    }
    j["rest_crc32"] = seal.rest_crc;
  }
  const std::string text = j.dump();
  const uint64_t json_bytes = text.size();
  const uint32_t json_crc = crc32_of(std::span<const char>(text));
  std::ofstream out(path, std::ios::binary | std::ios::app);
  out << text;
  out.write(reinterpret_cast<const char*>(&body), 8);
  out.write(reinterpret_cast<const char*>(&json_bytes), 8);
  out.write(reinterpret_cast<const char*>(&json_crc), 4);
  out.write(kMagic.data(), kMagic.size());
  out.close();
  RWKV_CHECK(out.good(), IoError, "sealing ", path, ": cannot be written; is the disk full?");
}

bool has_seal(const std::string& path) {
  Reader in(path);
  return read_seal(in, path).has_value();
}

uint32_t seal_checksum(const std::string& path) {
  Reader in(path);
  const auto seal = read_seal(in, path);
  RWKV_CHECK(seal.has_value(), IoError, "loading ", path,
             ": there is no seal at its end: it was cut short");
  return seal->json_crc;
}

void check_seal(const std::string& path, const std::string& hint, std::string_view kind) {
  Reader in(path);
  const auto seal = read_seal(in, path);
  RWKV_CHECK(seal.has_value(), IoError, "loading ", path, ": there is no seal at its end: it was ",
             "cut short, or is no ", kind, hint);
  const Seal found = measure(in, seal->body_bytes, seal->extents);
  for (size_t i = 0; i < found.extents.size(); ++i)
    RWKV_CHECK(found.extents[i].crc == seal->extents[i].crc, IoError, "loading ",
               found.extents[i].name, " from ", path,
               ": the checksum does not match: the file is corrupt; use another copy");
  RWKV_CHECK(found.rest_crc == seal->rest_crc, IoError, "loading ", path,
             ": the checksum of its structure and texts does not match: the file is corrupt; use "
             "another copy");
}

}  // namespace rwkv
