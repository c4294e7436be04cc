// Compiled for AVX2 and FMA whatever the rest of the library is compiled for.

#include <immintrin.h>

#include "kernels/core/few_rows_impl.h"

namespace rwkv {
namespace {

struct Avx2 {
  static constexpr int64_t kLanes = 8;
  static constexpr int kRegisters = 16;
  using Reg = __m256;

  static Reg zero() { return _mm256_setzero_ps(); }
  static Reg set(float x) { return _mm256_set1_ps(x); }
  static Reg load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, Reg x) { _mm256_storeu_ps(p, x); }
  static Reg add(Reg x, Reg y) { return _mm256_add_ps(x, y); }
  static Reg multiply_add(Reg a, Reg b, Reg c) { return _mm256_fmadd_ps(a, b, c); }
  static float sum(Reg x, Reg y) {
    const __m256 both = _mm256_add_ps(x, y);
    __m128 v = _mm_add_ps(_mm256_castps256_ps128(both), _mm256_extractf128_ps(both, 1));
    v = _mm_add_ps(v, _mm_movehl_ps(v, v));
    return _mm_cvtss_f32(_mm_add_ss(v, _mm_shuffle_ps(v, v, 1)));
  }
  static Reg widen(const float* p) { return _mm256_loadu_ps(p); }
  static Reg widen(const uint16_t* p) {
    const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16));
  }
  static Reg widen(const int8_t* p) {
    const __m128i x = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(x));
  }
};

}  // namespace

namespace detail {
const FewRowsKernels kFewRowsAvx2{"avx2", any<Avx2, true>, any<Avx2, false>};
}  // namespace detail

}  // namespace rwkv
