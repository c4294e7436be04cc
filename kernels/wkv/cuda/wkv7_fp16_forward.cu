/// Binary16 WKV-7 forward. Sequences: one block per head; two warps own the 64 rows and do nothing
/// but the recurrence, two others load, round and dither the vectors of the 16 tokens ahead.
/// Single tokens: one block per head, the state moved by coalesced 16-byte copies and turned to
/// rows in shared memory, whose packs are swizzled so that no access meets a bank twice.

#include "kernels/wkv/cuda/wkv7_fp16.cuh"

namespace rwkv::cuda {
namespace fp16 {
namespace {

constexpr int kChunk = 16;  // tokens that are prepared at a time
constexpr int kRound = 4;   // of them, unrolled; divides kInterval and kChunk

template <class T>
struct Params {
  const T *r, *w, *k, *v, *a, *b;
  T* y;
  const void* s0;
  void* s_out;
  const int32_t* elapsed;
  int32_t* elapsed_out;  // null also if it is `elapsed`
  uint4* states;         // saved
  int8_t* exponents;     // saved
  uint32_t* counters;    // saved
  const int8_t* exponent;
  int8_t* exponent_out;
  bool state_f16, row_exponents;
  float scale, inverse;  // of the state
  int tokens, heads;
  __device__ int64_t stride() const { return static_cast<int64_t>(heads) * kN; }
  __device__ int64_t origin(int stream) const {
    return static_cast<int64_t>(stream / heads) * tokens * stride() +
           static_cast<int64_t>(stream % heads) * kN;
  }
};

struct Prepared {
  __half r[kChunk][kN], w[kChunk][kN], k[kChunk][kN], v[kChunk][kN], b[kChunk][kN];
  __half a[kChunk + 1][kN];  // and of the token behind
};

// Tokens [t0, t0 + kChunk] by 64 threads; zeros behind the last.
template <class T, bool kDithered>
__device__ __forceinline__ void prepare(const Params<T>& p, Prepared& to, int64_t origin, int t0,
                                        uint32_t elapsed, uint32_t head, int thread) {
  constexpr int kQuads = kN / 4, kRounds = kChunk * kQuads / 64;
  const int col = thread % kQuads * 4, row = thread / kQuads;
  const T* const in[] = {p.r, p.w, p.k, p.v, p.a, p.b};
  __half(*const out[])[kN] = {to.r, to.w, to.k, to.v, to.a, to.b};
  const int64_t stride = p.stride();
  float4 x[6][kRounds], extra{};
#pragma unroll
  for (int i = 0; i < 6; ++i)
#pragma unroll
    for (int n = 0; n < kRounds; ++n) {
      const int t = t0 + n * (64 / kQuads) + row;
      x[i][n] =
          t < p.tokens ? load4(in[i] + origin + t * stride + col) : float4{0.0f, 0.0f, 0.0f, 0.0f};
    }
  if (row == 0 && t0 + kChunk < p.tokens)
    extra = load4(p.a + origin + (t0 + kChunk) * stride + col);
#pragma unroll
  for (int i = 0; i < 6; ++i)
#pragma unroll
    for (int n = 0; n < kRounds; ++n) {
      const int t = n * (64 / kQuads) + row;
      if (i == 1)
        x[i][n] =
            decays_of<kDithered>(x[i][n], dither_phase(elapsed + static_cast<uint32_t>(t0 + t),
                                                       head, static_cast<uint32_t>(col)));
      if (i == 3) x[i][n] = scaled(x[i][n], p.scale);
      *reinterpret_cast<Quad*>(&out[i][t][col]) = to_quad(x[i][n]);
    }
  if (row == 0) *reinterpret_cast<Quad*>(&to.a[kChunk][col]) = to_quad(extra);
}

__device__ __forceinline__ void load_row(Row& row, const void* s0, bool f16, float scale,
                                         int64_t state, int i) {
  if (s0 == nullptr) {
#pragma unroll
    for (int m = 0; m < kPairs; ++m) row.s[m] = __float2half2_rn(0.0f);
  } else if (f16) {
    const auto* from = static_cast<const __half*>(s0) + state + i * kN;
#pragma unroll
    for (int q = 0; q < kPacks; ++q)
      *reinterpret_cast<Pack*>(&row.s[4 * q]) = load_pack(from + 8 * q);
  } else {
    const auto* from = static_cast<const float*>(s0) + state + i * kN;
#pragma unroll
    for (int m = 0; m < kPairs; m += 2)
      *reinterpret_cast<Quad*>(&row.s[m]) = to_quad(scaled(load4(from + 2 * m), scale));
  }
}

__device__ __forceinline__ void store_row(const Row& row, void* s_out, bool f16, float inverse,
                                          int64_t state, int i) {
  if (f16) {
    auto* to = static_cast<__half*>(s_out) + state + i * kN;
#pragma unroll
    for (int q = 0; q < kPacks; ++q)
      store_pack(to + 8 * q, *reinterpret_cast<const Pack*>(&row.s[4 * q]));
  } else {
    auto* to = static_cast<float*>(s_out) + state + i * kN;
#pragma unroll
    for (int m = 0; m < kPairs; m += 2) {
      const float2 x = __half22float2(row.s[m]), z = __half22float2(row.s[m + 1]);
      *reinterpret_cast<float4*>(to + 2 * m) = scaled({x.x, x.y, z.x, z.y}, inverse);
    }
  }
}

// Saved states: [pack][row].
__device__ __forceinline__ void save_row(const Row& row, uint4* to, int i) {
#pragma unroll
  for (int q = 0; q < kPacks; ++q)
    store_pack(to + q * kN + i, *reinterpret_cast<const Pack*>(&row.s[4 * q]));
}

template <class T, bool kDithered>
__global__ void __launch_bounds__(128) sequence_kernel(const Params<T> p) {
  __shared__ alignas(16) Prepared ring[2];
  const int stream = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  const int sequence = stream / p.heads;
  const auto head = static_cast<uint32_t>(stream % p.heads);
  const int64_t origin = p.origin(stream), state = static_cast<int64_t>(stream) * kN * kN;
  const uint32_t elapsed = p.elapsed == nullptr ? 0u : static_cast<uint32_t>(p.elapsed[sequence]);
  const int chunks = (p.tokens + kChunk - 1) / kChunk;

  if (thread >= kN) {  // the warps that prepare
    prepare<T, kDithered>(p, ring[0], origin, 0, elapsed, head, thread - kN);
    __syncthreads();
    for (int c = 0; c < chunks; ++c) {
      if (c + 1 < chunks)
        prepare<T, kDithered>(p, ring[(c + 1) & 1], origin, (c + 1) * kChunk, elapsed, head,
                              thread - kN);
      __syncthreads();
    }
    return;
  }

  const int i = thread;
  uint4* saved = p.states == nullptr ? nullptr
                                     : p.states + static_cast<int64_t>(stream) *
                                                      (chunks_of(p.tokens) + 1) * kStatePacks;
  int8_t* saved_exponent =
      saved == nullptr
          ? nullptr
          : p.exponents + static_cast<int64_t>(stream) * (chunks_of(p.tokens) + 1) * kN + i;
  int exponent = p.exponent == nullptr ? 0 : p.exponent[stream * kN + i];
  float down = power_of_two(-exponent), up = p.inverse * power_of_two(exponent);
  Row row;
  load_row(row, p.s0, p.state_f16, p.scale * down, state, i);
  __syncthreads();
  __half u = dot(row, ring[0].a[0]);
  T* y_at = p.y + origin + i;
  const int64_t stride = p.stride();
  for (int c = 0; c < chunks; ++c) {
    Prepared& x = ring[c & 1];
    const int n = min(kChunk, p.tokens - c * kChunk);
    const auto token = [&](int t) {
      __half y;
      u = advance<true>(row, u, x.v[t][i], x.w[t], x.k[t], x.b[t], x.r[t], x.a[t + 1], &y);
      put(y_at, __half2float(y) * up);
      y_at += stride;
    };
    const auto save = [&] {
      save_row(row, saved, i);
      saved += kStatePacks;
      *saved_exponent = static_cast<int8_t>(exponent);
      saved_exponent += kN;
    };
    // Several tokens a round: the tail of one fills the gaps of the next, and the row needs no
    // copies from one set of registers to another. The look at exponents, behind token `due`, lies
    // between the loops.
    const int due =
        p.row_exponents
            ? static_cast<int>(kExponentTokens - 1 -
                               (elapsed + static_cast<uint32_t>(c * kChunk)) % kExponentTokens)
            : kChunk;
    for (int t = 0; t < n;) {
      const int end = t <= due ? min(n, due + 1) : n;
      if (exponent != 0)  // this thread's v, once for every token
        for (int m = t; m < end; ++m) x.v[m][i] = row_value(x.v[m][i], down);
      // States are saved between rounds: only where those begin at multiples of their length.
      const int rounds = saved != nullptr && t % kRound != 0 ? t : end;
#pragma unroll 1
      for (; t + kRound <= rounds; t += kRound) {
        if (saved != nullptr && t % kInterval == 0) save();
#pragma unroll
        for (int m = 0; m < kRound; ++m) token(t + m);
      }
#pragma unroll 1
      for (; t < end; ++t) {
        if (saved != nullptr && t % kInterval == 0) save();
        token(t);
      }
      if (t - 1 == due && follow(row, exponent)) {
        down = power_of_two(-exponent);
        up = p.inverse * power_of_two(exponent);
        u = dot(row, x.a[t]);
      }
    }
    __syncthreads();
  }
  if (saved != nullptr) {
    save_row(row, saved, i);
    *saved_exponent = static_cast<int8_t>(exponent);
  }
  if (p.s_out != nullptr) store_row(row, p.s_out, p.state_f16, up, state, i);
  if (p.exponent_out != nullptr) p.exponent_out[stream * kN + i] = static_cast<int8_t>(exponent);
  if (head == 0 && i == 0) {
    if (p.counters != nullptr) p.counters[sequence] = elapsed;
    if (p.elapsed_out != nullptr)
      p.elapsed_out[sequence] = static_cast<int32_t>(elapsed + static_cast<uint32_t>(p.tokens));
  }
}

// Pack q of row i in shared memory.
__device__ __forceinline__ int swizzled(int i, int q) {
  return i * kPacks + (q ^ (i & (kPacks - 1)));
}

template <class T, bool kDithered>
__global__ void __launch_bounds__(kN, 10) step_kernel(const Params<T> p) {
  __shared__ alignas(16) uint4 packs[kStatePacks];
  __shared__ alignas(16) __half r[kN], w[kN], k[kN], a[kN], b[kN];
  __shared__ volatile int8_t exponents[kN];  // registers are for the row
  const int stream = static_cast<int>(blockIdx.x), i = static_cast<int>(threadIdx.x);
  const int sequence = stream / p.heads;
  const auto head = static_cast<uint32_t>(stream % p.heads);
  const auto* from = static_cast<const uint4*>(p.s0) + static_cast<int64_t>(stream) * kStatePacks;
#pragma unroll
  for (int n = 0; n < kPacks; ++n) {
    const int at = n * kN + i;
    const auto to =
        static_cast<uint32_t>(__cvta_generic_to_shared(&packs[swizzled(at / kPacks, at % kPacks)]));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;\n" ::"r"(to), "l"(from + at)
                 : "memory");
  }
  asm volatile("cp.async.commit_group;\n" ::: "memory");
  const int64_t at = static_cast<int64_t>(stream) * kN + i;  // one token: heads are neighbours
  const uint32_t elapsed = p.elapsed == nullptr ? 0u : static_cast<uint32_t>(p.elapsed[sequence]);
  const float in_w = load1(p.w + at);
  r[i] = __float2half_rn(load1(p.r + at));
  k[i] = __float2half_rn(load1(p.k + at));
  a[i] = __float2half_rn(load1(p.a + at));
  b[i] = __float2half_rn(load1(p.b + at));
  __half v = __float2half_rn(load1(p.v + at) * p.scale);
  if (p.exponent != nullptr) {
    const int8_t e = p.exponent[at];
    exponents[i] = e;
    v = row_value(v, power_of_two(-e));
  }
  w[i] = __float2half_rn(
      decay_of<kDithered>(in_w, dither_phase(elapsed, head, static_cast<uint32_t>(i))));
  asm volatile("cp.async.wait_all;\n" ::: "memory");
  __syncthreads();

