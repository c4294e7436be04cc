#include <stdexcept>

#include "kernels/wkv/dither.h"
#include "tests/ops/dither_device.h"

namespace rwkv::test {
namespace {

void check(cudaError_t e) {
  if (e != cudaSuccess) throw std::runtime_error(cudaGetErrorString(e));
}

/// A vector's copy on the device.
template <class T>
class Buffer {
 public:
  explicit Buffer(const std::vector<T>& x) : Buffer(x.size()) {
    check(cudaMemcpy(p_, x.data(), x.size() * sizeof(T), cudaMemcpyHostToDevice));
  }
  explicit Buffer(size_t n) : n_(n) { check(cudaMalloc(&p_, n * sizeof(T) + 1)); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { cudaFree(p_); }
  T* get() { return p_; }
  std::vector<T> values() const {
    std::vector<T> x(n_);
    check(cudaMemcpy(x.data(), p_, n_ * sizeof(T), cudaMemcpyDeviceToHost));
    return x;
  }

 private:
  T* p_ = nullptr;
  size_t n_;
};

__global__ void decay_kernel(const float* w_logit, const uint32_t* phase, size_t n, float* rotator,
                             float* dithered, float* plain) {
  const size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x;
  if (i >= n) return;
  rotator[i] = dither_rotator(phase[i]);
  dithered[i] = dithered_decay(w_logit[i], phase[i]);
  plain[i] = plain_decay(w_logit[i]);
}

__global__ void fma_kernel(const uint16_t* a, const uint16_t* b, const uint16_t* c, size_t n,
                           uint16_t* out) {
  const size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x;
  if (i >= n) return;
  // What __hfma2 of cuda_fp16.h is, with a pair of equal numbers.
  const auto pair = [](uint16_t x) { return static_cast<uint32_t>(x) * 0x10001u; };
  uint32_t result;
  asm("fma.rn.f16x2 %0, %1, %2, %3;"
      : "=r"(result)
      : "r"(pair(a[i])), "r"(pair(b[i])), "r"(pair(c[i])));
  out[i] = static_cast<uint16_t>(result);
}

unsigned blocks(size_t n) {
  return static_cast<unsigned>((n + 255) / 256);
}

}  // namespace

DitherOnDevice dither_on_device(const std::vector<float>& w_logit,
                                const std::vector<uint32_t>& phase, const std::vector<uint16_t>& a,
                                const std::vector<uint16_t>& b, const std::vector<uint16_t>& c) {
  const size_t n = w_logit.size(), m = a.size();
  Buffer<float> logits(w_logit), rotator(n), dithered(n), plain(n);
  Buffer<uint32_t> phases(phase);
  Buffer<uint16_t> da(a), db(b), dc(c), out(m);
  decay_kernel<<<blocks(n), 256>>>(logits.get(), phases.get(), n, rotator.get(), dithered.get(),
                                   plain.get());
  check(cudaGetLastError());
  fma_kernel<<<blocks(m), 256>>>(da.get(), db.get(), dc.get(), m, out.get());
  check(cudaGetLastError());
  return {rotator.values(), dithered.values(), plain.values(), out.values()};
}

}  // namespace rwkv::test
