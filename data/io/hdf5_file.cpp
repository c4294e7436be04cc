#include "data/io/hdf5_file.h"

#include <hdf5.h>

#include <algorithm>
#include <bit>
#include <filesystem>
#include <limits>
#include <mutex>
#include <optional>
#include <type_traits>
#include <utility>

#include "kernels/core/error.h"

static_assert(std::endian::native == std::endian::little);

namespace rwkv {
namespace {

// The HDF5 library keeps process-wide tables; builds of it without thread support must not be
// entered by two threads, not even for different files.
std::recursive_mutex& library_mutex() {
  static std::recursive_mutex mutex;
  return mutex;
}

/// Holds the library for one call and silences its printing (a per-thread setting in some builds).
class LibraryLock {
 public:
  LibraryLock() : lock_(library_mutex()) {
    // Without an exit handler a file whose close failed (disk full) is simply forgotten; the
    // handler would try to close it again and again.
    static const bool once = (H5dont_atexit(), true);
    (void)once;
    H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
  }

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

/// The error that started the chain, as text; empty if there is none.
std::string innermost_error() {
  std::string text;
  H5Ewalk2(
      H5E_DEFAULT, H5E_WALK_UPWARD,
      [](unsigned n, const H5E_error2_t* e, void* out) -> herr_t {
        if (n == 0 && e->desc != nullptr) *static_cast<std::string*>(out) = e->desc;
        return 0;
      },
      &text);
  return text;
}

std::string hdf5_says() {
  const std::string text = innermost_error();
  return text.empty() ? "" : " (HDF5: " + text + ")";
}

H5Type classify(hid_t type) {
  const size_t size = H5Tget_size(type);
  switch (H5Tget_class(type)) {
    case H5T_STRING:
      return H5Type::kString;
    case H5T_FLOAT: {
      size_t sign = 0, exp = 0, exp_bits = 0, man = 0, man_bits = 0;
      if (H5Tget_fields(type, &sign, &exp, &exp_bits, &man, &man_bits) < 0) return H5Type::kOther;
      if (size == 2 && exp_bits == 5 && man_bits == 10) return H5Type::kF16;
      if (size == 4 && exp_bits == 8 && man_bits == 23) return H5Type::kF32;
      if (size == 8 && exp_bits == 11 && man_bits == 52) return H5Type::kF64;
      return H5Type::kOther;
    }
    case H5T_INTEGER: {
      const bool sign = H5Tget_sign(type) == H5T_SGN_2;
      switch (size) {
        case 1:
          return sign ? H5Type::kI8 : H5Type::kU8;
        case 2:
          return sign ? H5Type::kI16 : H5Type::kU16;
        case 4:
          return sign ? H5Type::kI32 : H5Type::kU32;
        case 8:
          return sign ? H5Type::kI64 : H5Type::kU64;
        default:
          return H5Type::kOther;
      }
    }
    default:
      return H5Type::kOther;
  }
}

bool is_integer(H5Type t) {
  return t >= H5Type::kI8 && t <= H5Type::kU64;
}
bool is_signed(H5Type t) {
  return t == H5Type::kI8 || t == H5Type::kI16 || t == H5Type::kI32 || t == H5Type::kI64;
}
/// Value bits: 7 for i8, 8 for u8, ...; significand bits of floats.
int value_bits(H5Type t) {
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
Hid h5_type(H5Type t) {
  const auto copy = [](hid_t base) { return Hid(H5Tcopy(base), H5Tclose); };
  switch (t) {
    case H5Type::kF16: {
      Hid h = copy(H5T_IEEE_F32LE);  // fields before size: a type may not cut its own fields
      H5Tset_fields(h.get(), 15, 10, 5, 0, 10);
      H5Tset_size(h.get(), 2);
      H5Tset_ebias(h.get(), 15);
      return h;
    }
    case H5Type::kF32:
      return copy(H5T_IEEE_F32LE);
    case H5Type::kF64:
      return copy(H5T_IEEE_F64LE);
    case H5Type::kI8:
      return copy(H5T_STD_I8LE);
    case H5Type::kU8:
      return copy(H5T_STD_U8LE);
    case H5Type::kI16:
      return copy(H5T_STD_I16LE);
    case H5Type::kU16:
      return copy(H5T_STD_U16LE);
    case H5Type::kI32:
      return copy(H5T_STD_I32LE);
    case H5Type::kU32:
      return copy(H5T_STD_U32LE);
    case H5Type::kI64:
      return copy(H5T_STD_I64LE);
    case H5Type::kU64:
      return copy(H5T_STD_U64LE);
    default:
      throw InternalError("no HDF5 number type for strings");
  }
}

Hid string_type(size_t size) {
  Hid h(H5Tcopy(H5T_C_S1), H5Tclose);
  H5Tset_size(h.get(), size);
  H5Tset_cset(h.get(), H5T_CSET_UTF8);
  return h;
}

/// No empty components, no leading slash: one spelling per object.
std::string normal_name(std::string_view name) {
  std::string out;
  for (size_t i = 0; i < name.size();) {
    const size_t end = std::min(name.find('/', i), name.size());
    if (end > i) {
      if (!out.empty()) out += '/';
      out += name.substr(i, end - i);
    }
    i = end + 1;
  }
  return out;
}

}  // namespace

std::string shape_string(const Shape& shape) {
  std::string text = "(";
  for (size_t i = 0; i < shape.size(); ++i) text += (i > 0 ? ", " : "") + std::to_string(shape[i]);
  return text + ")";
}

int64_t shape_numel(const Shape& shape) {
  int64_t n = 1;
  for (const int64_t d : shape) n *= d;
  return n;
}

std::string_view h5type_name(H5Type type) {
  static constexpr std::string_view kNames[] = {"f16", "f32", "f64", "i8",  "u8",     "i16",  "u16",
                                                "i32", "u32", "i64", "u64", "string", "other"};
  return kNames[static_cast<size_t>(type)];
}

// ------------------------------------------------------------------------------------------------

struct Hdf5File::Impl {
  std::string path;
  Hid file;
  bool writable = false;
  // The dataset of the last read_slice or append stays open; mutable because reading may open it.
  std::string open_name;
  Hid open_set;

