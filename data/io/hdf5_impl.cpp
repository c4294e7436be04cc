#include <hdf5.h>
// hdf5.h first: hdf5_impl.h needs it.
#include "data/io/hdf5_impl.h"

#include <algorithm>
#include <array>
#include <bit>

static_assert(std::endian::native == std::endian::little);

namespace rwkv {
namespace h5 {
namespace {

// The HDF5 library keeps process-wide tables; builds of it without thread support must not be
// entered by two threads, not even for different files.
std::recursive_mutex& library_mutex() {
  static std::recursive_mutex mutex;
  return mutex;
}

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

}  // namespace

LibraryLock::LibraryLock() : lock_(library_mutex()) {
  // Without an exit handler a file whose close failed (disk full) is simply forgotten; the handler
  // would try to close it again and again.
  static const bool once = (H5dont_atexit(), true);
  (void)once;
  H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
  // Links to other files lead nowhere: no name in a file is used as a path.
  static const bool alone = (H5Lunregister(H5L_TYPE_EXTERNAL), true);
  (void)alone;
}

std::string hdf5_says() {
  const std::string text = innermost_error();
  if (text.empty()) return "";
  // What the system said is all there is to know of a failed write or read; the library puts it
  // between a date, addresses and sizes, in two lines.
  constexpr std::string_view kSystem = "error message = '";
  if (const size_t at = text.find(kSystem); at != std::string::npos) {
    const size_t begin = at + kSystem.size();
    return " (" + text.substr(begin, text.find('\'', begin) - begin) + ")";
  }
  return " (HDF5: " + text + ")";
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

}  // namespace h5

using namespace h5;

void Hdf5File::Impl::fail(std::string_view doing, std::string_view name,
                          const std::string& detail) const {
  throw IoError(
      str(doing, " ", name.empty() ? "/" : name, writable ? " in " : " from ", path, ": ", detail));
}

void Hdf5File::Impl::need_open(std::string_view doing, std::string_view name) const {
  if (!file.ok()) fail(doing, name, "the file was closed before");
}

bool Hdf5File::Impl::exists(const std::string& name) const {
  for (size_t end = 0; end != std::string::npos && !name.empty();) {
    end = name.find('/', end + 1);
    const std::string part = name.substr(0, end);
    if (H5Lexists(file.get(), part.c_str(), H5P_DEFAULT) <= 0) return false;
    if (H5Oexists_by_name(file.get(), part.c_str(), H5P_DEFAULT) <= 0) return false;
  }
  return true;
}

Hid Hdf5File::Impl::open_object(std::string_view doing, const std::string& name) const {
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

H5I_type_t Hdf5File::Impl::object_kind(const std::string& name) const {
  Hid h(H5Oopen(file.get(), name.empty() ? "/" : name.c_str(), H5P_DEFAULT), H5Oclose);
  return h.ok() ? H5Iget_type(h.get()) : H5I_BADID;
}

std::vector<std::string> Hdf5File::Impl::children(const std::string& group) const {
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

void Hdf5File::Impl::collect_datasets(const std::string& root, const std::string& below, int depth,
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

Hid Hdf5File::Impl::open_dataset(std::string_view doing, const std::string& name) const {
  {
    const Hid object = open_object(doing, name);
    if (H5Iget_type(object.get()) != H5I_DATASET)
      fail(doing, name, "is a group, expected a dataset");
    // Random short reads: a chunk without filters is read in place, a filtered one has to be
    // decoded whole and is worth keeping.
    const Hid plist(H5Dget_create_plist(object.get()), H5Pclose);
    if (H5Pget_layout(plist.get()) == H5D_VIRTUAL || H5Pget_external_count(plist.get()) > 0)
      fail(doing, name, "its data would be in another file, which is not supported");
    const bool plain =
        H5Pget_layout(plist.get()) == H5D_CHUNKED && !writable && H5Pget_nfilters(plist.get()) == 0;
    if (!plain) return Hid(H5Dopen2(file.get(), name.c_str(), H5P_DEFAULT), H5Dclose);
  }
  const Hid access(H5Pcreate(H5P_DATASET_ACCESS), H5Pclose);
  H5Pset_chunk_cache(access.get(), 1, 0, 1.0);
  return Hid(H5Dopen2(file.get(), name.c_str(), access.get()), H5Dclose);
}

hid_t Hdf5File::Impl::keep_open(std::string_view doing, const std::string& name) {
  if (!open_set.ok() || open_name != name) {
    drop_open(doing);
    open_set = open_dataset(doing, name);
    if (!open_set.ok()) fail(doing, name, "cannot be opened" + hdf5_says());
    open_name = name;
  }
  return open_set.get();
}

void Hdf5File::Impl::drop_open(std::string_view doing) {
  if (!open_set.reset()) fail(doing, open_name, "cannot be written; disk full?" + hdf5_says());
}

std::string Hdf5File::Impl::name_of(hid_t object) const {
  std::array<char, 256> name{};
  return H5Iget_name(object, name.data(), name.size()) > 0 ? normal_name(name.data()) : "";
}

Shape Hdf5File::Impl::shape_of(hid_t set) const {
  const Hid space(H5Dget_space(set), H5Sclose);
  const int rank = H5Sget_simple_extent_ndims(space.get());
  std::vector<hsize_t> dims(static_cast<size_t>(std::max(rank, 0)));
  if (rank > 0) H5Sget_simple_extent_dims(space.get(), dims.data(), nullptr);
  Shape shape;
  int64_t numel = 1;  // of the extents that are not 0: products of any of them fit 64 bits then
  for (const hsize_t d : dims) {
    shape.push_back(static_cast<int64_t>(d));
    if (d > static_cast<hsize_t>(INT64_MAX) ||
        __builtin_mul_overflow(numel, std::max<int64_t>(shape.back(), 1), &numel))
      fail("reading the shape of", name_of(set),
           "its number of elements does not fit 64 bits; the file is damaged");
  }
  return shape;
}

H5Type Hdf5File::Impl::type_of_set(hid_t set) const {
  const Hid type(H5Dget_type(set), H5Tclose);
  return classify(type.get());
}

Hid Hdf5File::Impl::open_attr(const std::string& object, std::string_view name) const {
  const Hid owner = open_object("reading attributes of", object);
  const std::string n(name);
  if (H5Aexists(owner.get(), n.c_str()) <= 0)
    fail("reading attribute " + n + " of", object, "there is no such attribute");
  Hid attr(H5Aopen(owner.get(), n.c_str(), H5P_DEFAULT), H5Aclose);
  if (!attr.ok()) fail("reading attribute " + n + " of", object, "damaged" + hdf5_says());
  return attr;
}

void Hdf5File::Impl::put_attr(const std::string& object, std::string_view name, hid_t type,
                              const void* value) {
  const std::string n(name);
  const Hid owner = open_object("writing attributes of", object);
  const Hid space(H5Screate(H5S_SCALAR), H5Sclose);
  if (H5Aexists(owner.get(), n.c_str()) > 0) H5Adelete(owner.get(), n.c_str());
  Hid attr(H5Acreate2(owner.get(), n.c_str(), type, space.get(), H5P_DEFAULT, H5P_DEFAULT),
           H5Aclose);
  if (!attr.ok() || H5Awrite(attr.get(), type, value) < 0 || !attr.reset())
    fail("writing attribute " + n + " of", object, "failed; disk full?" + hdf5_says());
}

Hid Hdf5File::Impl::create_set(const std::string& name, H5Type type, const Shape& shape,
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

Hid Hdf5File::Impl::create_raw(const std::string& name, hid_t type,
                               const std::vector<hsize_t>& dims, bool extendible, hid_t plist) {
  std::vector<hsize_t> max_dims = dims;
  if (extendible) max_dims[0] = H5S_UNLIMITED;
  const Hid space(
      dims.empty() ? H5Screate(H5S_SCALAR)
                   : H5Screate_simple(static_cast<int>(dims.size()), dims.data(), max_dims.data()),
      H5Sclose);
  const Hid links(H5Pcreate(H5P_LINK_CREATE), H5Pclose);
  H5Pset_create_intermediate_group(links.get(), 1);
  H5Pset_char_encoding(links.get(), H5T_CSET_UTF8);
  Hid set(H5Dcreate2(file.get(), name.c_str(), type, space.get(), links.get(), plist, H5P_DEFAULT),
          H5Dclose);
  if (!set.ok()) fail("creating", name, "failed; disk full?" + hdf5_says());
  return set;
}

}  // namespace rwkv
