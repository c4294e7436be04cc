#pragma once
/// Checks of CUDA and cuBLAS calls: expression, error name and text, place.

#include <cublasLt.h>
#include <cuda_runtime.h>

namespace rwkv::cuda {

[[noreturn]] void throw_cuda(cudaError_t error, const char* what, const char* file, int line);
[[noreturn]] void throw_cublas(cublasStatus_t status, const char* what, const char* file, int line);
/// After a launch: throws what the launch itself reported; with RWKV_SYNC_LAUNCHES=1 in the
/// environment also waits for the kernel, so that its error is reported here and not later.
void check_launch(const char* what, cudaStream_t stream, const char* file, int line);

}  // namespace rwkv::cuda

#define RWKV_CUDA(expr)                                                \
  do {                                                                 \
    const cudaError_t rwkv_error = (expr);                             \
    if (rwkv_error != cudaSuccess) [[unlikely]]                        \
      ::rwkv::cuda::throw_cuda(rwkv_error, #expr, __FILE__, __LINE__); \
  } while (0)

#define RWKV_CUBLAS(expr)                                                 \
  do {                                                                    \
    const cublasStatus_t rwkv_status = (expr);                            \
    if (rwkv_status != CUBLAS_STATUS_SUCCESS) [[unlikely]]                \
      ::rwkv::cuda::throw_cublas(rwkv_status, #expr, __FILE__, __LINE__); \
  } while (0)

/// Ends every kernel launch: RWKV_LAUNCHED("wkv7 backward", stream).
#define RWKV_LAUNCHED(what, stream) ::rwkv::cuda::check_launch(what, stream, __FILE__, __LINE__)
