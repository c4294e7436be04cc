/// Binary16 WKV-7 backward, straight-through (spec rwkv7 5.4): one block per head. Chunks of 8
/// tokens pass four stages, four chunks at a time, each by warps of its own:
///
///   prepare  (warps 6, 7)  load, round and dither the vectors
///   rerun    (warps 4, 5)  the forward from the saved state, a thread per row; the states ahead of
///                          every token and u stay in shared memory
///   back     (warps 0-3)   tokens backwards, a warp per 16 rows of lambda in fp32 registers. What
///                          is summed over columns (e, dv) stays in the warp, what is summed over
///                          rows is left as one partial sum per warp
///   write    (warps 6, 7)  sums the partial sums in order, writes the gradients
///
/// The block meets after every half chunk.

#include "kernels/wkv/cuda/wkv7_fp16.cuh"

namespace rwkv::cuda {
namespace fp16 {
namespace {

constexpr int kHalf = kInterval / 2;  // tokens between two meetings
constexpr int kThreads = 256;
constexpr float kDecayScale = 0.60653065971263342f;
enum Sum { kDr, kDw, kDk, kDa, kDb, kSums };

template <class T>
struct Params {
  const T *r, *w, *k, *v, *a, *b, *dy;
  const float* ds_out;
  T *dr, *dw, *dk, *dv, *da, *db;
  float* ds0;
  unsigned add;
  const uint4* states;
  const uint32_t* counters;
  int tokens, heads;
  __device__ int64_t stride() const { return static_cast<int64_t>(heads) * kN; }
  __device__ int64_t origin(int stream) const {
    return static_cast<int64_t>(stream / heads) * tokens * stride() +
           static_cast<int64_t>(stream % heads) * kN;
  }
};

struct alignas(16) Token {
  __half r[kN], w[kN], k[kN], v[kN], a[kN], b[kN], u[kN];
  float dy[kN];
  float slope[kN];  // d(decay) / d(w_logit)
};

struct Shared {
  uint4 states[2][kInterval][kStatePacks];  // ahead of each token, packs swizzled by row
  Token tokens[3][kInterval];
  float sums[2][kHalf][4][kSums][kN];  // of a half chunk, by warp
  float dv[2][kHalf][kN];
  float e[2][4][16];
};

__device__ __forceinline__ float slope_of(float w_logit) {
  const float x = __half2float(__float2half_rn(w_logit));
  const float q = expf(-fabsf(x)), inverse = 1.0f / (1.0f + q);
  const float sigmoid = x < 0.0f ? q * inverse : inverse;
  return expf(-kDecayScale * sigmoid) * -kDecayScale * q * inverse * inverse;
}

// Tokens [t0, t0 + kHalf) by 64 threads; zeros behind the last.
template <class T, bool kDithered>
__device__ __forceinline__ void prepare(const Params<T>& p, Token* to, int64_t origin, int t0,
                                        uint32_t elapsed, uint32_t head, int thread) {
  const int col = thread % 16 * 4, t = thread / 16;
  Token& x = to[t];
  const T* const in[] = {p.r, p.w, p.k, p.v, p.a, p.b, p.dy};
  float4 value[7];
#pragma unroll
  for (int i = 0; i < 7; ++i)
    value[i] = t0 + t < p.tokens ? load4(in[i] + origin + (t0 + t) * p.stride() + col)
                                 : float4{0.0f, 0.0f, 0.0f, 0.0f};
  const float4 logit = value[1];
  value[1] = decays_of<kDithered>(logit, dither_phase(elapsed + static_cast<uint32_t>(t0 + t), head,
                                                      static_cast<uint32_t>(col)));
  __half* const out[] = {x.r, x.w, x.k, x.v, x.a, x.b};
#pragma unroll
  for (int i = 0; i < 6; ++i) *reinterpret_cast<Quad*>(out[i] + col) = to_quad(value[i]);
  *reinterpret_cast<float4*>(x.dy + col) = value[6];
  *reinterpret_cast<float4*>(x.slope + col) = {slope_of(logit.x), slope_of(logit.y),
                                               slope_of(logit.z), slope_of(logit.w)};
}

template <class T>
__device__ __forceinline__ void put_gradient(T* to, int64_t at, float x, unsigned add) {
  if (to == nullptr) return;
  if ((add & 1u) != 0) x += load1(to + at);
  put(to + at, x);
}

// Gradients of tokens [t0, t0 + kHalf), column j.
template <class T>
__device__ __forceinline__ void write(const Params<T>& p, const Shared& sh, int buffer,
                                      const Token* tokens, int64_t origin, int t0, int j) {
#pragma unroll
  for (int t = 0; t < kHalf; ++t) {
    if (t0 + t >= p.tokens) break;
    const int64_t at = origin + (t0 + t) * p.stride() + j;
    float sum[kSums];
#pragma unroll
    for (int s = 0; s < kSums; ++s) {
      const auto& part = sh.sums[buffer][t];
      sum[s] = (part[0][s][j] + part[1][s][j]) + (part[2][s][j] + part[3][s][j]);
    }
    put_gradient(p.dr, at, sum[kDr], p.add);
    put_gradient(p.dw, at, sum[kDw] * tokens[t].slope[j], p.add >> 1);
    put_gradient(p.dk, at, sum[kDk], p.add >> 2);
    put_gradient(p.dv, at, sh.dv[buffer][t][j], p.add >> 3);
    put_gradient(p.da, at, sum[kDa], p.add >> 4);
    put_gradient(p.db, at, sum[kDb], p.add >> 5);
  }
}

/// 8 x 4 numbers of a matrix that a lane holds: rows 8 g to 8 g + 7 of its warp's 16, g = lane /
/// 16, columns 4 c to 4 c + 3, c = lane % 16.
struct Tile {
  float x[8][4];
};

__device__ __forceinline__ void quad_floats(const void* p, float (&x)[4]) {
  const Quad q = *static_cast<const Quad*>(p);
  const float2 lo = __half22float2(q.pair[0]), hi = __half22float2(q.pair[1]);
  x[0] = lo.x;
  x[1] = lo.y;
  x[2] = hi.x;
  x[3] = hi.y;
}
__device__ __forceinline__ void pack_floats(const __half* p, float (&x)[8]) {
  const Pack q = load_pack(p);
#pragma unroll
  for (int m = 0; m < 4; ++m) {
    const float2 pair = __half22float2(q.pair[m]);
    x[2 * m] = pair.x;
    x[2 * m + 1] = pair.y;
  }
}
__device__ __forceinline__ void eight_floats(const float* p, float (&x)[8]) {
  const float4 lo = load4(p), hi = load4(p + 4);
  x[0] = lo.x;
  x[1] = lo.y;
  x[2] = lo.z;
  x[3] = lo.w;
  x[4] = hi.x;
  x[5] = hi.y;
  x[6] = hi.z;
  x[7] = hi.w;
}

__device__ __forceinline__ void load_state(Tile& s, const uint4* packs, int row0, int c) {
#pragma unroll
  for (int m = 0; m < 8; ++m)  // row0 is a multiple of 8: row % 8 = m
    quad_floats(reinterpret_cast<const Quad*>(packs + (row0 + m) * kPacks + ((c / 2) ^ m)) + c % 2,
                s.x[m]);
}

// to[4 c ..] = sum over the warp's 16 rows of m.x * row
__device__ __forceinline__ void column_sums(const Tile& m, const float (&row)[8], float* to, int g,
                                            int c) {
  float sum[4];
#pragma unroll
  for (int n = 0; n < 4; ++n) {
    sum[n] = m.x[0][n] * row[0];
#pragma unroll
    for (int i = 1; i < 8; ++i) sum[n] += m.x[i][n] * row[i];
  }
  const float send0 = g == 0 ? sum[2] : sum[0], send1 = g == 0 ? sum[3] : sum[1];
  const float got0 = __shfl_xor_sync(0xffffffffu, send0, 16),
              got1 = __shfl_xor_sync(0xffffffffu, send1, 16);
  *reinterpret_cast<float2*>(to + 4 * c + 2 * g) = {(g == 0 ? sum[0] : sum[2]) + got0,
                                                    (g == 0 ? sum[1] : sum[3]) + got1};
}

// Sums of 16 values over 16 lanes: lane c gets that of value c.
__device__ __forceinline__ float scattered_sum(float (&z)[16], int c) {
#pragma unroll
  for (int d = 8; d >= 1; d /= 2) {
    const bool upper = (c & d) != 0;
#pragma unroll
    for (int i = 0; i < d; ++i) {
      const float send = upper ? z[i] : z[i + d];
      const float keep = upper ? z[i + d] : z[i];
      z[i] = keep + __shfl_xor_sync(0xffffffffu, send, d);
    }
  }
  return z[0];
}

// One token; `after` is the state behind it and becomes the one ahead of it. Sums go to
// to[kSums][kN], dv to its 16 rows, e through `e` (16).
__device__ __forceinline__ void back(Tile& lambda, Tile& after, const Token& x, const uint4* before,
                                     float* to, float* dv, float* e, int row0, int g, int c) {
  float dy[8], column[4];
  eight_floats(x.dy + row0, dy);
  column_sums(after, dy, to + kDr * kN, g, c);
  quad_floats(x.r + 4 * c, column);
#pragma unroll
  for (int i = 0; i < 8; ++i)
#pragma unroll
    for (int n = 0; n < 4; ++n) lambda.x[i][n] += dy[i] * column[n];
  {
    float k[4], z[16];
    quad_floats(x.b + 4 * c, column);
    quad_floats(x.k + 4 * c, k);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      z[i] = lambda.x[i][0] * column[0];
      z[i + 8] = lambda.x[i][0] * k[0];
#pragma unroll
      for (int n = 1; n < 4; ++n) {
        z[i] += lambda.x[i][n] * column[n];
        z[i + 8] += lambda.x[i][n] * k[n];
      }
    }
    const float sum = scattered_sum(z, c);
    if (c < 8)
      e[8 * g + c] = sum;
    else
      dv[row0 + c - 8] = sum;
  }
  __syncwarp();
  load_state(after, before, row0, c);
  float row[8];
  pack_floats(x.v + row0, row);
  column_sums(lambda, row, to + kDk * kN, g, c);
  pack_floats(x.u + row0, row);
  column_sums(lambda, row, to + kDb * kN, g, c);
  {
    float sum[4];
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      sum[n] = lambda.x[0][n] * after.x[0][n];
#pragma unroll
      for (int i = 1; i < 8; ++i) sum[n] += lambda.x[i][n] * after.x[i][n];
    }
    const float send0 = g == 0 ? sum[2] : sum[0], send1 = g == 0 ? sum[3] : sum[1];
    const float got0 = __shfl_xor_sync(0xffffffffu, send0, 16),
                got1 = __shfl_xor_sync(0xffffffffu, send1, 16);
    *reinterpret_cast<float2*>(to + kDw * kN + 4 * c + 2 * g) = {(g == 0 ? sum[0] : sum[2]) + got0,
                                                                 (g == 0 ? sum[1] : sum[3]) + got1};
  }
  eight_floats(e + 8 * g, row);
  column_sums(after, row, to + kDa * kN, g, c);
  float w[4];
  quad_floats(x.w + 4 * c, w);
  quad_floats(x.a + 4 * c, column);
#pragma unroll
  for (int n = 0; n < 4; ++n) w[n] += 1.0f;
#pragma unroll
  for (int i = 0; i < 8; ++i)
#pragma unroll
    for (int n = 0; n < 4; ++n) lambda.x[i][n] = lambda.x[i][n] * w[n] + row[i] * column[n];
}

template <class T, bool kDithered>
__global__ void __launch_bounds__(kThreads, 1) backward_kernel(const Params<T> p) {
  extern __shared__ uint4 memory[];
  Shared& sh = *reinterpret_cast<Shared*>(memory);
  const int stream = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  const int warp = thread / 32, lane = thread % 32, chunks = chunks_of(p.tokens);
  const auto head = static_cast<uint32_t>(stream % p.heads);
  const int64_t origin = p.origin(stream), state = static_cast<int64_t>(stream) * kN * kN;
  const uint32_t elapsed = p.counters[stream / p.heads];
  const uint4* const saved = p.states + static_cast<int64_t>(stream) * (chunks + 1) * kStatePacks;

  if (warp >= 6) {  // prepare, write
    const int j = thread - 192;
    for (int s = 0; s < chunks + 3; ++s)
      for (int h = 0; h < 2; ++h) {
        // What `back` did before the last meeting: it goes from the second half to the first.
        const int done = h == 1 ? chunks + 1 - s : chunks + 2 - s;
        if (done >= 0 && done < chunks) {
          const int half = h == 1 ? 1 : 0;
          write(p, sh, 1 - h, sh.tokens[done % 3] + half * kHalf, origin,
                done * kInterval + half * kHalf, j);
        }
        asm volatile("bar.sync 1, 64;\n" ::: "memory");  // the slot is free
        const int chunk = chunks - 1 - s;
        if (chunk >= 0)
          prepare<T, kDithered>(p, sh.tokens[chunk % 3] + h * kHalf, origin,
                                chunk * kInterval + h * kHalf, elapsed, head, j);
        __syncthreads();
      }
    return;
  }

  if (warp >= 4) {  // rerun
    const int i = thread - 128;
    Row row;
    __half u{};
    for (int s = 0; s < chunks + 3; ++s)
      for (int h = 0; h < 2; ++h) {
        const int chunk = chunks - s;
        if (chunk >= 0 && chunk < chunks) {
          Token* const x = sh.tokens[chunk % 3];
          if (h == 0) {
#pragma unroll
            for (int q = 0; q < kPacks; ++q)
              *reinterpret_cast<Pack*>(&row.s[4 * q]) =
                  load_pack(saved + static_cast<int64_t>(chunk) * kStatePacks + q * kN + i);
            u = dot(row, x[0].a);
          }
#pragma unroll 1
          for (int t = h * kHalf; t < h * kHalf + kHalf; ++t) {
            uint4* const to = sh.states[chunk & 1][t] + i * kPacks;
#pragma unroll
            for (int q = 0; q < kPacks; ++q)
              store_pack(to + (q ^ (i & 7)), *reinterpret_cast<const Pack*>(&row.s[4 * q]));
            x[t].u[i] = u;
            if (t + 1 < kInterval)
              u = advance<false>(row, u, x[t].v[i], x[t].w, x[t].k, x[t].b, nullptr, x[t + 1].a,
                                 nullptr);
          }
        }
        __syncthreads();
      }
    return;
  }

  const int g = lane / 16, c = lane % 16, row0 = 16 * warp + 8 * g;
  Tile lambda, after;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const float4 x = p.ds_out == nullptr ? float4{0.0f, 0.0f, 0.0f, 0.0f}
                                         : load4(p.ds_out + state + (row0 + i) * kN + 4 * c);
    lambda.x[i][0] = x.x;
    lambda.x[i][1] = x.y;
    lambda.x[i][2] = x.z;
    lambda.x[i][3] = x.w;
    const uint4* last = saved + static_cast<int64_t>(chunks) * kStatePacks;
    quad_floats(reinterpret_cast<const Quad*>(last + c / 2 * kN + row0 + i) + c % 2, after.x[i]);
  }
  for (int s = 0; s < chunks + 3; ++s)
    for (int h = 0; h < 2; ++h) {
      const int chunk = chunks + 1 - s, half = 1 - h;  // its second half first
      if (chunk >= 0 && chunk < chunks)
#pragma unroll 1
        for (int t = kHalf - 1; t >= 0; --t) {
          const int slot = half * kHalf + t;
          if (chunk * kInterval + slot >= p.tokens) continue;
          back(lambda, after, sh.tokens[chunk % 3][slot], sh.states[chunk & 1][slot],
               &sh.sums[h][t][warp][0][0], sh.dv[h][t], sh.e[t & 1][warp], row0, g, c);
        }
      __syncthreads();
    }
  if (p.ds0 == nullptr) return;
#pragma unroll
  for (int i = 0; i < 8; ++i)
#pragma unroll
    for (int n = 0; n < 4; ++n)
      put_gradient(p.ds0, state + (row0 + i) * kN + 4 * c + n, lambda.x[i][n], p.add >> 6);
}

