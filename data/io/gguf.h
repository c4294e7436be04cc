#pragma once
/// GGUF, the files of llama.cpp: keys with typed values, then tensors.

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "data/io/tensor_file.h"

namespace rwkv {

/// Values that this project writes; reading knows all of GGUF's types.
using GgufValue = std::variant<uint32_t, int32_t, float, bool, std::string,
                               std::vector<std::string>, std::vector<int32_t>>;

/// An open GGUF file with its keys.
class GgufFile : public TensorFile {
 public:
  TensorFormat format() const override { return TensorFormat::kGguf; }
  /// Integers and booleans of any width; none if the key is absent or of another kind.
  virtual std::optional<int64_t> integer(std::string_view key) const = 0;
  virtual std::optional<double> real(std::string_view key) const = 0;
  virtual std::optional<std::string> text(std::string_view key) const = 0;
  /// An array of strings; empty if there is none.
  virtual std::vector<std::string> texts(std::string_view key) const = 0;
  /// An array of integers; empty if there is none.
  virtual std::vector<int64_t> integers(std::string_view key) const = 0;
};

/// Throws IoError. Also what open_gguf returns.
std::unique_ptr<GgufFile> open_gguf_file(const std::string& path);

/// Rows (the last dimension) of kQ8_0 tensors are multiples of 32.
std::unique_ptr<TensorWriter> create_gguf(
    const std::string& path, const std::vector<std::pair<std::string, GgufValue>>& keys,
    std::vector<TensorPlan> plan);

}  // namespace rwkv
