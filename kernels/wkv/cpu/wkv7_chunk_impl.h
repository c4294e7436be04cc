#pragma once
/// Chunked WKV-7, included once per chunk length Q so that they compile side by side.
///
/// Work split: one (sequence, head) per worker item, chunks in order (reversed in the backward).
/// Everything is a product of small matrices in register tiles (tile.h); per token and head of size
/// N the forward does 4 N^2 multiply-adds with the state and about 7 Q N inside the chunk, the
/// backward, which recomputes U from the saved start state, 9 N^2 and about 20 Q N. Limit: fused
/// multiply-adds, then memory; operands sit in L1 and L2 (140 KiB at N = 64, Q = 16, backward).
///
/// All of the chunk's algebra is done in the frame of its first token: R~, A~ carry exp(c), B~, K~
/// carry exp(-c), with c the sum of log decays since the chunk began (spec 4.3: safe in fp32 up to
/// Q = 64), and L' = lambda_C diag(exp(c_C)). Then
///   U  = (I - A_ab)^-1 (A~ S0^T + A_ak V)       by forward substitution, never an inverse
///   Y  = R~ S0^T + A_rb U + A_rk V
///   S_C = (S0 + U^T B~ + V^T K~) diag(exp(c_C))
///   Z  = (I - A_ab)^-T (A_rb^T dY + B~ L'^T)    by backward substitution
///   dV = A_rk^T dY + A_ak^T Z + K~ L'^T
///   dR~ = dY S0 + dA_rb B~ + dA_rk K~           dB~ = U L' + dA_ab^T A~ + dA_rb^T R~
///   dA~ = Z  S0 + dA_ab B~ + dA_ak K~           dK~ = V L' + dA_ak^T A~ + dA_rk^T R~
///   lambda_0 = L' + dY^T R~ + Z^T A~
/// The gradient of log(decay) is the sum over everything that crosses token t. With r dr = R~ dR~
/// (the factors cancel) it is form (i) of spec 4.2, except that what comes from the state (S0, L')
/// is summed only over the tokens it crosses, so that those terms need not cancel:
///   dg_t = sum_i S0 L' + sum_{s<t} (B~ (U L') + K~ (V L'))_s
///        + sum_{s>=t} (R~ dR~ - B~ dB~_in - K~ dK~_in)_s + sum_{s>t} (A~ dA~)_s
/// where dB~_in, dK~_in are dB~, dK~ without their L' terms.

#include "kernels/wkv/cpu/tile.h"
#include "kernels/wkv/cpu/wkv7_chunk.h"
#include "kernels/wkv/cpu/wkv7_common.h"

namespace rwkv::cpu {
namespace {

template <int N, int Q>
struct Chunk {
  static constexpr int kVecs = N / kLanes < kPanel ? N / kLanes : kPanel;
  static constexpr int kCols = kVecs * kLanes;  // columns of one register tile
  static constexpr int kPairRows = kPanel == 4 ? 8 : 4;
  using Panel = Tile<kTileRows, kVecs>;
  using Pair = Tile<kPairRows, 2>;

  static constexpr size_t kState = size_t{N} * N, kRows = size_t{Q} * N, kProducts = 4 * Q * Q;
  static constexpr size_t kSavedPerChunk = kState;

  static int64_t chunks(int64_t tokens) { return (tokens + Q - 1) / Q; }
  static size_t saved_per_head(int64_t tokens) {
    return static_cast<size_t>(chunks(tokens)) * kSavedPerChunk;
  }

  // Pieces of scratch. Matrices whose size is a multiple of 4 KiB would all start in the same cache
  // set, so each is followed by a few lines of padding.
  struct Scratch {
    float* next;
    float* take(size_t n) {
      float* p = next;
      next += n + 48;
      return p;
    }
  };
  static constexpr size_t kForwardFloats = kState + 8 * kRows + kProducts + N + 16 * 48;
  static constexpr size_t kBackwardFloats =
      4 * kState + 16 * kRows + 2 * kProducts + 2 * N + 24 * 48;