  [[noreturn]] void fail(std::string_view doing, std::string_view name,
                         const std::string& detail) const {
    throw IoError(str(doing, " ", name.empty() ? "/" : name, writable ? " in " : " from ", path,
                      ": ", detail));
  }
  void need_open(std::string_view doing, std::string_view name) const {
    if (!file.ok()) fail(doing, name, "the file was closed before");
  }

  bool exists(const std::string& name) const {
    for (size_t end = 0; end != std::string::npos && !name.empty();) {
      end = name.find('/', end + 1);
      const std::string part = name.substr(0, end);
      if (H5Lexists(file.get(), part.c_str(), H5P_DEFAULT) <= 0) return false;
      if (H5Oexists_by_name(file.get(), part.c_str(), H5P_DEFAULT) <= 0) return false;
    }
    return true;
  }

  /// Opens any object; the kind is checked by the caller.
  Hid open_object(std::string_view doing, const std::string& name) const {
    need_open(doing, name);
    if (!exists(name)) {
      const size_t slash = name.rfind('/');
      const std::string parent = slash == std::string::npos ? "" : name.substr(0, slash);
      std::string hint = "there is no such dataset or group";
      if (exists(parent) && object_kind(parent) == H5I_GROUP) {
        hint += "; " + (parent.empty() ? "the root" : parent) + " holds";
        const auto names = children(parent);
        for (size_t i = 0; i < names.size() && i < 8; ++i) hint += " " + names[i];
        if (names.empty()) hint += " nothing";
        if (names.size() > 8) hint += str(" ... (", names.size(), ")");
      }
      fail(doing, name, hint);
    }
    Hid h(H5Oopen(file.get(), name.empty() ? "/" : name.c_str(), H5P_DEFAULT), H5Oclose);
    if (!h.ok()) fail(doing, name, "cannot be opened; the file is damaged" + hdf5_says());
    return h;
  }
  H5I_type_t object_kind(const std::string& name) const {
    Hid h(H5Oopen(file.get(), name.empty() ? "/" : name.c_str(), H5P_DEFAULT), H5Oclose);
    return h.ok() ? H5Iget_type(h.get()) : H5I_BADID;
  }
  std::vector<std::string> children(const std::string& group) const {
    std::vector<std::string> names;
    Hid g(H5Gopen2(file.get(), group.empty() ? "/" : group.c_str(), H5P_DEFAULT), H5Gclose);
    if (!g.ok()) fail("listing", group, "not a group" + hdf5_says());
    const auto collect = [](hid_t, const char* name, const H5L_info_t*, void* out) -> herr_t {
      static_cast<std::vector<std::string>*>(out)->emplace_back(name);
      return 0;
    };
    if (H5Literate(g.get(), H5_INDEX_NAME, H5_ITER_INC, nullptr, collect, &names) < 0)
      fail("listing", group, "cannot be read; the file is damaged" + hdf5_says());
    std::sort(names.begin(), names.end());
    return names;
  }
  void collect_datasets(const std::string& root, const std::string& below, int depth,
                        std::vector<std::string>& out) const {
    RWKV_CHECK(depth < 64, IoError, "listing ", root, " of ", path,
               ": groups nest deeper than 64; a link that points to its own parent?");
    const std::string group = normal_name(root + "/" + below);
    for (const auto& name : children(group)) {
      const std::string relative = below.empty() ? name : below + "/" + name;
      const H5I_type_t kind = object_kind(normal_name(root + "/" + relative));
      if (kind == H5I_GROUP) collect_datasets(root, relative, depth + 1, out);
      if (kind == H5I_DATASET) out.push_back(relative);
    }
  }

