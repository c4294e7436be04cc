#pragma once
// Shared by the .cpp files of Hdf5File and by nothing else. They include <hdf5.h> before this, so
// that no header of ours needs it.

#include <mutex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "data/io/hdf5_file.h"
#include "kernels/core/error.h"

namespace rwkv {
namespace h5 {

/// Holds the library for one call and silences its printing (a per-thread setting in some builds).
class LibraryLock {
 public:
  LibraryLock();

 private:
  std::lock_guard<std::recursive_mutex> lock_;
};

/// Owns an HDF5 identifier.
class Hid {
 public:
  using Close = herr_t (*)(hid_t);
  Hid() = default;
  Hid(hid_t id, Close close) : id_(id), close_(close) {}
  ~Hid() { reset(); }
  Hid(Hid&& o) noexcept : id_(std::exchange(o.id_, -1)), close_(o.close_) {}
  Hid& operator=(Hid&& o) noexcept {
    if (this != &o) {
      reset();
      id_ = std::exchange(o.id_, -1);
      close_ = o.close_;
    }
    return *this;
  }
  hid_t get() const { return id_; }
  bool ok() const { return id_ >= 0; }
  /// False if closing reported an error (a chunk that could not be written, for example).
  bool reset() {
    if (id_ < 0) return true;
    const hid_t id = std::exchange(id_, -1);
    return close_(id) >= 0;
  }

 private:
  hid_t id_ = -1;
  Close close_ = nullptr;
};

/// " (HDF5: the error that started the chain)", or nothing.
std::string hdf5_says();

H5Type classify(hid_t type);
inline bool is_integer(H5Type t) {
  return t >= H5Type::kI8 && t <= H5Type::kU64;
}
inline bool is_signed(H5Type t) {
  return t == H5Type::kI8 || t == H5Type::kI16 || t == H5Type::kI32 || t == H5Type::kI64;
}
/// Value bits: 7 for i8, 8 for u8, ...; significand bits of floats.
inline int value_bits(H5Type t) {
  switch (t) {
    case H5Type::kF16:
      return 11;
    case H5Type::kF32:
      return 24;
    case H5Type::kF64:
      return 53;
    case H5Type::kI8:
      return 7;
    case H5Type::kU8:
      return 8;
    case H5Type::kI16:
      return 15;
    case H5Type::kU16:
      return 16;
    case H5Type::kI32:
      return 31;
    case H5Type::kU32:
      return 32;
    case H5Type::kI64:
      return 63;
    case H5Type::kU64:
      return 64;
    default:
      return 0;
  }
}

template <class T>
constexpr H5Type type_of() {
  if constexpr (std::is_same_v<T, F16>)
    return H5Type::kF16;
  else if constexpr (std::is_same_v<T, float>)
    return H5Type::kF32;
  else if constexpr (std::is_same_v<T, double>)
    return H5Type::kF64;
  else if constexpr (std::is_same_v<T, int8_t>)
    return H5Type::kI8;
  else if constexpr (std::is_same_v<T, uint8_t>)
    return H5Type::kU8;
  else if constexpr (std::is_same_v<T, int16_t>)
    return H5Type::kI16;
  else if constexpr (std::is_same_v<T, uint16_t>)
    return H5Type::kU16;
  else if constexpr (std::is_same_v<T, int32_t>)
    return H5Type::kI32;
  else if constexpr (std::is_same_v<T, uint32_t>)
    return H5Type::kU32;
  else if constexpr (std::is_same_v<T, int64_t>)
    return H5Type::kI64;
  else
    return H5Type::kU64;
}

/// The little-endian type for memory and file alike.
Hid h5_type(H5Type t);
/// UTF-8, of fixed size or H5T_VARIABLE.
Hid string_type(size_t size);
/// No empty components, no leading slash: one spelling per object.
std::string normal_name(std::string_view name);

}  // namespace h5

struct Hdf5File::Impl {
  std::string path;
  h5::Hid file;
  bool writable = false;
  // The dataset of the last read_slice or append stays open.
  std::string open_name;
  h5::Hid open_set;

  [[noreturn]] void fail(std::string_view doing, std::string_view name,
                         const std::string& detail) const;
  void need_open(std::string_view doing, std::string_view name) const;
  bool exists(const std::string& name) const;
  /// Opens any object; the kind is checked by the caller.
  h5::Hid open_object(std::string_view doing, const std::string& name) const;
  H5I_type_t object_kind(const std::string& name) const;
  std::vector<std::string> children(const std::string& group) const;
  void collect_datasets(const std::string& root, const std::string& below, int depth,
                        std::vector<std::string>& out) const;
  /// Opened by its own call, so that chunk cache and access settings fit the dataset.
  h5::Hid open_dataset(std::string_view doing, const std::string& name) const;
  hid_t keep_open(std::string_view doing, const std::string& name);
  void drop_open(std::string_view doing);
  std::string name_of(hid_t object) const;
  /// Throws IoError if the product of the extents that are not 0 does not fit 64 bits.
  Shape shape_of(hid_t set) const;
  H5Type type_of_set(hid_t set) const;
  /// Reads the selection (space may be H5S_ALL) of `count` elements as T, checking the conversion.
  template <class T>
  void read_as(const std::string& name, hid_t set, hid_t mem_space, hid_t file_space, T* out,
               size_t count) const;
  h5::Hid open_attr(const std::string& object, std::string_view name) const;
  void put_attr(const std::string& object, std::string_view name, hid_t type, const void* value);
  /// Creates a dataset with its parent groups.
  h5::Hid create_set(const std::string& name, H5Type type, const Shape& shape,
                     const H5WriteOptions& options, bool extendible);
  h5::Hid create_raw(const std::string& name, hid_t type, const std::vector<hsize_t>& dims,
                     bool extendible, hid_t plist);
};

}  // namespace rwkv
