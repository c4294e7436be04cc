#pragma once
/// Segments of one sequence: where their operators lie in memory, and the scan that joins them.

#include "kernels/wkv/cuda/wkv7_chunk.cuh"

namespace rwkv::cuda::chunk {

inline size_t checkpoint_bytes(const Plan& p) {
  return static_cast<size_t>(p.streams) * static_cast<size_t>(p.steps) * p.state_floats * 2;
}
inline size_t state_bytes(const Plan& p) {
  return static_cast<size_t>(p.streams) * p.state_floats * 4;
}
inline size_t operator_bytes(const Plan& p) {
  return p.segments <= 1 ? 0 : static_cast<size_t>(p.segments) * state_bytes(p);
}

/// saved = packed states of every step, then M of every segment. Without `saved`, M lies in the
/// workspace behind N. With Plan::whole there is no M; with Plan::piece the workspace holds a state
/// per head and the queue.
struct Memory {
  uint32_t* checkpoints;
  float *operator_m, *operator_n;
  unsigned* queue;
  Memory(const Plan& p, void* saved, void* workspace) {
    checkpoints = static_cast<uint32_t*>(saved);
    operator_n = static_cast<float*>(workspace);
    char* m = saved != nullptr ? static_cast<char*>(saved) + checkpoint_bytes(p)
                               : static_cast<char*>(workspace) + operator_bytes(p);
    operator_m = reinterpret_cast<float*>(m);
    queue = p.piece() == 0
                ? nullptr
                : reinterpret_cast<unsigned*>(static_cast<char*>(workspace) + state_bytes(p));
  }
  static size_t saved_bytes(const Plan& p) {
    return checkpoint_bytes(p) + (p.whole() ? 0 : operator_bytes(p));
  }
  static size_t queue_bytes(const Plan& p) {
    return (static_cast<size_t>(p.streams) + 1) * sizeof(unsigned);
  }
  static size_t workspace_bytes(const Plan& p) {
    if (p.piece() > 0) return state_bytes(p) + queue_bytes(p);
    return operator_bytes(p) * (p.whole() ? 1 : 2);
  }
};

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
  if (shared_bytes > 48 * 1024)
    if (const cudaError_t e = cudaFuncSetAttribute(
            kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
        e != cudaSuccess)
      return e;
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

inline cudaError_t count_multiprocessors(int& count) {
  int device = 0;
  if (const cudaError_t e = cudaGetDevice(&device); e != cudaSuccess) return e;
  return cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
}

inline constexpr int kJoinRows = 8;

template <int kN>
struct JoinShared {
  float rows[2][kJoinRows][kN];
  float tile[kN][kN + 1];  // M, or its transpose
};

// One block carries 8 rows of one head's state over all segments; thread -> (2 rows, 1 column).
template <int kN, bool kBackward>
__global__ void __launch_bounds__(4 * kN)
    join_kernel(const float* operator_m, float* slots, const float* begin, int segments) {
  constexpr int kThreads = 4 * kN, kStateFloats = Head<kN>::kStateFloats;
  extern __shared__ __align__(1024) uint4 memory[];
  JoinShared<kN>& shared = *reinterpret_cast<JoinShared<kN>*>(memory);
  auto& rows = shared.rows;
  auto& tile = shared.tile;
  const int thread = static_cast<int>(threadIdx.x), column = thread % kN, row = thread / kN * 2;
  const int64_t head = blockIdx.x;
  const int first_row = static_cast<int>(blockIdx.y) * kJoinRows;
  wait_for_previous_kernel();
  float s[2];
#pragma unroll
  for (int i = 0; i < 2; ++i)
    s[i] =
        begin == nullptr ? 0.0f : begin[head * kStateFloats + (first_row + row + i) * kN + column];
  for (int n = 0; n < segments; ++n) {
    const int g = kBackward ? segments - 1 - n : n;
    const int64_t slot = (head * segments + g) * kStateFloats;
    if (n + 1 == segments) {  // nothing follows; its operators may not even be there
#pragma unroll
      for (int i = 0; i < 2; ++i) slots[slot + (first_row + row + i) * kN + column] = s[i];
      break;
    }
    float m[kStateFloats / kThreads];
#pragma unroll
    for (int i = 0; i < kStateFloats / kThreads; ++i)
      m[i] = operator_m[slot + i * kThreads + thread];
    float sum[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float* cell = slots + slot + (first_row + row + i) * kN + column;
      sum[i] = *cell;
      *cell = s[i];
      rows[n & 1][row + i][column] = s[i];
    }
    __syncthreads();  // the last round's reads of `tile` are over
#pragma unroll
    for (int i = 0; i < kStateFloats / kThreads; ++i) {
      const int at = i * kThreads + thread;
      if (kBackward)
        tile[at % kN][at / kN] = m[i];
      else
        tile[at / kN][at % kN] = m[i];
    }
    __syncthreads();
#pragma unroll 16
    for (int k = 0; k < kN; ++k) {
      const float f = tile[k][column];
      sum[0] += rows[n & 1][row][k] * f;
      sum[1] += rows[n & 1][row + 1][k] * f;
    }
    s[0] = sum[0];
    s[1] = sum[1];
  }
}

/// N[g] <- start state of segment g: s0, then S M[g] + N[g].
template <int kN>
cudaError_t join_forward(const Plan& plan, const Memory& memory, const float* s0,
                         cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(plan.streams), kN / kJoinRows);
  return launch(join_kernel<kN, false>, grid, 4 * kN, sizeof(JoinShared<kN>), false, stream,
                static_cast<const float*>(memory.operator_m), memory.operator_n, s0, plan.segments);
}

/// Q[g] (in N's place) <- gradient of segment g's end state: ds_out, then lambda M[g]^T + Q[g].
template <int kN>
cudaError_t join_backward(const Plan& plan, const Memory& memory, const float* ds_out,
                          cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(plan.streams), kN / kJoinRows);
  return launch(join_kernel<kN, true>, grid, 4 * kN, sizeof(JoinShared<kN>), true, stream,
                static_cast<const float*>(memory.operator_m), memory.operator_n, ds_out,
                plan.segments);
}

}  // namespace rwkv::cuda::chunk
