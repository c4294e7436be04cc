#pragma once
/// HDF5 files without HDF5 types in the interface; only hdf5_file.cpp and hdf5_impl.cpp include
/// HDF5.
///
/// Threads: one `Hdf5File` belongs to one thread at a time. Different objects may be used from
/// different threads at once: the HDF5 library usually is not thread safe, so every call holds one
/// process-wide lock (a loader thread may read while the trainer writes a checkpoint).
///
/// Errors: every failure is an IoError that names the file, the dataset, what was found and what
/// was expected, with HDF5's innermost message where it helps. HDF5's own printing is off.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "kernels/core/dtype.h"

namespace rwkv {

/// Extents, slowest first. Empty: a scalar (rank 0).
using Shape = std::vector<int64_t>;

/// "(2, 64, 768)"; "()" for a scalar
std::string shape_string(const Shape& shape);
/// Product of the extents; 1 for a scalar.
int64_t shape_numel(const Shape& shape);

/// Element types that this project reads and writes; anything else in a file is kOther.
enum class H5Type : uint8_t {
  kF16,
  kF32,
  kF64,
  kI8,
  kU8,
  kI16,
  kU16,
  kI32,
  kU32,
  kI64,
  kU64,
  kString,
  kOther
};
std::string_view h5type_name(H5Type type);  ///< "f32", "u16", "string", ...

/// How a dataset is stored.
struct H5WriteOptions {
  int64_t chunk_rows = 0;  ///< rows of the leading dimension per chunk; 0: contiguous, or with
                           ///< compression chunks of about 1 MiB
  int deflate = 0;         ///< 0 none, 1 (fast) to 9 (small)
  bool shuffle = false;    ///< byte shuffle ahead of deflate: helps floats and integers
};

/// One open HDF5 file. Move-only. Names are paths inside the file, such as "weights/emb.weight";
/// a leading '/' is optional.
///
/// T is one of float, double, F16 and the signed and unsigned integers of 8 to 64 bits.
class Hdf5File {
 public:
  /// Opens for reading. Throws IoError when the file is missing, not HDF5, or truncated.
  static Hdf5File open(const std::string& path);
  /// Creates or truncates. The format is readable by HDF5 1.8 and later; no time stamps are
  /// stored, so equal content gives equal bytes.
  static Hdf5File create(const std::string& path);

  Hdf5File(Hdf5File&&) noexcept;
  Hdf5File& operator=(Hdf5File&&) noexcept;
  Hdf5File(const Hdf5File&) = delete;
  Hdf5File& operator=(const Hdf5File&) = delete;
  /// Closes without throwing: after writing, call close() to learn about a full disk.
  ~Hdf5File();

  const std::string& path() const;
  bool is_open() const;
  /// Hands everything to the operating system. Throws IoError (disk full, ...).
  void flush();
  /// Flushes and closes. Throws IoError; the file is closed afterwards in any case.
  void close();

  // --- looking around ---------------------------------------------------------------------
  bool exists(std::string_view name) const;      ///< a dataset or group of that name
  bool is_dataset(std::string_view name) const;  ///< false also when it does not exist
  /// Names of the direct children of a group ("" or "/" for the root), sorted.
  std::vector<std::string> list(std::string_view group = "") const;
  /// Paths of all datasets below a group, relative to it ("blocks/0/w"), sorted.
  std::vector<std::string> list_datasets(std::string_view group = "") const;
  Shape shape(std::string_view name) const;
  int64_t numel(std::string_view name) const;
  H5Type type(std::string_view name) const;
  /// Where the raw bytes of a contiguous dataset begin in the file; -1 if it is stored otherwise
  /// (chunked, or a string). For checksums over files (data/io/seal.h).
  int64_t data_offset(std::string_view name) const;
  /// Where the chunks of a 1-D dataset without filters lie in the file: first byte and number of
  /// bytes, neighbours joined, in the order of the file.
  std::vector<std::pair<uint64_t, uint64_t>> chunk_extents(std::string_view name) const;

  // --- reading ----------------------------------------------------------------------------
  /// The whole dataset, row-major. Converts where no value can change: to wider integers and
  /// floats always; to narrower or differently signed integers if every value fits.
  template <class T>
  std::vector<T> read(std::string_view name) const;
  /// As `read`, into memory of exactly the dataset's number of elements.
  template <class T>
  void read_into(std::string_view name, std::span<T> out) const;
  /// As `read_into`, and throws unless the dataset has exactly this shape.
  template <class T>
  void read_into(std::string_view name, const Shape& expected, std::span<T> out) const;
  /// Elements [offset, offset + count) of a 1-D dataset. The dataset stays open between calls on
  /// the same name, so this is cheap to repeat.
  template <class T>
  void read_slice(std::string_view name, int64_t offset, int64_t count, T* out) const;
  /// A dataset with one element, of any rank.
  template <class T>
  T read_scalar(std::string_view name) const;
  /// A scalar string, fixed or variable length.
  std::string read_string(std::string_view name) const;

  // --- writing ----------------------------------------------------------------------------
  /// Creates the dataset and its parent groups. Throws if the name is taken or the shape does not
  /// match the number of values.
  template <class T>
  void write(std::string_view name, const Shape& shape, std::span<const T> values,
             const H5WriteOptions& options = {});
  template <class T>
  void write(std::string_view name, const Shape& shape, const std::vector<T>& values,
             const H5WriteOptions& options = {}) {
    write<T>(name, shape, std::span<const T>(values), options);
  }
  template <class T>
  void write_scalar(std::string_view name, T value) {
    write<T>(name, {}, std::span<const T>(&value, 1));
  }
  /// UTF-8 without NUL characters, as a scalar of variable length.
  void write_string(std::string_view name, std::string_view value);
  /// An empty 1-D dataset that `append` extends; chunk_rows is required here.
  template <class T>
  void create_extendible(std::string_view name, const H5WriteOptions& options);
  /// Appends to a dataset made by create_extendible, in multiples of the chunk for best speed.
  template <class T>
  void append(std::string_view name, std::span<const T> values);
  void create_group(std::string_view name);

  // --- attributes (of a dataset or group; "" is the root) ------------------------------------
  bool has_attr(std::string_view object, std::string_view name) const;
  std::string attr_string(std::string_view object, std::string_view name) const;
  int64_t attr_int(std::string_view object, std::string_view name) const;
  double attr_double(std::string_view object, std::string_view name) const;
  /// At most about 64,000 bytes together per object: longer texts belong into write_string.
  void write_attr(std::string_view object, std::string_view name, std::string_view value);
  void write_attr(std::string_view object, std::string_view name, const char* value) {
    write_attr(object, name, std::string_view(value));
  }
  void write_attr(std::string_view object, std::string_view name, double value);
  /// Any integer; stored as a signed 64-bit number.
  template <class I>
  requires std::is_integral_v<I>
  void write_attr(std::string_view object, std::string_view name, I value) {
    write_attr_int(object, name, static_cast<int64_t>(value));
  }

 private:
  struct Impl;
  explicit Hdf5File(std::unique_ptr<Impl> impl);
  void write_attr_int(std::string_view object, std::string_view name, int64_t value);
  std::unique_ptr<Impl> impl_;
};

}  // namespace rwkv
