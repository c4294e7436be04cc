/// Chunked WKV-7: sizes, and the choice among the head sizes that wkv7_chunk_n*.cu instantiate.

#include <algorithm>

#include "kernels/wkv/cuda/wkv7_chunk_head.h"
#include "kernels/wkv/cuda/wkv7_segments.cuh"

namespace rwkv::cuda {

namespace {

int block_slots(const Wkv7Shape& shape, int multiprocessors) {
  const int per_processor = shape.head_size == 32   ? chunk::Head<32>::kBackwardMany
                            : shape.head_size == 64 ? chunk::Head<64>::kBackwardMany
                                                    : chunk::Head<128>::kBackwardMany;
  return per_processor * multiprocessors;
}

}  // namespace

int wkv7_scan_segments(const Wkv7Shape& shape, int multiprocessors) {
  const int fill = block_slots(shape, multiprocessors) / (shape.batch * shape.heads);
  if (fill < 2) return 1;
  return std::max(2, std::min(fill, (shape.tokens + chunk::kStep - 1) / 128));
}

size_t wkv7_chunk_saved_bytes(const Wkv7Shape& shape) {
  return chunk::Memory::saved_bytes(chunk::Plan(shape));
}

size_t wkv7_chunk_workspace_bytes(const Wkv7Shape& shape) {
  return chunk::Memory::workspace_bytes(chunk::Plan(shape));
}

cudaError_t wkv7_chunk_forward(const Wkv7Shape& shape, const Wkv7Forward& io, cudaStream_t stream) {
  if (shape.head_size == 32) return chunk::forward<32>(shape, io, stream);
  if (shape.head_size == 64) return chunk::forward<64>(shape, io, stream);
  if (shape.head_size == 128) return chunk::forward<128>(shape, io, stream);
  return cudaErrorInvalidValue;
}

cudaError_t wkv7_chunk_backward(const Wkv7Shape& shape, const Wkv7Backward& io,
                                cudaStream_t stream) {
  if (shape.head_size == 32) return chunk::backward<32>(shape, io, stream);
  if (shape.head_size == 64) return chunk::backward<64>(shape, io, stream);
  if (shape.head_size == 128) return chunk::backward<128>(shape, io, stream);
  return cudaErrorInvalidValue;
}

}  // namespace rwkv::cuda