  /// Memory of the next chunk, asked for a few rows at a time while this one is computed: rows of a
  /// head lie too far apart for hardware prefetchers, and many requests at once only queue up.
  class Prefetcher {
   public:
    /// `count` rows of N floats, to be read or to be written. Null is ignored.
    void add(const float* p, int64_t stride, int64_t count, bool write) {
      if (p != nullptr) streams_[size_++] = {p, stride, count, write};
    }
    RWKV_INLINE void rows(int64_t n) {
      for (; n > 0 && at_ < size_; --n) {
        const Stream& s = streams_[at_];
        const float* p = s.p + row_ * s.stride;
        for (int j = 0; j < N; j += 16) {
          if (s.write)
            __builtin_prefetch(p + j, 1, 2);
          else
            __builtin_prefetch(p + j, 0, 2);
        }
        if (++row_ == s.count) {
          row_ = 0;
          ++at_;
        }
      }
    }
    /// Between two register tiles.
    RWKV_INLINE void some() { rows(6); }

   private:
    struct Stream {
      const float* p;
      int64_t stride, count;
      bool write;
    };
    Stream streams_[14];
    int size_ = 0, at_ = 0;
    int64_t row_ = 0;
  };

  // (2Q, N) each: [R~; A~], [B~; K~], [U; V].
  struct Operands {
    float *ra, *bk, *uv;
  };
  // (Q, N) each, for the backward.
  struct Decays {
    float *grow, *shrink, *logit_factor;  // exp(-c), exp(c), d log(decay) / d logit
  };

  // R~, A~, B~, K~, V of n tokens, zero beyond; end[j] = exp(c_C).
  template <bool kBackward>
  static __attribute__((noinline)) void prepare(const Wkv7Call& c, int64_t x0, int n,
                                                const Operands& op, float* end, const Decays& dec) {
    alignas(64) float log_sum[N] = {};
    std::fill(end, end + N, 1.0f);
    for (int t = 0; t < n; ++t) {
      for (int j = 0; j < N; j += kLanes) {
        const int64_t x = x0 + t * c.stride + j;
        const int64_t at = t * N + j;
        Vec s, rest, shrink, grow;
        vsigmoid(load(c.w + x), s, rest);
        const Vec sum = load(log_sum + j) - kDecayScale * s;
        store(log_sum + j, sum);
        vexp_both(sum, shrink, grow);
        store(op.ra + at, load(c.r + x) * shrink);
        store(op.ra + kRows + at, load(c.a + x) * load(end + j));
        store(op.bk + at, load(c.b + x) * grow);
        store(op.bk + kRows + at, load(c.k + x) * grow);
        store(op.uv + kRows + at, load(c.v + x));
        store(end + j, shrink);
        if constexpr (kBackward) {
          store(dec.grow + at, grow);
          store(dec.shrink + at, shrink);
          store(dec.logit_factor + at, -kDecayScale * s * rest);
        }
      }
    }
    if (n == Q) return;
    for (float* p : {op.ra, op.ra + kRows, op.bk, op.bk + kRows, op.uv, op.uv + kRows})
      std::fill(p + n * N, p + kRows, 0.0f);
  }

  // One (Q, Q) quadrant pair: out rows of `left` (Q, N), columns [first Q | second Q] of right_t
  // (N, 2Q), zero where column > row - strict.
  static __attribute__((noinline)) void causal_products(Prefetcher& fetch, const float* left,
                                                        const float* right_t, int strict,
                                                        float* out) {
    for (int t = 0; t < Q; t += kPairRows) {
      for (int s = 0; s < Q; s += kLanes) {
        fetch.some();
        Pair tile;
        if (s < t + kPairRows) tile.template add<Q>(left + t * N, N, 1, right_t + s, 2 * Q, N);
        for (int m = 0; m < kPairRows; ++m) {
          const VecIndex keep = lane_index() + s <= t + m - strict;
          for (int half = 0; half < 2; ++half)
            store(out + (t + m) * 2 * Q + half * Q + s, keep ? tile.sum[m][half] : Vec{});
        }
      }
    }
  }
  static RWKV_INLINE VecIndex lane_index() {
    VecIndex x;
    for (int l = 0; l < kLanes; ++l) x[l] = l;
    return x;
  }

