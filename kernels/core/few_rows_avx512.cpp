// Compiled for AVX-512 whatever the rest of the library is compiled for.

#include <immintrin.h>

#include "kernels/core/few_rows_impl.h"

namespace rwkv {
namespace {

struct Avx512 {
  static constexpr int64_t kLanes = 16;
  static constexpr int kRegisters = 32;
  using Reg = __m512;

  static Reg zero() { return _mm512_setzero_ps(); }
  static Reg set(float x) { return _mm512_set1_ps(x); }
  static Reg load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, Reg x) { _mm512_storeu_ps(p, x); }
  static Reg add(Reg x, Reg y) { return _mm512_add_ps(x, y); }
  static Reg multiply_add(Reg a, Reg b, Reg c) { return _mm512_fmadd_ps(a, b, c); }
  static float sum(Reg x, Reg y) {
    const __m512 both = _mm512_add_ps(x, y);
    const __m512 half = _mm512_add_ps(both, _mm512_shuffle_f32x4(both, both, 0x4e));
    const __m512 quarter = _mm512_add_ps(half, _mm512_shuffle_f32x4(half, half, 0xb1));
    __m128 v = _mm512_castps512_ps128(quarter);
    v = _mm_add_ps(v, _mm_movehl_ps(v, v));
    return _mm_cvtss_f32(_mm_add_ss(v, _mm_shuffle_ps(v, v, 1)));
  }
  static Reg widen(const float* p) { return _mm512_loadu_ps(p); }
  static Reg widen(const uint16_t* p) {
    const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
  }
  static Reg widen(const int8_t* p) {
    const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(x));
  }
};

}  // namespace

namespace detail {
const FewRowsKernels kFewRowsAvx512{"avx512", any<Avx512, true>, any<Avx512, false>};
}  // namespace detail

}  // namespace rwkv
