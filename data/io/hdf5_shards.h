#pragma once
/// Tensors in several HDF5 files of one folder, each written by another process.
///
///   FOLDER/index.h5        sealed; what a single file would hold besides tensors, and
///     /shards/index        string: the JSON of ShardIndex
///   FOLDER/rank_0000.h5    sealed; GROUP/NAME, f32, 1-D: a run of the elements of the tensor NAME
///
/// Every tensor NAME is there once for each of the groups ("weights", ...), cut alike. The index
/// names every file's size and the checksum of its seal, so that it fits to these files and to no
/// others; it is written last.

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "data/io/atomic_file.h"
#include "data/io/hdf5_file.h"
#include "data/io/tensor_file.h"

namespace rwkv {

struct ShardIndex {
  struct Tensor {
    std::string name;
    Shape shape;
  };
  /// Elements [begin, begin + count) of a tensor, by its number.
  struct Piece {
    int64_t tensor, begin, count;
  };
  struct File {
    std::string name;
    uint64_t bytes = 0;
    uint32_t seal = 0;  ///< seal_checksum
    std::vector<Piece> pieces;
  };
  std::vector<std::string> groups;
  std::vector<Tensor> tensors;
  std::vector<File> files;

  std::string json() const;
  /// Throws IoError naming `where` unless the pieces make up every tensor exactly.
  static ShardIndex parse(const std::string& text, const std::string& where);
};

/// "rank_0003.h5"
std::string shard_file_name(int rank);
std::string shard_index_path(const std::string& folder);
/// A folder with an index.
bool is_shard_folder(const std::string& path);

/// Writes the file of one rank.
class ShardFileWriter {
 public:
  /// `index.files[rank]` has the pieces. Throws IoError.
  ShardFileWriter(const std::string& folder, size_t rank, const ShardIndex& index);
  /// The elements of each piece from at[piece] on, for one group after the other.
  void write(std::span<const float> values, std::span<const int64_t> at);
  /// Seals the file and brings it to the disk. Returns its entry of the index.
  ShardIndex::File finish();

 private:
  const ShardIndex& index_;
  ShardIndex::File entry_;
  AtomicFile out_;
  Hdf5File file_;
  size_t group_ = 0;
};

/// Reads such a folder.
class ShardSet {
 public:
  /// Reads index.h5, after checking its seal. Throws IoError.
  explicit ShardSet(std::string folder);

  const std::string& folder() const { return folder_; }
  const Hdf5File& header() const { return header_; }
  const ShardIndex& index() const { return index_; }
  /// Of all files, after checking that each is there and as long as the index says. Throws IoError.
  uint64_t bytes() const;
  /// That a file is there, whole, and the one that belongs to the index. Throws IoError.
  void check(size_t file) const;
  void check() const;
  /// Elements [begin, begin + out.size()) of a tensor. Files are opened as they are needed; they
  /// should have been checked. With `in_child`, child processes read them first (data/io/trial.h).
  /// Throws IoError.
  void read(size_t group, size_t tensor, int64_t begin, std::span<float> out,
            bool in_child = false) const;

 private:
  struct Part {
    int64_t begin, count;
    size_t file;
  };
  std::string path(size_t file) const;
  void check_size(size_t file) const;

  std::string folder_;
  Hdf5File header_;
  ShardIndex index_;
  std::vector<std::vector<Part>> parts_;  ///< by tensor, in order
  mutable std::vector<std::optional<Hdf5File>> open_;
};

/// Such a folder as one file of tensors, GROUP/NAME. Throws IoError.
std::unique_ptr<TensorFile> open_hdf5_shards(const std::string& folder);

/// Opens a file of anybody's: checks the seal if it has one, and a child process reads it first.
Hdf5File open_untrusted_hdf5(const std::string& path);

}  // namespace rwkv
