// Matrix products by cuBLASLt. Row-major C = A B is the column-major C^T = B^T A^T, so the operands
// change places and nothing is copied.

#include <memory>
#include <utility>

#include "kernels/core/backend.h"
#include "kernels/core/cuda/cuda_state.h"

namespace rwkv::backend {
namespace {

cudaDataType_t type_of(DType t) {
  switch (t) {
    case DType::kF32:
      return CUDA_R_32F;
    case DType::kBF16:
      return CUDA_R_16BF;
    case DType::kF16:
      return CUDA_R_16F;
    default:
      throw DTypeError(
          str("matrix product on CUDA: found ", dtype_name(t), ", expected f32, bf16 or f16"));
  }
}

/// The largest power of two up to 256 that divides an address.
uint32_t alignment(const void* p) {
  const auto address = reinterpret_cast<uintptr_t>(p) | 256;
  return static_cast<uint32_t>(address & (~address + 1));
}

struct LayoutDelete {
  void operator()(cublasLtMatrixLayout_t p) const { cublasLtMatrixLayoutDestroy(p); }
};
using Layout = std::unique_ptr<std::remove_pointer_t<cublasLtMatrixLayout_t>, LayoutDelete>;

Layout layout(DType t, int64_t rows, int64_t cols, int64_t ld) {
  cublasLtMatrixLayout_t p = nullptr;
  RWKV_CUBLAS(cublasLtMatrixLayoutCreate(&p, type_of(t), static_cast<uint64_t>(rows),
                                         static_cast<uint64_t>(cols), ld));
  return Layout(p);
}

struct DescDelete {
  void operator()(cublasLtMatmulDesc_t p) const { cublasLtMatmulDescDestroy(p); }
};
struct PreferenceDelete {
  void operator()(cublasLtMatmulPreference_t p) const { cublasLtMatmulPreferenceDestroy(p); }
};

}  // namespace

void cuda_gemm(Context& ctx, const GemmCall& g) {
  if (g.m == 0 || g.n == 0) return;
  CudaState& s = ctx.cuda();
  cublasLtMatmulDesc_t raw = nullptr;
  RWKV_CUBLAS(cublasLtMatmulDescCreate(&raw, CUBLAS_COMPUTE_32F, CUDA_R_32F));
  const std::unique_ptr<std::remove_pointer_t<cublasLtMatmulDesc_t>, DescDelete> desc(raw);
  // Column-major: first operand B^T (n, k), second A^T (k, m).
  const cublasOperation_t op_first = g.trans_b ? CUBLAS_OP_T : CUBLAS_OP_N;
  const cublasOperation_t op_second = g.trans_a ? CUBLAS_OP_T : CUBLAS_OP_N;
  RWKV_CUBLAS(
      cublasLtMatmulDescSetAttribute(raw, CUBLASLT_MATMUL_DESC_TRANSA, &op_first, sizeof op_first));
  RWKV_CUBLAS(cublasLtMatmulDescSetAttribute(raw, CUBLASLT_MATMUL_DESC_TRANSB, &op_second,
                                             sizeof op_second));
  const Layout first =
      g.trans_b ? layout(g.dtype, g.k, g.n, g.ldb) : layout(g.dtype, g.n, g.k, g.ldb);
  const Layout second =
      g.trans_a ? layout(g.dtype, g.m, g.k, g.lda) : layout(g.dtype, g.k, g.m, g.lda);
  const Layout out = layout(g.out_dtype, g.n, g.m, g.ldc);
  const float one = 1, zero = 0;
  const bool add = g.mode == Accum::kAdd;
  const void* alpha = &one;
  const void* beta = add ? &one : &zero;
  if (g.alpha != nullptr) {
    const cublasLtPointerMode_t mode = CUBLASLT_POINTER_MODE_DEVICE;
    RWKV_CUBLAS(
        cublasLtMatmulDescSetAttribute(raw, CUBLASLT_MATMUL_DESC_POINTER_MODE, &mode, sizeof mode));
    alpha = g.alpha;
    beta = s.zero_one + (add ? 1 : 0);
  }
  // cuBLASLt takes 256-byte alignment for granted unless told otherwise.
  const uint32_t align_a = alignment(g.b), align_b = alignment(g.a), align_c = alignment(g.c);

  const CudaState::GemmKey key = {g.m,
                                  g.n,
                                  g.k,
                                  g.lda,
                                  g.ldb,
                                  g.ldc,
                                  g.trans_a,
                                  g.trans_b,
                                  static_cast<int64_t>(g.dtype),
                                  static_cast<int64_t>(g.out_dtype),
                                  add,
                                  g.alpha != nullptr,
                                  align_a,
                                  align_b,
                                  align_c};
  auto it = s.gemm_algorithms.find(key);
  if (it == s.gemm_algorithms.end()) {
    cublasLtMatmulPreference_t p = nullptr;
    RWKV_CUBLAS(cublasLtMatmulPreferenceCreate(&p));
    const std::unique_ptr<std::remove_pointer_t<cublasLtMatmulPreference_t>, PreferenceDelete>
        preference(p);
    RWKV_CUBLAS(cublasLtMatmulPreferenceSetAttribute(p, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                                     &s.lt_workspace_bytes,
                                                     sizeof s.lt_workspace_bytes));
    for (const auto& [attribute, bytes] :
         {std::pair{CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, align_a},
          {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, align_b},
          {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, align_c},
          {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, align_c}})
      RWKV_CUBLAS(cublasLtMatmulPreferenceSetAttribute(p, attribute, &bytes, sizeof bytes));
    cublasLtMatmulHeuristicResult_t result{};
    int found = 0;
    RWKV_CUBLAS(cublasLtMatmulAlgoGetHeuristic(s.lt, raw, first.get(), second.get(), out.get(),
                                               out.get(), p, 1, &result, &found));
    RWKV_CHECK(found > 0, DeviceError, "cuBLASLt has no algorithm for a product of ", g.m, " x ",
               g.n, " x ", g.k, " in ", dtype_name(g.dtype));
    it = s.gemm_algorithms.emplace(key, result.algo).first;
  }
  RWKV_CUBLAS(cublasLtMatmul(s.lt, raw, alpha, g.b, first.get(), g.a, second.get(), beta, g.c,
                             out.get(), g.c, out.get(), &it->second, s.lt_workspace,
                             s.lt_workspace_bytes, s.stream));
}

}  // namespace rwkv::backend
