#pragma once
/// Pickled PyTorch state dicts, read without executing anything.
///
/// A pickle is a program for a stack machine whose instructions can call any function of a Python
/// installation. This reader knows the instructions that data needs, and eleven names: containers
/// and tensors. Any other name ends the reading with "refusing to construct MODULE.NAME".

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "data/io/hdf5_file.h"
#include "data/io/tensor_type.h"

namespace rwkv {

/// First bytes of files from before PyTorch 1.6 (and of torch.save without its zip switch).
inline constexpr std::string_view kLegacyTorchMagic("\x80\x02\x8a\x0al\xfc\x9c\x46\xf9 j\xa8P\x19.",
                                                    15);

/// One storage: the numbers that tensors are views of.
struct PickledStorage {
  std::string key;
  TensorType type;  ///< kU8 for untyped storages
  int64_t numel;
};

/// A view of a storage. Element (i, j, ..) is at offset + i stride[0] + j stride[1] + ..
struct PickledTensor {
  size_t storage;
  int64_t offset;
  Shape shape, stride;
};

/// A value of the pickle; containers hold indices into Pickle::values.
struct PickledValue {
  enum class Kind : uint8_t {
    kNone,
    kBool,
    kInt,
    kBigInt,  ///< text holds its bytes
    kFloat,
    kString,
    kTuple,
    kList,
    kDict,  ///< items: key, value, key, value, ...
    kGlobal,
    kStorage,
    kTensor
  } kind = Kind::kNone;
  int64_t number = 0;  ///< value; for kStorage and kTensor the index
  double real = 0;
  std::string text;
  std::vector<uint32_t> items;
};

struct Pickle {
  std::vector<PickledValue> values;
  std::vector<PickledStorage> storages;
  std::vector<PickledTensor> tensors;
  uint32_t top = 0;     ///< the result
  size_t consumed = 0;  ///< bytes up to and with STOP
};

/// Runs the pickle at the start of `bytes`; `where` names it in errors. Throws IoError for an
/// unknown instruction (with its offset), a name that is not allowed, and damage.
Pickle read_pickle(std::span<const std::byte> bytes, const std::string& where);

}  // namespace rwkv
