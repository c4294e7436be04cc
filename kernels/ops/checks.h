#pragma once
/// Argument checks shared by the shape inferences. Messages name op, argument, found, expected.

#include <initializer_list>
#include <string>
#include <string_view>

#include "kernels/ops/op.h"

namespace rwkv::checks {

/// Number of inputs and parameters, each within [least, most]. Throws ShapeError.
void counts(const ShapeCall& call, std::string_view op, size_t in_least, size_t in_most,
            size_t param_least, size_t param_most);
/// Element type. Throws DTypeError.
void dtype(std::string_view op, std::string_view arg, const TensorSpec& found, DType expected);
/// f32 or bf16: activations and matrices. The CPU kernels refuse bf16 when they are called.
void activation(std::string_view op, std::string_view arg, const TensorSpec& found);
/// Of this type and exactly this shape. `why` explains where the expected shape comes from.
void shape(std::string_view op, std::string_view arg, const TensorSpec& found,
           std::initializer_list<int64_t> expected, std::string_view why = "",
           DType type = DType::kF32);
/// A matrix of (rows, cols) that x of type `type` is multiplied by: of that type, or, where x is
/// f32, packed to bf16 or int8 (kernels/core/packed_rows.h), which only the CPU has kernels for.
void weight(std::string_view op, std::string_view arg, const TensorSpec& found, int64_t rows,
            int64_t cols, std::string_view why, DType type);
/// Type and shape of another argument.
void same(std::string_view op, std::string_view arg, const TensorSpec& found, std::string_view like,
          const TensorSpec& expected);
/// f32 or bf16 of this rank, every dimension at least 1.
void rank(std::string_view op, std::string_view arg, const TensorSpec& found, int expected);
/// f32 or bf16 of rank 1 to 4, every dimension at least 1.
void any_rank(std::string_view op, std::string_view arg, const TensorSpec& found);
/// i32 of shape (B, T), not empty.
void tokens(std::string_view op, std::string_view arg, const TensorSpec& found);
/// Number of heads of C channels. Throws ConfigError if head_size is not in [1, 256] or does not
/// divide C.
int64_t heads(std::string_view op, int64_t channels, int64_t head_size);
/// Attributes were passed. Throws InternalError.
void attrs(std::string_view op, const ShapeCall& call);

}  // namespace rwkv::checks