  // --- forward ----------------------------------------------------------------------------------

  // products: (2Q, 2Q), rows r then a, columns b then k. st: transposed start state [j][i].
  static __attribute__((noinline)) void solve_u(Prefetcher& fetch, const Operands& op,
                                                const float* products, const float* st) {
    const float* a_rows = products + Q * 2 * Q;
    for (int i = 0; i < N; i += kCols) {
      for (int t = 0; t < Q; t += kTileRows) {
        const float* row = a_rows + t * 2 * Q;
        fetch.some();
        Panel x;
        x.add(op.ra + kRows + t * N, N, 1, st + i, N, N);
        x.add(row + Q, 2 * Q, 1, op.uv + kRows + i, N, t + kTileRows - 1);
        x.add(row, 2 * Q, 1, op.uv + i, N, t);
        for (int m = 1; m < kTileRows; ++m)
          for (int p = 0; p < m; ++p)
            for (int q = 0; q < kVecs; ++q)
              x.sum[m][q] += splat(row[m * 2 * Q + t + p]) * x.sum[p][q];
        x.store_to(op.uv + t * N + i, N);
      }
    }
  }

  static __attribute__((noinline)) void read_out(Prefetcher& fetch, const Operands& op,
                                                 const float* products, const float* st, int n,
                                                 float* y, int64_t stride) {
    for (int i = 0; i < N; i += kCols) {
      for (int t = 0; t < n; t += kTileRows) {
        const float* row = products + t * 2 * Q;
        fetch.some();
        Panel x;
        x.add(op.ra + t * N, N, 1, st + i, N, N);
        x.add(row, 2 * Q, 1, op.uv + i, N, t + kTileRows);
        x.add(row + Q, 2 * Q, 1, op.uv + kRows + i, N, t + kTileRows);
        for (int m = 0; m < kTileRows && t + m < n; ++m)
          for (int q = 0; q < kVecs; ++q) store(y + (t + m) * stride + i + q * kLanes, x.sum[m][q]);
      }
    }
  }

  static __attribute__((noinline)) void advance(Prefetcher& fetch, const Operands& op,
                                                const float* end, float* st) {
    for (int j = 0; j < N; j += kTileRows) {
      for (int i = 0; i < N; i += kCols) {
        float* cell = st + j * N + i;
        fetch.some();
        Panel x;
        x.load_from(cell, N);
        x.add(op.bk + j, 1, N, op.uv + i, N, Q);
        x.add(op.bk + kRows + j, 1, N, op.uv + kRows + i, N, Q);
        for (int m = 0; m < kTileRows; ++m)
          for (int q = 0; q < kVecs; ++q)
            store(cell + m * N + q * kLanes, x.sum[m][q] * splat(end[j + m]));
      }
    }
  }

