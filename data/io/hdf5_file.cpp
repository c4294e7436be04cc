#include "data/io/hdf5_file.h"

#include <hdf5.h>
// hdf5.h first: hdf5_impl.h needs it.
#include "data/io/hdf5_impl.h"

#include <algorithm>
#include <filesystem>
#include <optional>
#include <type_traits>
#include <utility>

namespace rwkv {

using namespace h5;

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

template <class T>
void Hdf5File::Impl::read_as(const std::string& name, hid_t set, hid_t mem_space, hid_t file_space,
                             T* out, size_t count) const {
  constexpr H5Type want = type_of<T>();
  const H5Type have = type_of_set(set);
  const auto run = [&](H5Type memory, void* to) {
    const Hid type = h5_type(memory);
    if (H5Dread(set, type.get(), mem_space, file_space, H5P_DEFAULT, to) < 0)
      fail("reading", name, "the data cannot be read; the file is damaged" + hdf5_says());
  };
  const bool direct =
      have == want || (value_bits(have) > 0 && value_bits(have) <= value_bits(want) &&
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
      if (count > 0) run(type_of<W>(), values.data());
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

std::vector<std::pair<uint64_t, uint64_t>> Hdf5File::chunk_extents(std::string_view name) const {
  LibraryLock lock;
  const std::string n = normal_name(name);
  const Hid set = impl_->open_dataset("locating", n);
  const Hid plist(H5Dget_create_plist(set.get()), H5Pclose);
  hsize_t rows = 0;
  const Shape shape = impl_->shape_of(set.get());
  if (shape.size() != 1 || H5Pget_layout(plist.get()) != H5D_CHUNKED ||
      H5Pget_chunk(plist.get(), 1, &rows) != 1 || H5Pget_nfilters(plist.get()) != 0)
    impl_->fail("locating", n, "expected one dimension, in chunks without filters");
  std::vector<std::pair<uint64_t, uint64_t>> extents;
  for (hsize_t at = 0; at < static_cast<hsize_t>(shape[0]); at += rows) {
    haddr_t address = HADDR_UNDEF;
    hsize_t bytes = 0;
    // By place, which is a search in a tree; by number the library would count from the first.
    if (H5Dget_chunk_info_by_coord(set.get(), &at, nullptr, &address, &bytes) < 0)
      impl_->fail("locating", n, hdf5_says());
    if (address != HADDR_UNDEF && bytes > 0) extents.emplace_back(address, bytes);
  }
  std::ranges::sort(extents);
  size_t kept = 0;
  for (size_t i = 1; i < extents.size(); ++i) {
    if (extents[kept].first + extents[kept].second == extents[i].first)
      extents[kept].second += extents[i].second;
    else
      extents[++kept] = extents[i];
  }
  if (!extents.empty()) extents.resize(kept + 1);
  return extents;
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
    impl_->fail("reading", n, str(count, " elements from ", offset, ", it has ", shape[0]));
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
  Hid set = impl_->create_set(n, type_of<T>(), shape, options, false);
  const Hid type = h5_type(type_of<T>());
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
  Hid set = impl_->create_set(n, type_of<T>(), {0}, options, true);
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
  if (shape.size() != 1 || have != type_of<T>())
    impl_->fail("appending to", n,
                str("it is ", shape_string(shape), " ", h5type_name(have),
                    ", expected one dimension of ", h5type_name(type_of<T>())));
  if (values.empty()) return;
  const hsize_t begin = static_cast<hsize_t>(shape[0]), length = values.size();
  const hsize_t total = begin + length;
  if (H5Dset_extent(set, &total) < 0)
    impl_->fail("appending to", n, "it cannot grow; disk full?" + hdf5_says());
  const Hid file_space(H5Dget_space(set), H5Sclose);
  const Hid mem_space(H5Screate_simple(1, &length, nullptr), H5Sclose);
  const Hid type = h5_type(type_of<T>());
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

namespace {
/// Reading fills memory for all elements of an attribute, however few bytes they have in the file.
bool holds_one(hid_t attr) {
  const Hid space(H5Aget_space(attr), H5Sclose);
  return H5Sget_simple_extent_npoints(space.get()) == 1;
}
}  // namespace

std::string Hdf5File::attr_string(std::string_view object, std::string_view name) const {
  LibraryLock lock;
  const std::string o = normal_name(object);
  const Hid attr = impl_->open_attr(o, name);
  const Hid type(H5Aget_type(attr.get()), H5Tclose);
  std::optional<std::string> text;
  if (classify(type.get()) == H5Type::kString && holds_one(attr.get()))
    text = read_text(type.get(),
                     [&](hid_t memory, void* to) { return H5Aread(attr.get(), memory, to); });
  if (!text)
    impl_->fail(str("reading attribute ", name, " of"), o,
                str("it is ", h5type_name(classify(type.get())), ", expected one string"));
  return *text;
}

namespace {
template <class T>
T numeric_attr(hid_t attr, bool& ok) {
  T value{};
  const Hid type(H5Aget_type(attr), H5Tclose);
  const H5Type have = classify(type.get());
  ok = holds_one(attr) &&
       (is_integer(have) || (value_bits(have) > 0 && std::is_floating_point_v<T>));
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
