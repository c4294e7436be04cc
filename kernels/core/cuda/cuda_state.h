#pragma once
/// What a CUDA context owns: device, stream, cuBLASLt handle and its chosen algorithms.

#include <array>
#include <cstdint>
#include <map>

#include "kernels/core/backend.h"
#include "kernels/core/cuda/cuda_check.h"

namespace rwkv {

struct CudaState {
  /// Everything that a choice of algorithm depends on: m, n, k, lda, ldb, ldc, trans_a, trans_b,
  /// dtype, out_dtype, addend (0 none, 1 C, else 1 + its alignment), alpha on the device,
  /// alignments of a, b, c in bytes.
  using GemmKey = std::array<int64_t, 15>;
  struct GemmChoice {
    cublasLtMatmulAlgo_t algorithm{};
    bool imported = false;  ///< to be checked before its first use
    bool measured = false;  ///< by this process
    bool used = false;
  };

  CudaState() = default;
  /// On the current device. Throws DeviceError; the destructor then frees what was opened.
  void open();
  ~CudaState();
  CudaState(const CudaState&) = delete;
  CudaState& operator=(const CudaState&) = delete;

  int device = 0;
  int sm_count = 0;
  cudaStream_t stream = nullptr;
  cublasLtHandle_t lt = nullptr;
  void* lt_workspace = nullptr;
  float* zero_one = nullptr;  ///< 0 and 1 in device memory: beta where alpha is on the device
  size_t lt_workspace_bytes = backend::kGemmWorkspaceBytes;
  bool measure_gemms = false;  ///< time the candidates of a new shape, else take cuBLASLt's first
  std::map<GemmKey, GemmChoice> gemm_choices;
  CudaState* gemm_owner = this;  ///< whose choices count: lanes share those of their context
};

}  // namespace rwkv
