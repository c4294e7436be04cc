#include "data/io/hdf5_shards.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "data/io/atomic_file.h"
#include "data/io/json_depth.h"
#include "data/io/seal.h"
#include "kernels/core/error.h"

namespace rwkv {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr const char* kIndexFile = "index.h5";
constexpr const char* kIndexName = "shards/index";
constexpr size_t kMaxGroups = 16;  // weights and two moments are what there is

/// No name in a file leads to another folder.
bool plain_name(const std::string& name) {
  return name.ends_with(".h5") && name != kIndexFile && name.find('/') == std::string::npos &&
         name.find('\0') == std::string::npos;
}

/// Throws unless the pieces of every tensor follow each other from its first element to its last.
void check_complete(const ShardIndex& index, const std::string& where) {
  std::vector<std::vector<ShardIndex::Piece>> of_tensor(index.tensors.size());
  for (const ShardIndex::File& f : index.files)
    for (const ShardIndex::Piece& p : f.pieces) {
      RWKV_CHECK(p.tensor >= 0 && static_cast<size_t>(p.tensor) < index.tensors.size() &&
                     p.begin >= 0 && p.count > 0,
                 IoError, "opening ", where, ": the index has an impossible entry for ", f.name);
      of_tensor[static_cast<size_t>(p.tensor)].push_back(p);
    }
  for (size_t t = 0; t < index.tensors.size(); ++t) {
    const auto numel =
        static_cast<int64_t>(checked_numel(index.tensors[t].shape, index.tensors[t].name, where));
    std::ranges::sort(of_tensor[t], {}, &ShardIndex::Piece::begin);
    int64_t at = 0;
    for (const ShardIndex::Piece& p : of_tensor[t]) {
      if (p.begin != at || p.count > numel - at) break;
      at += p.count;
    }
    RWKV_CHECK(at == numel, IoError, "opening ", where, ": the files that it lists do not make up ",
               index.tensors[t].name, ", ", at, " of ", numel, " elements");
  }
}

class ShardTensors final : public TensorFile {
 public:
  explicit ShardTensors(const std::string& folder) : set_(checked(folder)) {
    path_ = folder;
    file_bytes_ = set_.bytes();
    for (const std::string& name : set_.header().list_datasets())
      if (name != kIndexName && set_.header().type(name) == H5Type::kString)
        header_.push_back({name, set_.header().read_string(name)});
    notes_.push_back(str(set_.index().files.size(), " files, each written by one rank"));
    for (size_t g = 0; g < set_.index().groups.size(); ++g)
      for (size_t t = 0; t < set_.index().tensors.size(); ++t) {
        const ShardIndex::Tensor& tensor = set_.index().tensors[t];
        const std::string name = str(set_.index().groups[g], "/", tensor.name);
        const uint64_t numel = checked_numel(tensor.shape, name, folder);
        RWKV_CHECK(numel <= file_bytes_ / sizeof(float), IoError, "opening ", folder, ": ", name,
                   " has shape ", shape_string(tensor.shape), ", more than its files can hold");
        add_tensor({name, tensor.shape, TensorType::kF32, "f32", numel * sizeof(float)});
      }
  }
  TensorFormat format() const override { return TensorFormat::kHdf5; }

 private:
  static std::string checked(const std::string& folder) {
    open_untrusted_hdf5(shard_index_path(folder));
    return folder;
  }
  void read_values(size_t index, std::span<float> out) const override {
    const size_t tensors = set_.index().tensors.size();
    if (!checked_) set_.check();
    checked_ = true;
    set_.read(index / tensors, index % tensors, 0, out, /*in_child=*/true);
  }

  ShardSet set_;
  mutable bool checked_ = false;
};

}  // namespace

std::string ShardIndex::json() const {
  Json j;
  j["groups"] = groups;
  for (const Tensor& t : tensors) j["tensors"].push_back({t.name, t.shape});
  for (const File& f : files) {
    Json entry = {{"file", f.name}, {"bytes", f.bytes}, {"seal", f.seal}};
    entry["pieces"] = Json::array();
    for (const Piece& p : f.pieces) entry["pieces"].push_back({p.tensor, p.begin, p.count});
    j["files"].push_back(std::move(entry));
  }
  return j.dump();
}

ShardIndex ShardIndex::parse(const std::string& text, const std::string& where) {
  ShardIndex index;
  RWKV_CHECK(!json_deeper_than(text), IoError, "opening ", where,
             ": the index is nested too deep; it is damaged");
  try {
    const Json j = Json::parse(text);
    j.at("groups").get_to(index.groups);
    for (const Json& t : j.at("tensors"))
      index.tensors.push_back({t.at(0).get<std::string>(), t.at(1).get<Shape>()});
    std::set<std::string> names;
    for (const Json& f : j.at("files")) {
      File file{f.at("file").get<std::string>(),
                f.at("bytes").get<uint64_t>(),
                f.at("seal").get<uint32_t>(),
                {}};
      RWKV_CHECK(plain_name(file.name) && names.insert(file.name).second, IoError, "opening ",
                 where, ": the index lists a file twice, or one that is not in this folder");
      for (const Json& p : f.at("pieces"))
        file.pieces.push_back(
            {p.at(0).get<int64_t>(), p.at(1).get<int64_t>(), p.at(2).get<int64_t>()});
      index.files.push_back(std::move(file));
    }
  } catch (const nlohmann::json::exception& e) {
    throw IoError(str("opening ", where, ": the index cannot be read: ", e.what()));
  }
  // Tensors without elements need no place in any file, and groups of them none at all.
  RWKV_CHECK(index.groups.size() <= kMaxGroups, IoError, "opening ", where, ": the index lists ",
             index.groups.size(), " groups of tensors; it is damaged");
  check_complete(index, where);
  return index;
}