  static void forward(const Wkv7Call& c, int64_t head, float* memory) {
    Scratch scratch{memory};
    float* st = scratch.take(kState);
    const Operands op{scratch.take(2 * kRows), scratch.take(2 * kRows), scratch.take(2 * kRows)};
    float* bk_t = scratch.take(2 * kRows);
    float* products = scratch.take(kProducts);
    float* end = scratch.take(N);
    float* saved = c.saved == nullptr
                       ? nullptr
                       : c.saved + head * static_cast<int64_t>(saved_per_head(c.tokens));
    const int64_t o = c.origin(head);
    if (c.s0 != nullptr)
      transpose<N, N>(c.s0 + head * N * N, N, st, N);
    else
      std::fill(st, st + kState, 0.0f);
    for (int64_t t0 = 0; t0 < c.tokens; t0 += Q) {
      const int n = static_cast<int>(std::min<int64_t>(Q, c.tokens - t0));
      const int64_t x0 = o + t0 * c.stride;
      Prefetcher fetch;
      if (const int64_t left = std::min<int64_t>(Q, c.tokens - t0 - Q); left > 0) {
        for (const float* p : {c.r, c.w, c.k, c.v, c.a, c.b})
          fetch.add(p + x0 + Q * c.stride, c.stride, left, false);
        fetch.add(c.y + x0 + Q * c.stride, c.stride, left, true);
        if (saved != nullptr) fetch.add(saved + kSavedPerChunk, N, N, true);
      }
      prepare<false>(c, x0, n, op, end, {});
      transpose<2 * Q, N>(op.bk, N, bk_t, 2 * Q);
      causal_products(fetch, op.ra, bk_t, 0, products);
      causal_products(fetch, op.ra + kRows, bk_t, 1, products + Q * 2 * Q);
      solve_u(fetch, op, products, st);
      read_out(fetch, op, products, st, n, c.y + x0, c.stride);
      if (saved != nullptr) {
        std::copy(st, st + kState, saved);
        saved += kSavedPerChunk;
      }
      advance(fetch, op, end, st);
    }
    if (c.s_out != nullptr) transpose<N, N>(st, N, c.s_out + head * N * N, N);
  }

  // --- backward ---------------------------------------------------------------------------------

  // lambda <- L' = lambda diag(end), lambda_t its transpose, crossing <- sum_i S0 L'.
  static __attribute__((noinline)) void rescale(const float* end, const float* s0, float* lambda,
                                                float* lambda_t, float* crossing) {
    for (int j = 0; j < N; j += kLanes) {
      const Vec scale = load(end + j);
      Vec sum{};
      for (int i = 0; i < N; ++i) {
        const Vec l = load(lambda + i * N + j) * scale;
        store(lambda + i * N + j, l);
        sum += l * load(s0 + i * N + j);
      }
      store(crossing + j, sum);
    }
    transpose<N, N>(lambda, N, lambda_t, N);
  }

  // Z into yz[Q..], from the last rows to the first.
  static __attribute__((noinline)) void solve_z(Prefetcher& fetch, const Operands& op,
                                                const float* products, const float* lambda_t,
                                                float* yz) {
    const float* a_rows = products + Q * 2 * Q;
    for (int i = 0; i < N; i += kCols) {
      for (int t = Q - kTileRows; t >= 0; t -= kTileRows) {
        const int below = t + kTileRows;
        fetch.some();
        Panel x;
        x.add(op.bk + t * N, N, 1, lambda_t + i, N, N);
        x.add(products + t * 2 * Q + t, 1, 2 * Q, yz + t * N + i, N, Q - t);
        x.add(a_rows + below * 2 * Q + t, 1, 2 * Q, yz + kRows + below * N + i, N, Q - below);
        for (int m = kTileRows - 2; m >= 0; --m)
          for (int p = m + 1; p < kTileRows; ++p)
            for (int q = 0; q < kVecs; ++q)
              x.sum[m][q] += splat(a_rows[(t + p) * 2 * Q + t + m]) * x.sum[p][q];
        x.store_to(yz + kRows + t * N + i, N);
      }
    }
  }

  static __attribute__((noinline)) void value_gradient(Prefetcher& fetch, const Operands& op,
                                                       const float* products, const float* lambda_t,
                                                       const float* yz, int n, float* dv,
                                                       int64_t stride, Accum mode) {
    const float* a_rows = products + Q * 2 * Q;
    for (int i = 0; i < N; i += kCols) {
      for (int t = 0; t < n; t += kTileRows) {
        fetch.some();
        Panel x;
        x.add(op.bk + kRows + t * N, N, 1, lambda_t + i, N, N);
        x.add(products + t * 2 * Q + Q + t, 1, 2 * Q, yz + t * N + i, N, Q - t);
        x.add(a_rows + t * 2 * Q + Q + t, 1, 2 * Q, yz + kRows + t * N + i, N, Q - t);
        for (int m = 0; m < kTileRows && t + m < n; ++m)
          for (int q = 0; q < kVecs; ++q)
            put(dv + (t + m) * stride + i + q * kLanes, mode, x.sum[m][q]);
      }
    }
  }

