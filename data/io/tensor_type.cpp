#include "data/io/tensor_type.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "kernels/core/bf16.h"
#include "kernels/core/error.h"
#include "kernels/core/half.h"

namespace rwkv {
namespace {

constexpr size_t kQ8Bytes = 2 + kQ8Block;
constexpr size_t kPiece = size_t{1} << 20;  ///< elements, whole blocks of every type

template <class T>
void widen(std::span<const std::byte> bytes, std::span<float> out) {
  for (size_t i = 0; i < out.size(); ++i) {
    T x;
    std::memcpy(&x, bytes.data() + i * sizeof(T), sizeof(T));
    if constexpr (std::is_arithmetic_v<T>)
      out[i] = static_cast<float>(x);
    else
      out[i] = to_float(x);
  }
}

template <class T, class F>
std::vector<std::byte> narrow(std::span<const float> values, const F& convert) {
  std::vector<std::byte> out(values.size() * sizeof(T));
  for (size_t i = 0; i < values.size(); ++i) {
    const T x = convert(values[i]);
    std::memcpy(out.data() + i * sizeof(T), &x, sizeof(T));
  }
  return out;
}

std::vector<std::byte> quantize_q8(std::span<const float> values) {
  RWKV_ASSERT(values.size() % kQ8Block == 0, "q8_0 of ", values.size(), " values");
  std::vector<std::byte> out(values.size() / kQ8Block * kQ8Bytes);
  std::byte* to = out.data();
  for (size_t i = 0; i < values.size(); i += kQ8Block, to += kQ8Bytes) {
    float largest = 0;
    for (size_t j = 0; j < kQ8Block; ++j) largest = std::max(largest, std::fabs(values[i + j]));
    const float d = largest / 127;
    const float inverse = d > 0 ? 1 / d : 0;
    const F16 scale = to_half(d);
    std::memcpy(to, &scale, 2);
    for (size_t j = 0; j < kQ8Block; ++j) {
      // A tiny d overflows its inverse; such blocks have a scale of zero anyway.
      const float q = std::isfinite(inverse) ? std::round(values[i + j] * inverse) : 0;
      to[2 + j] = static_cast<std::byte>(static_cast<int8_t>(std::clamp(q, -127.0f, 127.0f)));
    }
  }
  return out;
}

void dequantize_q8(std::span<const std::byte> bytes, std::span<float> out) {
  for (size_t i = 0; i < out.size(); ++i) {
    const std::byte* block = bytes.data() + i / kQ8Block * kQ8Bytes;
    F16 scale;
    std::memcpy(&scale, block, 2);
    out[i] = to_float(scale) * static_cast<float>(static_cast<int8_t>(block[2 + i % kQ8Block]));
  }
}

}  // namespace

std::string_view tensor_type_name(TensorType type) {
  constexpr std::array<std::string_view, 12> kNames = {
      "f64", "f32", "f16", "bf16", "i64", "i32", "i16", "i8", "u8", "bool", "q8_0", "other"};
  return kNames[static_cast<size_t>(type)];
}

uint64_t tensor_bytes(TensorType type, uint64_t numel) {
  switch (type) {
    case TensorType::kF64:
    case TensorType::kI64:
      return 8 * numel;
    case TensorType::kF32:
    case TensorType::kI32:
      return 4 * numel;
    case TensorType::kF16:
    case TensorType::kBF16:
    case TensorType::kI16:
      return 2 * numel;
    case TensorType::kI8:
    case TensorType::kU8:
    case TensorType::kBool:
      return numel;
    case TensorType::kQ8_0:
      return numel / kQ8Block * kQ8Bytes;
    case TensorType::kOther:
      break;
  }
  return 0;
}

void decode_tensor(TensorType type, std::span<const std::byte> bytes, std::span<float> out) {
  RWKV_ASSERT(bytes.size() == tensor_bytes(type, out.size()), "decoding ", out.size(),
              " values of ", tensor_type_name(type), " from ", bytes.size(), " bytes");
  switch (type) {
    case TensorType::kF64:
      return widen<double>(bytes, out);
    case TensorType::kF32:
      if (!out.empty()) std::memcpy(out.data(), bytes.data(), bytes.size());
      return;
    case TensorType::kF16:
      return widen<F16>(bytes, out);
    case TensorType::kBF16:
      return widen<BF16>(bytes, out);
    case TensorType::kI64:
      return widen<int64_t>(bytes, out);
    case TensorType::kI32:
      return widen<int32_t>(bytes, out);
    case TensorType::kI16:
      return widen<int16_t>(bytes, out);
    case TensorType::kI8:
      return widen<int8_t>(bytes, out);
    case TensorType::kU8:
    case TensorType::kBool:
      return widen<uint8_t>(bytes, out);
    case TensorType::kQ8_0:
      return dequantize_q8(bytes, out);
    case TensorType::kOther:
      break;
  }
  RWKV_ASSERT(false, "decoding an unknown type");
}

std::vector<std::byte> encode_tensor(TensorType type, std::span<const float> values) {
  switch (type) {
    case TensorType::kF32:
      return narrow<float>(values, [](float x) { return x; });
    case TensorType::kF16:
      return narrow<F16>(values, [](float x) { return to_half(x); });
    case TensorType::kBF16:
      return narrow<BF16>(values, [](float x) { return to_bf16(x); });
    case TensorType::kQ8_0:
      return quantize_q8(values);
    default:
      break;
  }
  throw InternalError(str("encoding values as ", tensor_type_name(type)));
}

void decode_pieces(TensorType type, std::span<float> out,
                   const std::function<void(uint64_t offset, std::span<std::byte>)>& source) {
  std::vector<std::byte> bytes;
  for (uint64_t offset = 0; !out.empty(); offset += bytes.size()) {
    const size_t n = std::min(out.size(), kPiece);
    bytes.resize(tensor_bytes(type, n));
    source(offset, bytes);
    decode_tensor(type, bytes, out.first(n));
    out = out.subspan(n);
  }
}

void encode_pieces(TensorType type, std::span<const float> values,
                   const std::function<void(std::span<const std::byte>)>& sink) {
  while (!values.empty()) {
    const size_t n = std::min(values.size(), kPiece);
    sink(encode_tensor(type, values.first(n)));
    values = values.subspan(n);
  }
}

}  // namespace rwkv
