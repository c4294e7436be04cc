#pragma once
/// A checksum over a whole HDF5 file, in a trailer that HDF5 ignores.
///
/// The HDF5 library crashes on some damaged files: their structure is checked by no checksum of
/// its own. So a checkpoint is sealed when written, and opened only if the seal holds.
///
///   HDF5 file       body_bytes bytes
///   JSON            {"datasets": [[name, offset, bytes, crc32], ...], "rest_crc32": n}, where rest
///                   is everything in the body outside of the datasets' numbers, in file order
///   body_bytes      u64, little endian
///   json_bytes      u64
///   crc32 of JSON   u32
///   "GREYSEAL"      8 bytes, the end of the file

#include <string>

namespace rwkv {

/// A file whose root has an attribute of this name had a seal when it was written: without one it
/// was cut, at a place that HDF5 does not notice.
inline constexpr const char* kSealedAttribute = "sealed";

/// Appends the seal to a complete, closed HDF5 file. Throws IoError.
void seal_hdf5(const std::string& path);

/// False if the file has no seal: it was cut, or written by another program.
/// Throws IoError if the file cannot be read.
bool has_seal(const std::string& path);

/// Throws IoError naming the file and, unless its structure is damaged, the first bad dataset.
/// `hint` is added to the message for files without a seal.
void check_seal(const std::string& path, const std::string& hint);

}  // namespace rwkv