  // Where gradients of one chunk go.
  struct Out {
    float* grad[7];  // at the head's first channel of the chunk's first token
    Accum mode[7];
    int64_t stride;
    int n;
    RWKV_INLINE void row(size_t which, int t, int j, Vec v) const {
      if (t < n) put(grad[which] + t * stride + j, mode[which], v);
    }
  };
  // (Q, N) each: what a token adds to dg of tokens <= itself, < itself, > itself.
  struct Shares {
    float *upto, *ahead, *after;
  };

  // dR~ and dA~ from products of gradients (2Q, 2Q): rows dY then Z, columns U then V.
  static __attribute__((noinline)) void left_gradients(Prefetcher& fetch, const Operands& op,
                                                       const float* dprod, const float* s0,
                                                       const float* yz, const Decays& dec,
                                                       const Shares& share, const Out& out) {
    for (int j = 0; j < N; j += kCols) {
      for (int t = 0; t < Q; t += kTileRows) {
        const float* row = dprod + t * 2 * Q;
        fetch.some();
        Panel x;
        x.add(yz + t * N, N, 1, s0 + j, N, N);
        x.add(row, 2 * Q, 1, op.bk + j, N, t + kTileRows);
        x.add(row + Q, 2 * Q, 1, op.bk + kRows + j, N, t + kTileRows);
        for (int m = 0; m < kTileRows; ++m) {
          for (int q = 0; q < kVecs; ++q) {
            const int at = (t + m) * N + j + q * kLanes;
            store(share.upto + at, x.sum[m][q] * load(op.ra + at));
            out.row(0, t + m, j + q * kLanes, x.sum[m][q] * load(dec.shrink + at));
          }
        }
      }
      for (int t = 0; t < Q; t += kTileRows) {
        const float* row = dprod + (Q + t) * 2 * Q;
        fetch.some();
        Panel x;
        x.add(yz + kRows + t * N, N, 1, s0 + j, N, N);
        x.add(row, 2 * Q, 1, op.bk + j, N, t + kTileRows - 1);
        x.add(row + Q, 2 * Q, 1, op.bk + kRows + j, N, t + kTileRows - 1);
        for (int m = 0; m < kTileRows; ++m) {
          for (int q = 0; q < kVecs; ++q) {
            const int at = (t + m) * N + j + q * kLanes;
            const Vec before = t + m == 0 ? splat(1.0f) : load(dec.shrink + at - N);
            store(share.ahead + at, x.sum[m][q] * load(op.ra + kRows + at));
            out.row(4, t + m, j + q * kLanes, x.sum[m][q] * before);
          }
        }
      }
    }
  }

  // dB~ (half 0) or dK~ (half 1).
  static __attribute__((noinline)) void right_gradients(Prefetcher& fetch, int half,
                                                        const Operands& op, const float* dprod,
                                                        const float* lambda, const Decays& dec,
                                                        const Shares& share, const Out& out) {
    const float* own = op.bk + half * static_cast<int64_t>(kRows);
    const size_t which = half == 0 ? 5 : 2;
    for (int j = 0; j < N; j += kCols) {
      for (int s = 0; s < Q; s += kTileRows) {
        fetch.some();
        Panel far, near;
        far.add(op.uv + half * static_cast<int64_t>(kRows) + s * N, N, 1, lambda + j, N, N);
        alignas(64) float keep[kTileRows * kCols];
        far.store_to(keep, kCols);
        const float* column = dprod + half * Q + s;
        near.add(column + s * 2 * Q, 1, 2 * Q, op.ra + s * N + j, N, Q - s);
        near.add(column + (Q + s) * 2 * Q, 1, 2 * Q, op.ra + kRows + s * N + j, N, Q - s);
        for (int m = 0; m < kTileRows; ++m) {
          for (int q = 0; q < kVecs; ++q) {
            const int at = (s + m) * N + j + q * kLanes;
            const Vec x = load(own + at), state_part = load(keep + m * kCols + q * kLanes);
            const Vec crossed = x * state_part;
            store(share.after + at, half == 0 ? crossed : load(share.after + at) + crossed);
            store(share.upto + at, load(share.upto + at) - x * near.sum[m][q]);
            out.row(which, s + m, j + q * kLanes,
                    (near.sum[m][q] + state_part) * load(dec.grow + at));
          }
        }
      }
    }
  }