  /// Opened by its own call, so that chunk cache and access settings fit the dataset.
  Hid open_dataset(std::string_view doing, const std::string& name) const {
    {
      const Hid object = open_object(doing, name);
      if (H5Iget_type(object.get()) != H5I_DATASET)
        fail(doing, name, "is a group, expected a dataset");
      // Random short reads: a chunk without filters is read in place, a filtered one has to be
      // decoded whole and is worth keeping.
      const Hid plist(H5Dget_create_plist(object.get()), H5Pclose);
      const bool plain = H5Pget_layout(plist.get()) == H5D_CHUNKED && !writable &&
                         H5Pget_nfilters(plist.get()) == 0;
      if (!plain) return Hid(H5Dopen2(file.get(), name.c_str(), H5P_DEFAULT), H5Dclose);
    }
    const Hid access(H5Pcreate(H5P_DATASET_ACCESS), H5Pclose);
    H5Pset_chunk_cache(access.get(), 1, 0, 1.0);
    return Hid(H5Dopen2(file.get(), name.c_str(), access.get()), H5Dclose);
  }
  hid_t keep_open(std::string_view doing, const std::string& name) {
    if (!open_set.ok() || open_name != name) {
      drop_open(doing);
      open_set = open_dataset(doing, name);
      if (!open_set.ok()) fail(doing, name, "cannot be opened" + hdf5_says());
      open_name = name;
    }
    return open_set.get();
  }
  void drop_open(std::string_view doing) {
    if (!open_set.reset()) fail(doing, open_name, "cannot be written; disk full?" + hdf5_says());
  }

  Shape shape_of(hid_t set) const {
    const Hid space(H5Dget_space(set), H5Sclose);
    const int rank = H5Sget_simple_extent_ndims(space.get());
    std::vector<hsize_t> dims(static_cast<size_t>(std::max(rank, 0)));
    if (rank > 0) H5Sget_simple_extent_dims(space.get(), dims.data(), nullptr);
    Shape shape;
    for (const hsize_t d : dims) shape.push_back(static_cast<int64_t>(d));
    return shape;
  }
  H5Type type_of_set(hid_t set) const {
    const Hid type(H5Dget_type(set), H5Tclose);
    return classify(type.get());
  }

  /// Reads the selection (space may be H5S_ALL) of `count` elements as T, checking the conversion.
  template <class T>
  void read_as(const std::string& name, hid_t set, hid_t mem_space, hid_t file_space, T* out,
               size_t count) const {
    constexpr H5Type want = rwkv::type_of<T>();
    const H5Type have = type_of_set(set);
    const auto run = [&](H5Type memory, void* to) {
      const Hid type = h5_type(memory);
      if (H5Dread(set, type.get(), mem_space, file_space, H5P_DEFAULT, to) < 0)
        fail("reading", name, "the data cannot be read; the file is damaged" + hdf5_says());
    };
    const bool direct =
        have == want ||
        (value_bits(have) > 0 && value_bits(have) <= value_bits(want) &&
         (is_integer(want) ? is_integer(have) && (is_signed(want) || !is_signed(have))
                           : want != H5Type::kF16));
    if (direct) {
      if (count > 0) run(want, out);
      return;
    }
    if constexpr (std::is_integral_v<T>) {
      const auto narrow = [&](auto wide) {
        using W = decltype(wide);
        std::vector<W> values(count);
        if (count > 0) run(rwkv::type_of<W>(), values.data());
        for (size_t i = 0; i < count; ++i) {
          if (!std::in_range<T>(values[i]))
            fail("reading", name,
                 str("element ", i, " is ", values[i], ", which does not fit ", h5type_name(want),
                     " (stored as ", h5type_name(have), ")"));
          out[i] = static_cast<T>(values[i]);
        }
      };
      if (is_integer(have)) return is_signed(have) ? narrow(int64_t{}) : narrow(uint64_t{});
    }
    fail("reading", name,
         str("elements are ", h5type_name(have), ", expected ", h5type_name(want),
             " or a type that converts to it without loss"));
  }