  Row row;
#pragma unroll
  for (int q = 0; q < kPacks; ++q)
    *reinterpret_cast<Pack*>(&row.s[4 * q]) = load_pack(&packs[swizzled(i, q)]);
  const __half u = dot(row, a);
  __half y;
  advance<true>(row, u, v, w, k, b, r, a, &y);
  float up = p.inverse;
  if (p.exponent != nullptr) {
    int exponent = exponents[i];
    up *= power_of_two(exponent);
    const bool changed = exponent_due(elapsed) && follow(row, exponent);
    if (changed || p.exponent_out != p.exponent) p.exponent_out[at] = static_cast<int8_t>(exponent);
  }
  put(p.y + at, __half2float(y) * up);
#pragma unroll
  for (int q = 0; q < kPacks; ++q)
    store_pack(&packs[swizzled(i, q)], *reinterpret_cast<const Pack*>(&row.s[4 * q]));
  __syncthreads();
  if (p.s_out != nullptr) {
    auto* out = static_cast<uint4*>(p.s_out) + static_cast<int64_t>(stream) * kStatePacks;
#pragma unroll
    for (int n = 0; n < kPacks; ++n) {
      const int pack = n * kN + i;
      out[pack] = packs[swizzled(pack / kPacks, pack % kPacks)];
    }
  }
  if (head == 0 && i == 0 && p.elapsed_out != nullptr)
    p.elapsed_out[sequence] = static_cast<int32_t>(elapsed + 1u);
}

// Counters in place, when every head has read them.
__global__ void count_kernel(int32_t* counters, int n, int tokens) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n)
    counters[i] =
        static_cast<int32_t>(static_cast<uint32_t>(counters[i]) + static_cast<uint32_t>(tokens));
}

