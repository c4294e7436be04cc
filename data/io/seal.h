#pragma once
/// A checksum over a whole HDF5 file, in a trailer that HDF5 ignores.
///
/// The HDF5 library crashes on some damaged files: their structure is checked by no checksum of
/// its own. So checkpoints and token files are sealed when written, and opened only if the seal
/// holds. (A seal finds accidents. Whoever makes a file on purpose can seal it too.)
///
///   HDF5 file       body_bytes bytes
///   JSON            {"datasets": [[name, offset, bytes, crc32], ...], "skipped": [[offset, bytes],
///                   ...], "rest_crc32": n}: numbers of datasets with their checksums; numbers that
///                   the seal does not cover (absent: none); rest is everything else in the body
///                   in file order
///   body_bytes      u64, little endian
///   json_bytes      u64
///   crc32 of JSON   u32
///   "GREYSEAL"      8 bytes, the end of the file

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace rwkv {

/// A file whose root has an attribute of this name had a seal when it was written: without one it
/// was cut, at a place that HDF5 does not notice.
inline constexpr const char* kSealedAttribute = "sealed";

/// Appends the seal to a complete, closed HDF5 file. `skipped` names datasets in unfiltered chunks
/// whose numbers the seal leaves out: large ones with checksums of their own, so that a file can be
/// opened without reading all of it. Throws IoError.
void seal_hdf5(const std::string& path, const std::vector<std::string>& skipped = {});

/// False if the file has no seal: it was cut, or written by another program.
/// Throws IoError if the file cannot be read.
bool has_seal(const std::string& path);

/// A number that stands for everything that the seal covers: the checksum of its checksums. Reads
/// the seal only. Throws IoError if the file has none.
uint32_t seal_checksum(const std::string& path);

/// Throws IoError naming the file and, unless its structure is damaged, the first bad dataset.
/// Files without a seal are said not to be a `kind`, with `hint` behind that.
void check_seal(const std::string& path, const std::string& hint,
                std::string_view kind = "training checkpoint");

}  // namespace rwkv