  Hid open_attr_owner(std::string_view doing, const std::string& object) const {
    return open_object(doing, object);
  }
  Hid open_attr(const std::string& object, std::string_view name) const {
    const Hid owner = open_object("reading attributes of", object);
    const std::string n(name);
    if (H5Aexists(owner.get(), n.c_str()) <= 0)
      fail("reading attribute " + n + " of", object, "there is no such attribute");
    Hid attr(H5Aopen(owner.get(), n.c_str(), H5P_DEFAULT), H5Aclose);
    if (!attr.ok()) fail("reading attribute " + n + " of", object, "damaged" + hdf5_says());
    return attr;
  }
  void put_attr(const std::string& object, std::string_view name, hid_t type, const void* value) {
    const std::string n(name);
    const Hid owner = open_object("writing attributes of", object);
    const Hid space(H5Screate(H5S_SCALAR), H5Sclose);
    if (H5Aexists(owner.get(), n.c_str()) > 0) H5Adelete(owner.get(), n.c_str());
    Hid attr(H5Acreate2(owner.get(), n.c_str(), type, space.get(), H5P_DEFAULT, H5P_DEFAULT),
             H5Aclose);
    if (!attr.ok() || H5Awrite(attr.get(), type, value) < 0 || !attr.reset())
      fail("writing attribute " + n + " of", object, "failed; disk full?" + hdf5_says());
  }

