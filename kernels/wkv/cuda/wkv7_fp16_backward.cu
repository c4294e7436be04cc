/// Binary16 WKV-7 backward, straight-through (spec rwkv7 5.4): one block per head. Chunks of 8
/// tokens pass four stages, four chunks at a time, each by warps of its own:
///
///   prepare  (warps 6, 7)  load, round and dither the vectors
///   rerun    (warps 4, 5)  the forward from the saved state, a thread per row; the states ahead of
///                          every token and u stay in shared memory
///   back     (warps 0-3)   tokens backwards, a warp per 16 rows of lambda in fp32 registers. What
///                          is summed over columns (e, dv) stays in the warp, what is summed over
///                          rows is left as one partial sum per warp
///   write    (warps 8, 9)  sums the partial sums in order, writes the gradients
///
/// The block meets after every half chunk.
///
/// Exponents of rows: lambda is the gradient of X = c 2^-e S. `rerun` multiplies dy by 2^e and v by
/// 2^-e, `back` multiplies lambda where it passes a change of e (at most one in 8 tokens), `write`
/// multiplies dv by 2^-e.

#include "kernels/wkv/cuda/wkv7_fp16.cuh"

namespace rwkv::cuda {
namespace fp16 {
namespace {

constexpr int kHalf = kInterval / 2;  // tokens between two meetings
constexpr int kThreads = 320;
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
  const int8_t* exponents;
  const uint32_t* counters;
  float scale, inverse;  // of the state
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
};

struct Shared {
  uint4 states[2][kInterval][kStatePacks];  // ahead of each token, packs swizzled by row
  Token tokens[3][kInterval];
  float slope[4][kInterval][kN];       // d(decay) / d(w_logit); `write` is three chunks behind
  float sums[2][kHalf][4][kSums][kN];  // of a half chunk, by warp
  float dv[2][kHalf][kN];
  float e[2][4][16];
  int8_t exponent[4][2][kN];  // ahead of and behind the change in a chunk, as `slope`
  int change[4][2];           // the token with it, by warp; kInterval: no exponent is other than 0
};

/// The token of a chunk behind which exponents may change, kInterval if there is none; `first` is
/// the position of the chunk's first token.
__device__ __forceinline__ int change_in(uint32_t first) {
  const uint32_t left = kExponentTokens - 1 - first % kExponentTokens;
  return left < kInterval ? static_cast<int>(left) : kInterval;
}

__device__ __forceinline__ float slope_of(float w_logit) {
  const float x = __half2float(__float2half_rn(w_logit));
  const float q = expf(-fabsf(x)), inverse = 1.0f / (1.0f + q);
  const float sigmoid = x < 0.0f ? q * inverse : inverse;
  return expf(-kDecayScale * sigmoid) * -kDecayScale * q * inverse * inverse;
}

/// Four columns of one of the tokens [t0, t0 + kHalf) that a thread of 64 prepares; zeros behind
/// the last.
struct Loaded {
  float4 value[7];
  template <class T>
  __device__ __forceinline__ void load(const Params<T>& p, int64_t origin, int t0, int thread) {
    const int col = thread % 16 * 4, t = t0 + thread / 16;
    const T* const in[] = {p.r, p.w, p.k, p.v, p.a, p.b, p.dy};
#pragma unroll
    for (int i = 0; i < 7; ++i)
      value[i] = t < p.tokens ? load4(in[i] + origin + t * p.stride() + col)
                              : float4{0.0f, 0.0f, 0.0f, 0.0f};
  }
};

template <bool kDithered>
__device__ __forceinline__ void prepare(Loaded& loaded, float scale, float inverse, Token* to,
                                        float (*slopes)[kN], uint32_t t0, uint32_t head,
                                        int thread) {
  const int col = thread % 16 * 4, t = thread / 16;
  Token& x = to[t];
  float4(&value)[7] = loaded.value;
  const float4 logit = value[1];
  value[1] = decays_of<kDithered>(
      logit, dither_phase(t0 + static_cast<uint32_t>(t), head, static_cast<uint32_t>(col)));
  value[3] = scaled(value[3], scale);
  value[6] = scaled(value[6], inverse);
  __half* const out[] = {x.r, x.w, x.k, x.v, x.a, x.b};
#pragma unroll
  for (int i = 0; i < 6; ++i) *reinterpret_cast<Quad*>(out[i] + col) = to_quad(value[i]);
  *reinterpret_cast<float4*>(x.dy + col) = value[6];
  *reinterpret_cast<float4*>(slopes[t] + col) = {slope_of(logit.x), slope_of(logit.y),
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
                                      const float (*slopes)[kN], const int8_t (*exponents)[kN],
                                      int changed, int64_t origin, int t0, int j) {
  const float down[2] = {p.scale * power_of_two(-exponents[0][j]),
                         p.scale * power_of_two(-exponents[1][j])};
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
    put_gradient(p.dw, at, sum[kDw] * slopes[t][j], p.add >> 1);
    put_gradient(p.dk, at, sum[kDk], p.add >> 2);
    put_gradient(p.dv, at, sh.dv[buffer][t][j] * (t > changed ? down[1] : down[0]), p.add >> 3);
    put_gradient(p.da, at, sum[kDa], p.add >> 4);
    put_gradient(p.db, at, sum[kDb], p.add >> 5);
  }
}

/// 8 x 4 numbers of a matrix that a lane holds: rows 8 g to 8 g + 7 of its warp's 16, g = lane /
/// 16, columns 4 c to 4 c + 3, c = lane % 16.
struct Tile {
  float x[8][4];
};

__device__ __forceinline__ Quad load_quad(const void* p) {
  Quad q;
  *reinterpret_cast<uint2*>(&q) = *static_cast<const uint2*>(p);
  return q;
}
__device__ __forceinline__ void unpack(const Quad& q, float (&x)[4]) {
  const float2 lo = __half22float2(q.pair[0]), hi = __half22float2(q.pair[1]);
  x[0] = lo.x;
  x[1] = lo.y;
  x[2] = hi.x;
  x[3] = hi.y;
}
__device__ __forceinline__ void unpack(const Pack& q, float (&x)[8]) {
#pragma unroll
  for (int m = 0; m < 4; ++m) {
    const float2 pair = __half22float2(q.pair[m]);
    x[2 * m] = pair.x;
    x[2 * m + 1] = pair.y;
  }
}
__device__ __forceinline__ void unpack(const float4 (&q)[2], float (&x)[8]) {
  x[0] = q[0].x;
  x[1] = q[0].y;
  x[2] = q[0].z;
  x[3] = q[0].w;
  x[4] = q[1].x;
  x[5] = q[1].y;
  x[6] = q[1].z;
  x[7] = q[1].w;
}

/// What a lane needs of one token: its columns of five vectors, its rows of three, its tile of the
/// state ahead of it. Read a token ahead.
struct Operands {
  Quad r, w, k, a, b, before[8];
  Pack v, u;
  float4 dy[2];
  __device__ __forceinline__ void load(const Token& x, const uint4* packs, int row0, int c) {
    r = load_quad(x.r + 4 * c);
    w = load_quad(x.w + 4 * c);
    k = load_quad(x.k + 4 * c);
    a = load_quad(x.a + 4 * c);
    b = load_quad(x.b + 4 * c);
    v = load_pack(x.v + row0);
    u = load_pack(x.u + row0);
    dy[0] = load4(x.dy + row0);
    dy[1] = load4(x.dy + row0 + 4);
#pragma unroll
    for (int m = 0; m < 8; ++m)  // row0 is a multiple of 8: row % 8 = m
      before[m] = load_quad(
          reinterpret_cast<const Quad*>(packs + (row0 + m) * kPacks + ((c / 2) ^ m)) + c % 2);
  }
};

/// to[4 c ..] = sums of four columns over the warp's two groups of rows.
__device__ __forceinline__ void put_columns(const float (&sum)[4], float* to, int g, int c) {
  const float send0 = g == 0 ? sum[2] : sum[0], send1 = g == 0 ? sum[3] : sum[1];
  const float got0 = __shfl_xor_sync(0xffffffffu, send0, 16),
              got1 = __shfl_xor_sync(0xffffffffu, send1, 16);
  *reinterpret_cast<float2*>(to + 4 * c + 2 * g) = {(g == 0 ? sum[0] : sum[2]) + got0,
                                                    (g == 0 ? sum[1] : sum[3]) + got1};
}

/// sum[n] = sum over the lane's rows of m.x * row
__device__ __forceinline__ void column_sums(const Tile& m, const float (&row)[8], float (&sum)[4]) {
#pragma unroll
  for (int n = 0; n < 4; ++n) sum[n] = m.x[0][n] * row[0];
#pragma unroll
  for (int i = 1; i < 8; ++i)
#pragma unroll
    for (int n = 0; n < 4; ++n) sum[n] += m.x[i][n] * row[i];
}

/// Sums of 2 kWidth values over 2 kWidth lanes: lane c gets that of value c in z[0].
template <int kWidth>
__device__ __forceinline__ void scatter_sums(float* z, int c) {
  const bool upper = (c & kWidth) != 0;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    const float send = upper ? z[i] : z[i + kWidth];
    const float keep = upper ? z[i + kWidth] : z[i];
    z[i] = keep + __shfl_xor_sync(0xffffffffu, send, kWidth);
  }
  if constexpr (kWidth > 1) scatter_sums<kWidth / 2>(z, c);
}

/// One token; `after` is the state behind it and becomes the one ahead of it. Sums go to
/// to[kSums][kN], dv to its 16 rows, e through `e` (16). `next` is loaded meanwhile.
template <class LoadNext>
__device__ __forceinline__ void back(Tile& lambda, Tile& after, const Operands& x, float* to,
                                     float* dv, float* e, int row0, int g, int c,
                                     const LoadNext& load_next) {
  float row[8], column[4], dr[4];
  unpack(x.dy, row);
  unpack(x.r, column);
#pragma unroll
  for (int i = 0; i < 8; ++i)
#pragma unroll
    for (int n = 0; n < 4; ++n) lambda.x[i][n] += row[i] * column[n];
  {
    float k[4], z[16];
    unpack(x.b, column);
    unpack(x.k, k);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      z[i] = lambda.x[i][0] * column[0];
      z[i + 8] = lambda.x[i][0] * k[0];
    }
#pragma unroll
    for (int n = 1; n < 4; ++n)
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        z[i] += lambda.x[i][n] * column[n];
        z[i + 8] += lambda.x[i][n] * k[n];
      }
    column_sums(after, row, dr);  // between the products and the exchange
    scatter_sums<8>(z, c);
    (c < 8 ? e + 8 * g : dv + row0 - 8)[c] = z[0];
  }
  __syncwarp();
  const float4 e_rows[2] = {load4(e + 8 * g), load4(e + 8 * g + 4)};
  float dk[4], db[4], dw[4], da[4];
  unpack(x.v, row);
  column_sums(lambda, row, dk);
  unpack(x.u, row);
  column_sums(lambda, row, db);
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    unpack(x.before[i], after.x[i]);
#pragma unroll
    for (int n = 0; n < 4; ++n)
      dw[n] = i == 0 ? lambda.x[i][n] * after.x[i][n] : dw[n] + lambda.x[i][n] * after.x[i][n];
  }
  float w[4];
  unpack(x.w, w);
  unpack(x.a, column);
  load_next();
  unpack(e_rows, row);
  column_sums(after, row, da);
