#pragma once
/// Element types of other programs' tensor files, and their conversion from and to f32.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string_view>
#include <vector>

namespace rwkv {

/// kQ8_0: blocks of 32 values along the last dimension, an f16 scale d and 32 signed bytes q,
/// x = d q (34 bytes). kOther: known to the file, not to us.
enum class TensorType : uint8_t {
  kF64,
  kF32,
  kF16,
  kBF16,
  kI64,
  kI32,
  kI16,
  kI8,
  kU8,
  kBool,
  kQ8_0,
  kOther
};

inline constexpr int64_t kQ8Block = 32;

std::string_view tensor_type_name(TensorType type);  ///< "f32", "bf16", "q8_0", ...
/// Bytes of `numel` elements; of kQ8_0 numel is a multiple of 32. 0 for kOther.
uint64_t tensor_bytes(TensorType type, uint64_t numel);

/// out.size() values from their bytes. To f32: exact for all types but f64 and integers beyond
/// 2^24, which are rounded to nearest. Throws InternalError for kOther and for a wrong size.
void decode_tensor(TensorType type, std::span<const std::byte> bytes, std::span<float> out);

/// Bytes of the values as kF32, kF16, kBF16 (nearest, ties to even; beyond the largest f16:
/// infinity) or kQ8_0 (d = largest magnitude / 127). Throws InternalError for other types.
std::vector<std::byte> encode_tensor(TensorType type, std::span<const float> values);

/// The same with little memory, a piece after the other. `source` fills its span with the stored
/// bytes from `offset` on, in order; `sink` takes the next bytes.
void decode_pieces(TensorType type, std::span<float> out,
                   const std::function<void(uint64_t offset, std::span<std::byte>)>& source);
void encode_pieces(TensorType type, std::span<const float> values,
                   const std::function<void(std::span<const std::byte>)>& sink);

}  // namespace rwkv