  // Without a state in front of it a first token has nothing to decay: `from_zero` gives it an
  // exact 0.
  static __attribute__((noinline)) void logit_gradient(const float* crossing, const Decays& dec,
                                                       const Shares& share, bool from_zero,
                                                       const Out& out) {
    for (int j = 0; j < N; j += kLanes) {
      Vec sum{};
      for (int t = Q - 1; t >= 0; --t) {  // what later tokens take from states up to t
        float* upto = share.upto + t * N + j;
        sum += load(upto);
        store(upto, sum);
        sum += load(share.ahead + t * N + j);
      }
      sum = load(crossing + j);
      for (int t = 0; t < out.n; ++t) {
        const int at = t * N + j;
        const Vec g = from_zero && t == 0 ? Vec{} : load(share.upto + at) + sum;
        out.row(1, t, j, g * load(dec.logit_factor + at));
        sum += load(share.after + at);
      }
    }
  }

  static __attribute__((noinline)) void step_lambda(Prefetcher& fetch, const Operands& op,
                                                    const float* yz, float* lambda) {
    for (int i = 0; i < N; i += kTileRows) {
      for (int j = 0; j < N; j += kCols) {
        fetch.some();
        Panel x;
        x.load_from(lambda + i * N + j, N);
        x.add(yz + i, 1, N, op.ra + j, N, 2 * Q);
        x.store_to(lambda + i * N + j, N);
      }
    }
  }