template <class T, bool kDithered>
cudaError_t launch(const Wkv7Shape& s, const Wkv7Fp16Kind& kind, const Wkv7Fp16Forward& io,
                   bool step, cudaStream_t stream) {
  const auto in = [](const void* x) { return static_cast<const T*>(x); };
  const bool in_place = io.elapsed_out != nullptr && io.elapsed_out == io.elapsed;
  Params<T> p{};
  p.r = in(io.r);
  p.w = in(io.w);
  p.k = in(io.k);
  p.v = in(io.v);
  p.a = in(io.a);
  p.b = in(io.b);
  p.y = static_cast<T*>(io.y);
  p.s0 = io.s0;
  p.s_out = io.s_out;
  p.elapsed = io.elapsed;
  p.elapsed_out = in_place ? nullptr : io.elapsed_out;
  p.state_f16 = io.state_f16;
  p.exponent = io.exponent;
  p.exponent_out = io.exponent_out;
  p.row_exponents = kind.row_exponents;
  p.scale = kind.state_scale;
  p.inverse = 1 / kind.state_scale;
  p.tokens = s.tokens;
  p.heads = s.heads;
  if (io.saved != nullptr) {
    p.states = static_cast<uint4*>(io.saved);
    p.exponents = saved_exponents(io.saved, s);
    p.counters = saved_counters(io.saved, s);
  }
  const auto blocks = static_cast<unsigned>(s.batch * s.heads);
  if (step)
    step_kernel<T, kDithered><<<blocks, kN, 0, stream>>>(p);
  else
    sequence_kernel<T, kDithered><<<blocks, 2 * kN, 0, stream>>>(p);
  if (in_place)
    count_kernel<<<static_cast<unsigned>((s.batch + 255) / 256), 256, 0, stream>>>(
        io.elapsed_out, s.batch, s.tokens);
  return cudaGetLastError();
}