std::string shard_file_name(int rank) {
  char name[32];
  std::snprintf(name, sizeof name, "rank_%04d.h5", rank);
  return name;
}

std::string shard_index_path(const std::string& folder) {
  return (fs::path(folder) / kIndexFile).string();
}

bool is_shard_folder(const std::string& path) {
  std::error_code ec;
  return fs::is_regular_file(shard_index_path(path), ec);
}

ShardFileWriter::ShardFileWriter(const std::string& folder, size_t rank, const ShardIndex& index)
    : index_(index),
      entry_(index.files.at(rank)),
      out_((fs::path(folder) / entry_.name).string()),
      file_(Hdf5File::create(out_.temp_path())) {}

void ShardFileWriter::write(std::span<const float> values, std::span<const int64_t> at) {
  const std::string& group = index_.groups.at(group_++);
  for (size_t i = 0; i < entry_.pieces.size(); ++i) {
    const ShardIndex::Piece& p = entry_.pieces[i];
    file_.write<float>(str(group, "/", index_.tensors[static_cast<size_t>(p.tensor)].name),
                       {p.count},
                       values.subspan(static_cast<size_t>(at[i]), static_cast<size_t>(p.count)));
  }
}

ShardIndex::File ShardFileWriter::finish() {
  RWKV_ASSERT(group_ == index_.groups.size(), "a file of ", group_, " groups");
  file_.close();
  seal_hdf5(out_.temp_path());
  entry_.seal = seal_checksum(out_.temp_path());
  entry_.bytes = fs::file_size(out_.temp_path());
  out_.commit();
  return entry_;
}

ShardSet::ShardSet(std::string folder)
    : folder_(std::move(folder)), header_([&] {
        check_seal(shard_index_path(folder_), "");
        return Hdf5File::open(shard_index_path(folder_));
      }()) {
  const std::string where = shard_index_path(folder_);
  RWKV_CHECK(header_.exists(kIndexName), IoError, "opening ", where, ": there is no ", kIndexName,
             "; expected the index of a checkpoint in several files");
  index_ = ShardIndex::parse(header_.read_string(kIndexName), where);
  parts_.resize(index_.tensors.size());
  open_.resize(index_.files.size());
  for (size_t f = 0; f < index_.files.size(); ++f)
    for (const ShardIndex::Piece& p : index_.files[f].pieces)
      parts_[static_cast<size_t>(p.tensor)].push_back({p.begin, p.count, f});
  for (auto& parts : parts_) std::ranges::sort(parts, {}, &Part::begin);
}

std::string ShardSet::path(size_t file) const {
  return (fs::path(folder_) / index_.files[file].name).string();
}

uint64_t ShardSet::bytes() const {
  uint64_t sum = 0;
  for (size_t f = 0; f < index_.files.size(); ++f) {
    check_size(f);
    sum += index_.files[f].bytes;
  }
  return sum;
}

void ShardSet::check_size(size_t file) const {
  const ShardIndex::File& f = index_.files[file];
  std::error_code ec;
  const uint64_t bytes = fs::file_size(path(file), ec);
  RWKV_CHECK(!ec, IoError, "loading ", path(file), ", one of the ", index_.files.size(),
             " files of a checkpoint: ", ec.message());
  RWKV_CHECK(bytes == f.bytes, IoError, "loading ", path(file), ": it has ", bytes, " bytes, the ",
             "index of its checkpoint says ", f.bytes,
             ": it was cut short, or belongs to another checkpoint");
}

void ShardSet::check(size_t file) const {
  const ShardIndex::File& f = index_.files[file];
  check_size(file);
  RWKV_CHECK(seal_checksum(path(file)) == f.seal, IoError, "loading ", path(file),
             ": it is not the file that the index of its checkpoint names: it belongs to another "
             "checkpoint, or is corrupt");
  check_seal(path(file), "");
}

void ShardSet::check() const {
  for (size_t f = 0; f < index_.files.size(); ++f) check(f);
}

void ShardSet::read(size_t group, size_t tensor, int64_t begin, std::span<float> out,
                    bool in_child) const {
  const std::string name = str(index_.groups.at(group), "/", index_.tensors.at(tensor).name);
  const int64_t end = begin + static_cast<int64_t>(out.size());
  for (const Part& p : parts_[tensor]) {
    const int64_t from = std::max(begin, p.begin), to = std::min(end, p.begin + p.count);
    if (from >= to) continue;
    std::optional<Hdf5File>& file = open_[p.file];
    if (!file) file = in_child ? open_untrusted_hdf5(path(p.file)) : Hdf5File::open(path(p.file));
    RWKV_CHECK(file->is_dataset(name) && file->shape(name) == Shape{p.count}, IoError, "loading ",
               name, " from ", path(p.file), ": it is not as the index of its checkpoint says");
    file->read_slice<float>(name, from - p.begin, to - from,
                            out.data() + static_cast<size_t>(from - begin));
  }
}

std::unique_ptr<TensorFile> open_hdf5_shards(const std::string& folder) {
  return std::make_unique<ShardTensors>(folder);
}

}  // namespace rwkv
