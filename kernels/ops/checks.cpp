#include "kernels/ops/checks.h"

#include "kernels/core/packed_rows.h"

namespace rwkv::checks {
namespace {

std::string range(size_t least, size_t most) {
  return least == most ? str(least) : str(least, " to ", most);
}

void positive(std::string_view op, std::string_view arg, const TensorSpec& found) {
  RWKV_CHECK(found.numel() > 0, ShapeError, "op ", op, ", ", arg, ": found ", to_string(found),
             ", expected every dimension to be at least 1");
}

}  // namespace

void counts(const ShapeCall& call, std::string_view op, size_t in_least, size_t in_most,
            size_t param_least, size_t param_most) {
  RWKV_CHECK(call.in.size() >= in_least && call.in.size() <= in_most, ShapeError, "op ", op,
             ": found ", call.in.size(), " inputs, expected ", range(in_least, in_most));
  RWKV_CHECK(call.param.size() >= param_least && call.param.size() <= param_most, ShapeError, "op ",
             op, ": found ", call.param.size(), " parameters, expected ",
             range(param_least, param_most));
}

void dtype(std::string_view op, std::string_view arg, const TensorSpec& found, DType expected) {
  RWKV_CHECK(found.dtype == expected, DTypeError, "op ", op, ", ", arg, ": found ",
             to_string(found), ", expected ", dtype_name(expected));
}

void activation(std::string_view op, std::string_view arg, const TensorSpec& found) {
  RWKV_CHECK(found.dtype == DType::kF32 || found.dtype == DType::kBF16, DTypeError, "op ", op, ", ",
             arg, ": found ", to_string(found), ", expected f32 or bf16");
}

void shape(std::string_view op, std::string_view arg, const TensorSpec& found,
           std::initializer_list<int64_t> expected, std::string_view why, DType type) {
  const TensorSpec want(expected, type);
  dtype(op, arg, found, type);
  RWKV_CHECK(found.same_shape(want), ShapeError, "op ", op, ", ", arg, ": found ", to_string(found),
             ", expected ", to_string(want), why.empty() ? "" : ": ", why);
}

void weight(std::string_view op, std::string_view arg, const TensorSpec& found, int64_t rows,
            int64_t cols, std::string_view why, DType type) {
  const bool packed =
      type == DType::kF32 && (found.dtype == DType::kBF16 || found.dtype == DType::kI8);
  RWKV_CHECK(found.rank == 2 && found[0] == rows && packed_columns(found) == cols, ShapeError,
             "op ", op, ", ", arg, ": found ", to_string(found), ", expected ",
             to_string(packed_spec(TensorSpec({rows, cols}), packed ? found.dtype : DType::kF32)),
             ": ", why);
  positive(op, arg, found);
  if (!packed) dtype(op, arg, found, type);
}

void same(std::string_view op, std::string_view arg, const TensorSpec& found, std::string_view like,
          const TensorSpec& expected) {
  dtype(op, arg, found, expected.dtype);
  RWKV_CHECK(found.same_shape(expected), ShapeError, "op ", op, ", ", arg, ": found ",
             to_string(found), ", expected the shape of ", like, ", ", to_string(expected));
}

void rank(std::string_view op, std::string_view arg, const TensorSpec& found, int expected) {
  activation(op, arg, found);
  RWKV_CHECK(found.rank == expected, ShapeError, "op ", op, ", ", arg, ": found ", to_string(found),
             ", expected rank ", expected);
  positive(op, arg, found);
}

void any_rank(std::string_view op, std::string_view arg, const TensorSpec& found) {
  activation(op, arg, found);
  RWKV_CHECK(found.rank >= 1, ShapeError, "op ", op, ", ", arg, ": found a scalar, expected rank ",
             "1 to 4");
  positive(op, arg, found);
}

void tokens(std::string_view op, std::string_view arg, const TensorSpec& found) {
  dtype(op, arg, found, DType::kI32);
  RWKV_CHECK(found.rank == 2, ShapeError, "op ", op, ", ", arg, ": found ", to_string(found),
             ", expected (B, T)");
  positive(op, arg, found);
}

int64_t heads(std::string_view op, int64_t channels, int64_t head_size) {
  RWKV_CHECK(head_size >= 1 && head_size <= 256, ConfigError, "op ", op, ": found head size ",
             head_size, ", expected 1 to 256 (usually 64)");
  RWKV_CHECK(channels % head_size == 0, ConfigError, "op ", op, ": ", channels,
             " channels are not a multiple of the head size ", head_size,
             "; change n_embd or head_size");
  return channels / head_size;
}

void attrs(std::string_view op, const ShapeCall& call) {
  RWKV_ASSERT(call.attrs != nullptr, "op ", op, " needs its attributes");
}

}  // namespace rwkv::checks