  /// Creates a dataset with its parent groups.
  Hid create_set(const std::string& name, H5Type type, const Shape& shape,
                 const H5WriteOptions& options, bool extendible) {
    need_open("writing", name);
    RWKV_CHECK(writable, IoError, "writing ", name, ": ", path, " was opened for reading");
    RWKV_CHECK(!name.empty(), IoError, "writing to ", path, ": the dataset name is empty");
    RWKV_CHECK(!exists(name), IoError, "writing ", name, " in ", path, ": it exists already");
    std::vector<hsize_t> dims(shape.begin(), shape.end());
    Hid plist(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
    H5Pset_obj_track_times(plist.get(), false);
    const int64_t n = shape_numel(shape);
    const bool deflate = options.deflate > 0 && H5Zfilter_avail(H5Z_FILTER_DEFLATE) > 0;
    if (!shape.empty() && (extendible || (n > 0 && (options.chunk_rows > 0 || deflate)))) {
      std::vector<hsize_t> chunk = dims;
      int64_t rows = options.chunk_rows;
      if (rows <= 0) {
        const int64_t row = std::max<int64_t>(n / std::max<int64_t>(shape[0], 1), 1);
        rows = std::max<int64_t>((int64_t{1} << 18) / row, 1);
      }
      chunk[0] = static_cast<hsize_t>(extendible ? rows : std::min(rows, shape[0]));
      H5Pset_chunk(plist.get(), static_cast<int>(chunk.size()), chunk.data());
      if (options.shuffle) H5Pset_shuffle(plist.get());
      if (deflate) H5Pset_deflate(plist.get(), static_cast<unsigned>(std::min(options.deflate, 9)));
    }
    const Hid type_id = h5_type(type);
    return create_raw(name, type_id.get(), dims, extendible, plist.get());
  }
  Hid create_raw(const std::string& name, hid_t type, const std::vector<hsize_t>& dims,
                 bool extendible, hid_t plist) {
    std::vector<hsize_t> max_dims = dims;
    if (extendible) max_dims[0] = H5S_UNLIMITED;
    const Hid space(dims.empty() ? H5Screate(H5S_SCALAR)
                                 : H5Screate_simple(static_cast<int>(dims.size()), dims.data(),
                                                    max_dims.data()),
                    H5Sclose);
    const Hid links(H5Pcreate(H5P_LINK_CREATE), H5Pclose);
    H5Pset_create_intermediate_group(links.get(), 1);
    H5Pset_char_encoding(links.get(), H5T_CSET_UTF8);
    Hid set(
        H5Dcreate2(file.get(), name.c_str(), type, space.get(), links.get(), plist, H5P_DEFAULT),
        H5Dclose);
    if (!set.ok()) fail("creating", name, "failed; disk full?" + hdf5_says());
    return set;
  }
};

Hdf5File::Hdf5File(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Hdf5File::Hdf5File(Hdf5File&&) noexcept = default;
Hdf5File& Hdf5File::operator=(Hdf5File&& o) noexcept {
  LibraryLock lock;
  impl_ = std::move(o.impl_);
  return *this;
}
Hdf5File::~Hdf5File() {
  LibraryLock lock;
  if (impl_ != nullptr) impl_->open_set.reset();
  impl_.reset();
}

namespace {
Hid file_access() {
  Hid access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose);
  // The oldest layout that can hold the data, nothing newer than 1.10.
  H5Pset_libver_bounds(access.get(), H5F_LIBVER_EARLIEST, H5F_LIBVER_V110);
  H5Pset_fclose_degree(access.get(), H5F_CLOSE_STRONG);
#if H5_VERSION_GE(1, 12, 1) || (H5_VERSION_GE(1, 10, 7) && !H5_VERSION_GE(1, 11, 0))
  // Writers here work on temporary names, so locks protect nothing, and some network file systems
  // have none.
  H5Pset_file_locking(access.get(), false, true);
#endif
  return access;
}
}  // namespace

Hdf5File Hdf5File::open(const std::string& path) {
  LibraryLock lock;
  std::error_code ec;
  RWKV_CHECK(std::filesystem::exists(path, ec), IoError, "opening ", path, ": no such file");
  RWKV_CHECK(std::filesystem::is_regular_file(path, ec), IoError, "opening ", path,
             ": not a regular file");
  const Hid access = file_access();
  auto impl = std::make_unique<Impl>();
  impl->path = path;
  impl->file = Hid(H5Fopen(path.c_str(), H5F_ACC_RDONLY, access.get()), H5Fclose);
  if (!impl->file.ok()) {
    const std::string says = hdf5_says();
    const htri_t hdf5 = H5Fis_hdf5(path.c_str());
    throw IoError(str("opening ", path, ": ",
                      hdf5 == 0  ? "not an HDF5 file"
                      : hdf5 < 0 ? "cannot be read; do you have permission?"
                                 : "damaged or truncated HDF5 file",
                      says));
  }
  return Hdf5File(std::move(impl));
}

Hdf5File Hdf5File::create(const std::string& path) {
  LibraryLock lock;
  const Hid access = file_access();
  const Hid plist(H5Pcreate(H5P_FILE_CREATE), H5Pclose);
  H5Pset_obj_track_times(plist.get(), false);
  auto impl = std::make_unique<Impl>();
  impl->path = path;
  impl->writable = true;
  impl->file = Hid(H5Fcreate(path.c_str(), H5F_ACC_TRUNC, plist.get(), access.get()), H5Fclose);
  RWKV_CHECK(impl->file.ok(), IoError, "creating ", path,
             ": failed; does the folder exist, is it writable, is there space?", hdf5_says());
  return Hdf5File(std::move(impl));
}

const std::string& Hdf5File::path() const {
  return impl_->path;
}
bool Hdf5File::is_open() const {
  return impl_ != nullptr && impl_->file.ok();
}

void Hdf5File::flush() {
  LibraryLock lock;
  impl_->need_open("flushing", "");
  if (H5Fflush(impl_->file.get(), H5F_SCOPE_GLOBAL) < 0)
    throw IoError(str("writing ", impl_->path, ": flushing failed; disk full?", hdf5_says()));
}

void Hdf5File::close() {
  LibraryLock lock;
  if (!is_open()) return;
  std::string problem;
  if (!impl_->open_set.reset()) problem = hdf5_says();
  if (problem.empty() && impl_->writable && H5Fflush(impl_->file.get(), H5F_SCOPE_GLOBAL) < 0)
    problem = hdf5_says() + " ";
  if (!impl_->file.reset() && problem.empty()) problem = hdf5_says() + " ";
  RWKV_CHECK(problem.empty(), IoError, "writing ", impl_->path, ": closing failed; disk full?",
             problem);
}

bool Hdf5File::exists(std::string_view name) const {
  LibraryLock lock;
  impl_->need_open("looking for", name);
  return impl_->exists(normal_name(name));
}

bool Hdf5File::is_dataset(std::string_view name) const {
  LibraryLock lock;
  const std::string n = normal_name(name);
  return exists(n) && impl_->object_kind(n) == H5I_DATASET;
}

std::vector<std::string> Hdf5File::list(std::string_view group) const {
  LibraryLock lock;
  const std::string n = normal_name(group);
  impl_->open_object("listing", n);
  return impl_->children(n);
}

std::vector<std::string> Hdf5File::list_datasets(std::string_view group) const {
  LibraryLock lock;
  const std::string n = normal_name(group);
  impl_->open_object("listing", n);
  std::vector<std::string> out;
  impl_->collect_datasets(n, "", 0, out);
  std::sort(out.begin(), out.end());
  return out;
}

Shape Hdf5File::shape(std::string_view name) const {
  LibraryLock lock;
  return impl_->shape_of(impl_->open_dataset("reading the shape of", normal_name(name)).get());
}

int64_t Hdf5File::numel(std::string_view name) const {
  return shape_numel(shape(name));
}

H5Type Hdf5File::type(std::string_view name) const {
  LibraryLock lock;
  return impl_->type_of_set(impl_->open_dataset("reading the type of", normal_name(name)).get());
}

int64_t Hdf5File::data_offset(std::string_view name) const {
  LibraryLock lock;
  const std::string n = normal_name(name);
  const Hid set = impl_->open_dataset("locating", n);
  const haddr_t at = H5Dget_offset(set.get());
  if (at == HADDR_UNDEF || impl_->type_of_set(set.get()) == H5Type::kString) return -1;
  return static_cast<int64_t>(at);
}

template <class T>
std::vector<T> Hdf5File::read(std::string_view name) const {
  LibraryLock lock;
  const std::string n = normal_name(name);
  const Hid set = impl_->open_dataset("reading", n);
  std::vector<T> out(static_cast<size_t>(shape_numel(impl_->shape_of(set.get()))));
  impl_->read_as<T>(n, set.get(), H5S_ALL, H5S_ALL, out.data(), out.size());
  return out;
}

template <class T>
void Hdf5File::read_into(std::string_view name, std::span<T> out) const {
  LibraryLock lock;
  const std::string n = normal_name(name);
  const Hid set = impl_->open_dataset("reading", n);
  const Shape shape = impl_->shape_of(set.get());
  if (shape_numel(shape) != static_cast<int64_t>(out.size()))
    impl_->fail("reading", n,
                str("shape ", shape_string(shape), " holds ", shape_numel(shape),
                    " elements, expected ", out.size()));
  impl_->read_as<T>(n, set.get(), H5S_ALL, H5S_ALL, out.data(), out.size());
}

template <class T>
void Hdf5File::read_into(std::string_view name, const Shape& expected, std::span<T> out) const {
  LibraryLock lock;
  const std::string n = normal_name(name);
  const Shape found = impl_->shape_of(impl_->open_dataset("reading", n).get());
  if (found != expected)
    impl_->fail("reading", n,
                str("shape ", shape_string(found), ", expected ", shape_string(expected)));
  read_into<T>(name, out);
}

template <class T>
void Hdf5File::read_slice(std::string_view name, int64_t offset, int64_t count, T* out) const {
  LibraryLock lock;
  const std::string n = normal_name(name);
  const hid_t set = impl_->keep_open("reading", n);
  const Shape shape = impl_->shape_of(set);
  if (shape.size() != 1)
    impl_->fail("reading", n, str("shape ", shape_string(shape), ", expected one dimension"));
  if (offset < 0 || count < 0 || offset > shape[0] - count)
    impl_->fail("reading", n, str("elements ", offset, " to ", offset + count, " of ", shape[0]));
  if (count == 0) return;
  const hsize_t begin = static_cast<hsize_t>(offset), length = static_cast<hsize_t>(count);
  const Hid file_space(H5Dget_space(set), H5Sclose);
  const Hid mem_space(H5Screate_simple(1, &length, nullptr), H5Sclose);
  H5Sselect_hyperslab(file_space.get(), H5S_SELECT_SET, &begin, nullptr, &length, nullptr);
  impl_->read_as<T>(n, set, mem_space.get(), file_space.get(), out, static_cast<size_t>(count));
}

template <class T>
T Hdf5File::read_scalar(std::string_view name) const {
  LibraryLock lock;
  T value{};
  read_into<T>(name, std::span<T>(&value, 1));
  return value;
}

template <class T>
void Hdf5File::write(std::string_view name, const Shape& shape, std::span<const T> values,
                     const H5WriteOptions& options) {
  LibraryLock lock;
  const std::string n = normal_name(name);
  for (const int64_t d : shape)
    if (d < 0) impl_->fail("writing", n, "negative extent in shape " + shape_string(shape));
  if (shape_numel(shape) != static_cast<int64_t>(values.size()))
    impl_->fail("writing", n,
                str("shape ", shape_string(shape), " needs ", shape_numel(shape),
                    " elements, given ", values.size()));
  Hid set = impl_->create_set(n, rwkv::type_of<T>(), shape, options, false);
  const Hid type = h5_type(rwkv::type_of<T>());
  if ((!values.empty() &&
       H5Dwrite(set.get(), type.get(), H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()) < 0) ||
      !set.reset())
    impl_->fail("writing", n, "the data cannot be written; disk full?" + hdf5_says());
}

template <class T>
void Hdf5File::create_extendible(std::string_view name, const H5WriteOptions& options) {
  LibraryLock lock;
  const std::string n = normal_name(name);
  RWKV_CHECK(options.chunk_rows > 0, IoError, "creating ", n, " in ", impl_->path,
             ": an extendible dataset needs chunk_rows > 0");
  Hid set = impl_->create_set(n, rwkv::type_of<T>(), {0}, options, true);
  if (!set.reset()) impl_->fail("creating", n, "failed; disk full?" + hdf5_says());
}

template <class T>
void Hdf5File::append(std::string_view name, std::span<const T> values) {
  LibraryLock lock;
  const std::string n = normal_name(name);
  impl_->need_open("appending to", n);
  const hid_t set = impl_->keep_open("appending to", n);
  const Shape shape = impl_->shape_of(set);
  const H5Type have = impl_->type_of_set(set);
  if (shape.size() != 1 || have != rwkv::type_of<T>())
    impl_->fail("appending to", n,
                str("it is ", shape_string(shape), " ", h5type_name(have),
                    ", expected one dimension of ", h5type_name(rwkv::type_of<T>())));
  if (values.empty()) return;
  const hsize_t begin = static_cast<hsize_t>(shape[0]), length = values.size();
  const hsize_t total = begin + length;
  if (H5Dset_extent(set, &total) < 0)
    impl_->fail("appending to", n, "it cannot grow; disk full?" + hdf5_says());
  const Hid file_space(H5Dget_space(set), H5Sclose);
  const Hid mem_space(H5Screate_simple(1, &length, nullptr), H5Sclose);
  const Hid type = h5_type(rwkv::type_of<T>());
  H5Sselect_hyperslab(file_space.get(), H5S_SELECT_SET, &begin, nullptr, &length, nullptr);
  if (H5Dwrite(set, type.get(), mem_space.get(), file_space.get(), H5P_DEFAULT, values.data()) < 0)
    impl_->fail("appending to", n, "the data cannot be written; disk full?" + hdf5_says());
}

void Hdf5File::create_group(std::string_view name) {
  LibraryLock lock;
  const std::string n = normal_name(name);
  impl_->need_open("creating group", n);
  if (impl_->exists(n)) return;
  const Hid links(H5Pcreate(H5P_LINK_CREATE), H5Pclose);
  H5Pset_create_intermediate_group(links.get(), 1);
  Hid group(H5Gcreate2(impl_->file.get(), n.c_str(), links.get(), H5P_DEFAULT, H5P_DEFAULT),
            H5Gclose);
  if (!group.ok()) impl_->fail("creating group", n, "failed; disk full?" + hdf5_says());
}

// --- strings and attributes ---------------------------------------------------------------------

namespace {

/// Reads one string by way of `read(memory type, destination)`; reports failure as nullopt.
template <class Read>
std::optional<std::string> read_text(hid_t type, const Read& read) {
  if (H5Tis_variable_str(type) > 0) {
    const Hid memory = string_type(H5T_VARIABLE);
    H5Tset_cset(memory.get(), H5Tget_cset(type));
    char* text = nullptr;
    if (read(memory.get(), &text) < 0) return std::nullopt;
    std::string out = text == nullptr ? "" : text;
    if (text != nullptr) H5free_memory(text);
    return out;
  }
  std::string out(H5Tget_size(type), '\0');
  if (read(type, out.data()) < 0) return std::nullopt;
  out.resize(std::min(out.find('\0'), out.size()));
  return out;
}

void check_text(std::string_view name, const std::string& path, std::string_view value) {
  RWKV_CHECK(value.find('\0') == std::string_view::npos, IoError, "writing string ", name, " in ",
             path, ": it contains a NUL character; store it as a u8 dataset");
}

}  // namespace

std::string Hdf5File::read_string(std::string_view name) const {
  LibraryLock lock;
  const std::string n = normal_name(name);
  const Hid set = impl_->open_dataset("reading", n);
  const Hid type(H5Dget_type(set.get()), H5Tclose);
  if (classify(type.get()) != H5Type::kString || shape_numel(impl_->shape_of(set.get())) != 1)
    impl_->fail("reading", n,
                str("it is ", shape_string(impl_->shape_of(set.get())), " ",
                    h5type_name(classify(type.get())), ", expected one string"));
  auto text = read_text(type.get(), [&](hid_t memory, void* to) {
    return H5Dread(set.get(), memory, H5S_ALL, H5S_ALL, H5P_DEFAULT, to);
  });
  if (!text) impl_->fail("reading", n, "the text cannot be read; damaged file" + hdf5_says());
  return *text;
}

void Hdf5File::write_string(std::string_view name, std::string_view value) {
  LibraryLock lock;
  const std::string n = normal_name(name), text(value);
  check_text(n, impl_->path, value);
  impl_->need_open("writing", n);
  RWKV_CHECK(impl_->writable && !n.empty() && !impl_->exists(n), IoError, "writing string ", n,
             " in ", impl_->path, ": the file is read-only, or the name is empty or taken");
  const Hid type = string_type(H5T_VARIABLE);
  const Hid plist(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
  H5Pset_obj_track_times(plist.get(), false);
  Hid set = impl_->create_raw(n, type.get(), {}, false, plist.get());
  const char* p = text.c_str();
  if (H5Dwrite(set.get(), type.get(), H5S_ALL, H5S_ALL, H5P_DEFAULT, &p) < 0 || !set.reset())
    impl_->fail("writing", n, "the text cannot be written; disk full?" + hdf5_says());
}

bool Hdf5File::has_attr(std::string_view object, std::string_view name) const {
  LibraryLock lock;
  const Hid owner = impl_->open_object("reading attributes of", normal_name(object));
  return H5Aexists(owner.get(), std::string(name).c_str()) > 0;
}

std::string Hdf5File::attr_string(std::string_view object, std::string_view name) const {
  LibraryLock lock;
  const std::string o = normal_name(object);
  const Hid attr = impl_->open_attr(o, name);
  const Hid type(H5Aget_type(attr.get()), H5Tclose);
  std::optional<std::string> text;
  if (classify(type.get()) == H5Type::kString)
    text = read_text(type.get(),
                     [&](hid_t memory, void* to) { return H5Aread(attr.get(), memory, to); });
  if (!text)
    impl_->fail(str("reading attribute ", name, " of"), o,
                str("it is ", h5type_name(classify(type.get())), ", expected a string"));
  return *text;
}

namespace {
template <class T>
T numeric_attr(hid_t attr, bool& ok) {
  T value{};
  const Hid type(H5Aget_type(attr), H5Tclose);
  const H5Type have = classify(type.get());
  ok = is_integer(have) || (value_bits(have) > 0 && std::is_floating_point_v<T>);
  const Hid memory = h5_type(type_of<T>());
  ok = ok && H5Aget_storage_size(attr) <= sizeof(T) && H5Aread(attr, memory.get(), &value) >= 0;
  return value;
}
}  // namespace

int64_t Hdf5File::attr_int(std::string_view object, std::string_view name) const {
  LibraryLock lock;
  const std::string o = normal_name(object);
  bool ok = false;
  const auto value = numeric_attr<int64_t>(impl_->open_attr(o, name).get(), ok);
  if (!ok) impl_->fail(str("reading attribute ", name, " of"), o, "expected one integer");
  return value;
}

double Hdf5File::attr_double(std::string_view object, std::string_view name) const {
  LibraryLock lock;
  const std::string o = normal_name(object);
  bool ok = false;
  const auto value = numeric_attr<double>(impl_->open_attr(o, name).get(), ok);
  if (!ok) impl_->fail(str("reading attribute ", name, " of"), o, "expected one number");
  return value;
}

void Hdf5File::write_attr(std::string_view object, std::string_view name, std::string_view value) {
  LibraryLock lock;
  check_text(name, impl_->path, value);
  // Fixed length: the text lies in the object header, and equal content gives equal bytes.
  std::string text(value);
  const Hid type = string_type(text.size() + 1);
  impl_->put_attr(normal_name(object), name, type.get(), text.c_str());
}

void Hdf5File::write_attr_int(std::string_view object, std::string_view name, int64_t value) {
  LibraryLock lock;
  const Hid type = h5_type(H5Type::kI64);
  impl_->put_attr(normal_name(object), name, type.get(), &value);
}

void Hdf5File::write_attr(std::string_view object, std::string_view name, double value) {
  LibraryLock lock;
  const Hid type = h5_type(H5Type::kF64);
  impl_->put_attr(normal_name(object), name, type.get(), &value);
}

#define RWKV_HDF5_INSTANTIATE(T)                                                            \
  template std::vector<T> Hdf5File::read<T>(std::string_view) const;                        \
  template void Hdf5File::read_into<T>(std::string_view, std::span<T>) const;               \
  template void Hdf5File::read_into<T>(std::string_view, const Shape&, std::span<T>) const; \
  template void Hdf5File::read_slice<T>(std::string_view, int64_t, int64_t, T*) const;      \
  template T Hdf5File::read_scalar<T>(std::string_view) const;                              \
  template void Hdf5File::write<T>(std::string_view, const Shape&, std::span<const T>,      \
                                   const H5WriteOptions&);                                  \
  template void Hdf5File::create_extendible<T>(std::string_view, const H5WriteOptions&);    \
  template void Hdf5File::append<T>(std::string_view, std::span<const T>)

RWKV_HDF5_INSTANTIATE(F16);
RWKV_HDF5_INSTANTIATE(float);
RWKV_HDF5_INSTANTIATE(double);
RWKV_HDF5_INSTANTIATE(int8_t);
RWKV_HDF5_INSTANTIATE(uint8_t);
RWKV_HDF5_INSTANTIATE(int16_t);
RWKV_HDF5_INSTANTIATE(uint16_t);
RWKV_HDF5_INSTANTIATE(int32_t);
RWKV_HDF5_INSTANTIATE(uint32_t);
RWKV_HDF5_INSTANTIATE(int64_t);
RWKV_HDF5_INSTANTIATE(uint64_t);

}  // namespace rwkv