#pragma unroll
  for (int n = 0; n < 4; ++n) w[n] += 1.0f;
#pragma unroll
  for (int i = 0; i < 8; ++i)
#pragma unroll
    for (int n = 0; n < 4; ++n) lambda.x[i][n] = lambda.x[i][n] * w[n] + row[i] * column[n];
  put_columns(dr, to + kDr * kN, g, c);
  put_columns(dk, to + kDk * kN, g, c);
  put_columns(db, to + kDb * kN, g, c);
  put_columns(dw, to + kDw * kN, g, c);
  put_columns(da, to + kDa * kN, g, c);
}

/// From behind a change of exponents to ahead of it: gradient and state of a token's end.
__device__ __forceinline__ void cross(Tile& lambda, Tile& after, const int8_t (*exponents)[kN],
                                      int row0) {
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int change = exponents[1][row0 + i] - exponents[0][row0 + i];
    const float up = power_of_two(change), down = power_of_two(-change);
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      lambda.x[i][n] *= down;
      after.x[i][n] *= up;
    }
  }
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
  const int8_t* const saved_exponent =
      p.exponents + static_cast<int64_t>(stream) * (chunks + 1) * kN;

  if (warp >= 8) {  // write
    const int j = thread - 256;
    for (int s = 0; s < chunks + 3; ++s)
      for (int h = 0; h < 2; ++h) {
        // What `back` did before the last meeting: it goes from the second half to the first.
        const int chunk = h == 1 ? chunks + 1 - s : chunks + 2 - s;
        if (chunk >= 0 && chunk < chunks)
          write(p, sh, 1 - h, sh.slope[chunk & 3] + h * kHalf, sh.exponent[chunk & 3],
                change_in(elapsed + static_cast<uint32_t>(chunk * kInterval)) - h * kHalf, origin,
                chunk * kInterval + h * kHalf, j);
        __syncthreads();
      }
    return;
  }

  if (warp >= 6) {  // prepare; loads are on their way since the last meeting
    const int j = thread - 192;
    Loaded loaded;
    loaded.load(p, origin, (chunks - 1) * kInterval, j);
    for (int s = 0; s < chunks + 3; ++s)
      for (int h = 0; h < 2; ++h) {
        const int chunk = chunks - 1 - s, t0 = chunk * kInterval + h * kHalf;
        if (chunk >= 0)
          prepare<kDithered>(loaded, p.scale, p.inverse, sh.tokens[chunk % 3] + h * kHalf,
                             sh.slope[chunk & 3] + h * kHalf, elapsed + static_cast<uint32_t>(t0),
                             head, j);
        const int next = h == 0 ? t0 + kHalf : t0 - kInterval - kHalf;
        if (next >= 0) loaded.load(p, origin, next, j);
        __syncthreads();
      }
    return;
  }

  if (warp >= 4) {  // rerun
    const int i = thread - 128;
    Row row;
    __half u{};
    int exponent[2] = {};  // ahead of and behind the change
    for (int s = 0; s < chunks + 3; ++s)
      for (int h = 0; h < 2; ++h) {
        const int chunk = chunks - s;
        if (chunk >= 0 && chunk < chunks) {
          Token* const x = sh.tokens[chunk % 3];
          if (h == 0) {
#pragma unroll
            for (int e = 0; e < 2; ++e) exponent[e] = saved_exponent[(chunk + e) * kN + i];
#pragma unroll
            for (int q = 0; q < kPacks; ++q)
              *reinterpret_cast<Pack*>(&row.s[4 * q]) =
                  load_pack(saved + static_cast<int64_t>(chunk) * kStatePacks + q * kN + i);
            u = dot(row, x[0].a);
#pragma unroll
            for (int e = 0; e < 2; ++e)
              sh.exponent[chunk & 3][e][i] = static_cast<int8_t>(exponent[e]);
          }
          // Mostly nothing is to be done, for all rows of the warp.
          int change = kInterval;
          if (__any_sync(0xffffffffu, (exponent[0] | exponent[1]) != 0)) {
            change = change_in(elapsed + static_cast<uint32_t>(chunk * kInterval));
            for (int t = h * kHalf; t < h * kHalf + kHalf; ++t) {
              const int e = t > change ? exponent[1] : exponent[0];
              x[t].v[i] = row_value(x[t].v[i], power_of_two(-e));
              x[t].dy[i] *= power_of_two(e);
            }
          }
          if (lane == 0) sh.change[chunk & 3][warp - 4] = change;
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
            if (t == change && t + 1 < kInterval) {
              scale_row(row, exponent[0] - exponent[1]);
              u = dot(row, x[t + 1].a);
            }
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
    const float up = p.inverse * power_of_two(saved_exponent[chunks * kN + row0 + i]);
    const float4 x = p.ds_out == nullptr
                         ? float4{0.0f, 0.0f, 0.0f, 0.0f}
                         : scaled(load4(p.ds_out + state + (row0 + i) * kN + 4 * c), up);
    lambda.x[i][0] = x.x;
    lambda.x[i][1] = x.y;
    lambda.x[i][2] = x.z;
    lambda.x[i][3] = x.w;
    const uint4* last = saved + static_cast<int64_t>(chunks) * kStatePacks;
    unpack(load_quad(reinterpret_cast<const Quad*>(last + c / 2 * kN + row0 + i) + c % 2),
           after.x[i]);
  }
  for (int s = 0; s < chunks + 3; ++s)
    for (int h = 0; h < 2; ++h) {
      const int chunk = chunks + 1 - s, half = 1 - h;  // its second half first
      const int last = min(kHalf, p.tokens - chunk * kInterval - half * kHalf) - 1;
      if (chunk >= 0 && chunk < chunks && last >= 0) {
        const Token* const tokens = sh.tokens[chunk % 3] + half * kHalf;
        const auto* const states = sh.states[chunk & 1] + half * kHalf;
        Operands x;
        x.load(tokens[last], states[last], row0, c);
        // The change, if one of these tokens has it behind it, lies between two runs of the loop.
        const int* const change = sh.change[chunk & 3];
        const int stop = min(change[0], change[1]) - half * kHalf;
#pragma unroll 1
        for (int t = last; t >= 0;) {
          if (t == stop) cross(lambda, after, sh.exponent[chunk & 3], row0);
          const int end = stop < t ? stop + 1 : 0;
#pragma unroll 1
          for (; t >= max(end, 0); --t) {
            const int before = max(t - 1, 0);
            Operands next;
            back(lambda, after, x, &sh.sums[h][t][warp][0][0], sh.dv[h][t], sh.e[t & 1][warp], row0,
                 g, c, [&] { next.load(tokens[before], states[before], row0, c); });
            x = next;
          }
        }
      }
      __syncthreads();
    }
  if (p.ds0 == nullptr) return;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const float down = p.scale * power_of_two(-saved_exponent[row0 + i]);
#pragma unroll
    for (int n = 0; n < 4; ++n)
      put_gradient(p.ds0, state + (row0 + i) * kN + 4 * c + n, lambda.x[i][n] * down, p.add >> 6);
  }
}

template <class T, bool kDithered>
cudaError_t launch(const Wkv7Shape& s, const Wkv7Fp16Kind& kind, const Wkv7Backward& io,
                   cudaStream_t stream) {
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
  p.exponents = saved_exponents(const_cast<void*>(io.saved), s);
  p.counters = saved_counters(const_cast<void*>(io.saved), s);
  p.scale = kind.state_scale;
  p.inverse = 1 / kind.state_scale;
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
    return kind.dithered ? fp16::launch<float, true>(s, kind, io, stream)
                         : fp16::launch<float, false>(s, kind, io, stream);
  return kind.dithered ? fp16::launch<__nv_bfloat16, true>(s, kind, io, stream)
                       : fp16::launch<__nv_bfloat16, false>(s, kind, io, stream);
}

}  // namespace rwkv::cuda