template <class T, bool kDithered>
cudaError_t launch(const Wkv7Shape& s, const Wkv7Backward& io, cudaStream_t stream) {
  const auto in = [](const void* x) { return static_cast<const T*>(x); };
  const auto out = [](void* x) { return static_cast<T*>(x); };
  Params<T> p{};
  p.r = in(io.r);
  p.w = in(io.w);
  p.k = in(io.k);
  p.v = in(io.v);
  p.a = in(io.a);
  p.b = in(io.b);
  p.dy = in(io.dy);
  p.ds_out = io.ds_out;
  p.dr = out(io.dr);
  p.dw = out(io.dw);
  p.dk = out(io.dk);
  p.dv = out(io.dv);
  p.da = out(io.da);
  p.db = out(io.db);
  p.ds0 = io.ds0;
  p.add = io.add;
  p.states = static_cast<const uint4*>(io.saved);
  p.counters = saved_counters(const_cast<void*>(io.saved), s);
  p.tokens = s.tokens;
  p.heads = s.heads;
  const auto kernel = backward_kernel<T, kDithered>;
  if (const cudaError_t e = cudaFuncSetAttribute(
          kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(sizeof(Shared)));
      e != cudaSuccess)
    return e;
  kernel<<<static_cast<unsigned>(s.batch * s.heads), kThreads, sizeof(Shared), stream>>>(p);
  return cudaGetLastError();
}

}  // namespace
}  // namespace fp16

cudaError_t wkv7_fp16_backward(const Wkv7Shape& s, Wkv7Fp16Kind kind, const Wkv7Backward& io,
                               cudaStream_t stream) {
  if (s.head_size != fp16::kN) return cudaErrorInvalidValue;
  if (kind.io_f32)
    return kind.dithered ? fp16::launch<float, true>(s, io, stream)
                         : fp16::launch<float, false>(s, io, stream);
  return kind.dithered ? fp16::launch<__nv_bfloat16, true>(s, io, stream)
                       : fp16::launch<__nv_bfloat16, false>(s, io, stream);
}

}  // namespace rwkv::cuda
