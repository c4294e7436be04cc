#pragma once
/// Segments of one sequence: where their operators lie in memory, and the scan that joins them.

#include "kernels/wkv/cuda/wkv7_chunk.cuh"

namespace rwkv::cuda::chunk {

inline size_t checkpoint_bytes(const Plan& p, int streams) {
  return static_cast<size_t>(streams) * static_cast<size_t>(p.steps) * kCheckpointWords * 4;
}
inline size_t operator_bytes(const Plan& p, int streams) {
  if (p.segments <= 1) return 0;
  return static_cast<size_t>(streams) * static_cast<size_t>(p.segments) * kStateFloats * 4;
}

/// saved = packed states of every step, then M of every segment. Without `saved`, M lies in the
/// workspace behind N.
struct Memory {
  uint32_t* checkpoints;
  float *operator_m, *operator_n;
  Memory(const Plan& p, int streams, void* saved, void* workspace) {
    checkpoints = static_cast<uint32_t*>(saved);
    operator_n = static_cast<float*>(workspace);
    char* m = saved != nullptr ? static_cast<char*>(saved) + checkpoint_bytes(p, streams)
                               : static_cast<char*>(workspace) + operator_bytes(p, streams);
    operator_m = reinterpret_cast<float*>(m);
  }
};

#ifdef __CUDACC__
/// Blocks until the kernel ahead in the stream has finished, if this one was launched with
/// `overlap`.
__device__ __forceinline__ void wait_for_previous_kernel() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
}

/// Launches a kernel. With `overlap` its blocks may start while those of the kernel ahead in the
/// stream finish, so it must call wait_for_previous_kernel before it touches memory.
template <class... Args>
cudaError_t launch(void (*kernel)(Args...), dim3 grid, int threads, size_t shared_bytes,
                   bool overlap, cudaStream_t stream, Args... args) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = overlap ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, args...);
}
#endif

inline cudaError_t count_multiprocessors(int& count) {
  int device = 0;
  if (const cudaError_t e = cudaGetDevice(&device); e != cudaSuccess) return e;
  return cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
}

/// N[g] <- start state of segment g: s0, then S M[g] + N[g].
cudaError_t join_forward(const Plan& plan, int streams, const Memory& memory, const float* s0,
                         cudaStream_t stream);
/// Q[g] (in N's place) <- gradient of segment g's end state: ds_out, then lambda M[g]^T + Q[g].
cudaError_t join_backward(const Plan& plan, int streams, const Memory& memory, const float* ds_out,
                          cudaStream_t stream);

}  // namespace rwkv::cuda::chunk