cudaError_t run(const Wkv7Shape& s, Wkv7Fp16Kind kind, const Wkv7Fp16Forward& io, bool step,
                cudaStream_t stream) {
  if (s.head_size != kN) return cudaErrorInvalidValue;
  if (kind.io_f32)
    return kind.dithered ? launch<float, true>(s, kind, io, step, stream)
                         : launch<float, false>(s, kind, io, step, stream);
  return kind.dithered ? launch<__nv_bfloat16, true>(s, kind, io, step, stream)
                       : launch<__nv_bfloat16, false>(s, kind, io, step, stream);
}

}  // namespace
}  // namespace fp16

size_t wkv7_fp16_saved_bytes(const Wkv7Shape& s) {
  return fp16::saved_states(s) * (fp16::kStatePacks * sizeof(uint4) + fp16::kN) +
         static_cast<size_t>(s.batch) * 4;
}

cudaError_t wkv7_fp16_forward(const Wkv7Shape& shape, Wkv7Fp16Kind kind, const Wkv7Fp16Forward& io,
                              cudaStream_t stream) {
  return fp16::run(shape, kind, io, false, stream);
}

cudaError_t wkv7_fp16_step(const Wkv7Shape& shape, Wkv7Fp16Kind kind, const Wkv7Fp16Forward& io,
                           cudaStream_t stream) {
  if (shape.tokens != 1 || !io.state_f16 || io.s0 == nullptr || io.saved != nullptr ||
      kind.row_exponents != (io.exponent != nullptr) ||
      kind.row_exponents != (io.exponent_out != nullptr))
    return cudaErrorInvalidValue;
  return fp16::run(shape, kind, io, true, stream);
}

}  // namespace rwkv::cuda