  static void backward(const Wkv7Call& c, int64_t head, float* memory) {
    Scratch scratch{memory};
    float* lambda = scratch.take(kState);
    float* lambda_t = scratch.take(kState);
    float* s0 = scratch.take(kState);
    const Operands op{scratch.take(2 * kRows), scratch.take(2 * kRows), scratch.take(2 * kRows)};
    float* bk_t = scratch.take(2 * kRows);
    float* uv_t = bk_t;  // once the products are there, B~ and K~ are not needed transposed
    float* yz = scratch.take(2 * kRows);
    const Decays dec{scratch.take(kRows), scratch.take(kRows), scratch.take(kRows)};
    const Shares share{scratch.take(kRows), scratch.take(kRows), scratch.take(kRows)};
    float* products = scratch.take(kProducts);
    float* dprod = scratch.take(kProducts);
    float* end = scratch.take(N);
    float* crossing = scratch.take(N);

    if (c.ds_out != nullptr)
      std::copy(c.ds_out + head * N * N, c.ds_out + (head + 1) * N * N, lambda);
    else
      std::fill(lambda, lambda + kState, 0.0f);
    const float* saved_head = c.saved + head * static_cast<int64_t>(saved_per_head(c.tokens));
    for (int64_t chunk = chunks(c.tokens) - 1; chunk >= 0; --chunk) {
      const int64_t t0 = chunk * Q, x0 = c.origin(head) + t0 * c.stride;
      const int n = static_cast<int>(std::min<int64_t>(Q, c.tokens - t0));
      const float* saved = saved_head + chunk * static_cast<int64_t>(kSavedPerChunk);
      Out out{{}, {}, c.stride, n};
      for (size_t g = 0; g < 6; ++g) {
        out.mode[g] = c.mode[g];
        out.grad[g] = c.grad[g] == nullptr ? nullptr : c.grad[g] + x0;
      }

      Prefetcher fetch;
      if (chunk > 0) {  // the chunk that comes next is the one before this
        for (const float* p : {c.r, c.w, c.k, c.v, c.a, c.b, c.dy})
          fetch.add(p + x0 - Q * c.stride, c.stride, Q, false);
        fetch.add(saved - kSavedPerChunk, N, N, false);
        for (const float* p : out.grad)
          if (p != nullptr) fetch.add(p - Q * c.stride, c.stride, Q, true);
      }
      prepare<true>(c, x0, n, op, end, dec);
      transpose<2 * Q, N>(op.bk, N, bk_t, 2 * Q);
      causal_products(fetch, op.ra, bk_t, 0, products);
      causal_products(fetch, op.ra + kRows, bk_t, 1, products + Q * 2 * Q);
      solve_u(fetch, op, products, saved);
      for (int t = 0; t < n; ++t)
        std::copy(c.dy + x0 + t * c.stride, c.dy + x0 + t * c.stride + N, yz + t * N);
      std::fill(yz + n * N, yz + kRows, 0.0f);
      transpose<2 * Q, N>(op.uv, N, uv_t, 2 * Q);
      transpose<N, N>(saved, N, s0, N);

      rescale(end, s0, lambda, lambda_t, crossing);
      solve_z(fetch, op, products, lambda_t, yz);
      if (c.mode[3] != Accum::kSkip)
        value_gradient(fetch, op, products, lambda_t, yz, n, out.grad[3], c.stride, c.mode[3]);
      causal_products(fetch, yz, uv_t, 0, dprod);
      causal_products(fetch, yz + kRows, uv_t, 1, dprod + Q * 2 * Q);
      left_gradients(fetch, op, dprod, s0, yz, dec, share, out);
      right_gradients(fetch, 0, op, dprod, lambda, dec, share, out);
      right_gradients(fetch, 1, op, dprod, lambda, dec, share, out);
      logit_gradient(crossing, dec, share, t0 == 0 && !c.has_state, out);
      step_lambda(fetch, op, yz, lambda);
    }
    if (c.mode[6] != Accum::kSkip) put_rows<N>(c.grad[6] + head * N * N, N, c.mode[6], lambda, N);
  }
};

template <int Q>
void chunk_forward(Context& ctx, const OpCall& call) {
  const Wkv7Call c = unpack_forward(call);
  with_head_size(c.stride / c.heads, [&](auto n) {
    for_each_head(ctx, c.batch * c.heads, Chunk<n(), Q>::kForwardFloats,
                  [&](int64_t head, float* memory) { Chunk<n(), Q>::forward(c, head, memory); });
  });
}

template <int Q>
void chunk_backward(Context& ctx, const OpCall& call) {
  const Wkv7Call c = unpack_backward(call);
  with_head_size(c.stride / c.heads, [&](auto n) {
    for_each_head(ctx, c.batch * c.heads, Chunk<n(), Q>::kBackwardFloats,
                  [&](int64_t head, float* memory) { Chunk<n(), Q>::backward(c, head, memory); });
  });
}

template <int Q>
size_t chunk_saved_bytes(const WkvShape& s) {
  return with_head_size(s.head_size, [&](auto n) {
    return static_cast<size_t>(s.batch * s.heads) * Chunk<n(), Q>::saved_per_head(s.tokens) *
           sizeof(float);
  });
}

template <int Q>
size_t chunk_workspace_bytes(const WkvShape& s) {
  return with_head_size(s.head_size,
                        [&](auto n) { return workers_bytes(s, Chunk<n(), Q>::kBackwardFloats); });
}

template <int Q>
constexpr WkvKernel chunk_kernel(std::string_view name, std::string_view note) {
  return {.name = name,
          .op = "wkv7",
          .family = "chunk",
          .head_sizes = kCpuHeadSizes,
          .saved_bytes = chunk_saved_bytes<Q>,
          .workspace_bytes = chunk_workspace_bytes<Q>,
          .forward = chunk_forward<Q>,
          .backward = chunk_backward<Q>,
          .step = wkv7_step_f32,
          .note = note};
}

}  // namespace
}  // namespace rwkv::cpu
