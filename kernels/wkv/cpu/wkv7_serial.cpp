// WKV-7 token by token: "wkv7.cpu.serial.f32".
//
// Work split: one (sequence, head) per worker item. Forward: the state is kept transposed, [key j]
// [value i], so that vectors run over value rows and no sum crosses lanes; one pass over the state
// per token decays it, adds both outer products, reads out y and already forms u of the next token:
// 5 N^2 multiply-adds per token, which is what limits it (the state of N = 64 is 16 KiB, in L1).
// Saved: the state ahead of every 16 tokens, and u of every token.
//
// Backward: rows of the state never interact except in sums over rows, so 8 rows at a time are run
// forward again over the 16 tokens from the checkpoint (32 KiB of history at N = 64) and then
// backward, vectors over key columns j. Only dv and e = dL/du are sums across lanes; 8 rows give 16
// of them, which are reduced together. 13 N^2 multiply-adds per token.
//
// Formulas: spec rwkv7 2.3, 3.4. There is no back-stepping (3.5): it loses digits at the decay
// floor.
#include "kernels/wkv/cpu/wkv7_serial.h"

#include "kernels/wkv/cpu/wkv7_common.h"

namespace rwkv::cpu {
namespace {

constexpr int kEvery = 16;  // tokens between two saved states
constexpr int kRows = 8;    // rows that the backward handles together

int64_t segments(int64_t tokens) {
  return (tokens + kEvery - 1) / kEvery;
}

template <int N>
struct Serial {
  static constexpr int kCols = N < kPanel * kLanes ? N : kPanel * kLanes;  // value rows per block
  static constexpr int kVecs = kCols / kLanes;
  static constexpr int kBlocks = N / kCols;
  static constexpr size_t kForwardFloats = N * N + kEvery * N + N;
  static constexpr size_t kBackwardFloats = 2 * N * N + (kEvery + 1) * kRows * N + 8 * kEvery * N;

  static size_t saved_per_head(int64_t tokens) {
    return static_cast<size_t>(segments(tokens) * N * N + tokens * N);
  }

  // Where element (j, i) of the transposed state lives: blocks of kCols value rows.
  static int64_t at(int j, int i) { return (i / kCols) * N * kCols + j * kCols + i % kCols; }

  // Transposed block state <-> row-major (value, key) state.
  static void import_state(const float* s, float* st) {
    for (int q = 0; q < kBlocks; ++q)
      transpose<kCols, N>(s + q * kCols * N, N, st + q * N * kCols, kCols);
  }
  static void export_state(const float* st, float* s) {
    for (int q = 0; q < kBlocks; ++q)
      transpose<N, kCols>(st + q * N * kCols, kCols, s + q * kCols * N, N);
  }

  static void decays(const float* w, int64_t stride, int n, float* decay) {
    for (int t = 0; t < n; ++t) {
      for (int j = 0; j < N; j += kLanes) {
        Vec s, rest;
        vsigmoid(load(w + t * stride + j), s, rest);
        store(decay + t * N + j, vexp(-kDecayScale * s));
      }
    }
  }

  // One token for one block of value rows. `u` holds S a of this token and leaves as S a_next.
  static RWKV_INLINE void token(float* __restrict st, const float* __restrict decay,
                                const float* __restrict r, const float* __restrict k,
                                const float* __restrict b, const float* __restrict a_next,
                                const float* v_in, float* u_io, float* y_out) {
    Vec u[kVecs], v[kVecs], y[kVecs], u_next[kVecs];
    for (int q = 0; q < kVecs; ++q) {
      u[q] = load(u_io + q * kLanes);
      v[q] = load(v_in + q * kLanes);
      y[q] = u_next[q] = Vec{};
    }
    for (int j = 0; j < N; ++j) {
      const Vec dj = splat(decay[j]), kj = splat(k[j]), bj = splat(b[j]), rj = splat(r[j]),
                aj = splat(a_next[j]);
      for (int q = 0; q < kVecs; ++q) {
        float* cell = st + j * kCols + q * kLanes;
        const Vec s = load(cell) * dj + u[q] * bj + v[q] * kj;
        store(cell, s);
        y[q] += s * rj;
        u_next[q] += s * aj;
      }
    }
    for (int q = 0; q < kVecs; ++q) {
      store(u_io + q * kLanes, u_next[q]);
      store(y_out + q * kLanes, y[q]);
    }
  }

  static void forward(const Wkv7Call& c, int64_t head, float* scratch) {
    float* st = scratch;
    float* decay = st + N * N;
    float* u = decay + kEvery * N;
    const int64_t o = c.origin(head);
    float* states = nullptr;
    float* saved_u = nullptr;
    if (c.saved != nullptr) {
      states = c.saved + head * static_cast<int64_t>(saved_per_head(c.tokens));
      saved_u = states + segments(c.tokens) * N * N;
    }
    std::fill(u, u + N, 0.0f);
    if (c.s0 != nullptr) {
      import_state(c.s0 + head * N * N, st);
      for (int j = 0; j < N; ++j) {
        const Vec aj = splat(c.a[o + j]);
        for (int i = 0; i < N; i += kLanes) store(u + i, load(u + i) + load(st + at(j, i)) * aj);
      }
    } else {
      std::fill(st, st + N * N, 0.0f);
    }
    for (int64_t t0 = 0; t0 < c.tokens; t0 += kEvery) {
      const int n = static_cast<int>(std::min<int64_t>(kEvery, c.tokens - t0));
      const int64_t x0 = o + t0 * c.stride;
      if (states != nullptr) std::copy(st, st + N * N, states + t0 / kEvery * N * N);
      decays(c.w + x0, c.stride, n, decay);
      for (int q = 0; q < kBlocks; ++q) {
        for (int t = 0; t < n; ++t) {
          const int64_t x = x0 + t * c.stride;
          // After the last token u of the next one is formed from its own a and never used.
          const int64_t next = t0 + t + 1 < c.tokens ? x + c.stride : x;
          if (q == 0 && t0 + t + kEvery < c.tokens) {
            for (const float* p : {c.r, c.w, c.k, c.v, c.a, c.b})
              prefetch_row<N>(p + x + kEvery * c.stride);
          }
          if (saved_u != nullptr)
            std::copy(u + q * kCols, u + (q + 1) * kCols, saved_u + (t0 + t) * N + q * kCols);
          token(st + q * N * kCols, decay + t * N, c.r + x, c.k + x, c.b + x, c.a + next,
                c.v + x + q * kCols, u + q * kCols, c.y + x + q * kCols);
        }
      }
    }
    if (c.s_out != nullptr) export_state(st, c.s_out + head * N * N);
  }

  // --- backward ---------------------------------------------------------------------------------

  struct Tiles {  // (kEvery, N) each; dr .. db are sums over the row blocks
    float *decay, *logit_factor, *dr, *dw, *dk, *dv, *da, *db;
  };
  struct Rows {  // token rows of this head and segment
    const float *r, *k, *v, *a, *b, *dy, *u;
    int64_t stride;
  };

  // Runs kRows rows forward over n tokens from hist[0], keeping every state; sums dr on the way.
  static void rerun(const Rows& x, const Tiles& z, int i0, int n, float* hist) {
    for (int t = 0; t < n; ++t) {
      const int64_t o = t * x.stride;
      const float *u = x.u + t * N + i0, *v = x.v + o + i0, *dy = x.dy + o + i0;
      const float* from = hist + t * kRows * N;
      float* to = hist + (t + 1) * kRows * N;
      for (int j = 0; j < N; j += 2 * kLanes) {
        Vec w[2], k[2], b[2], dr[2];
        for (int q = 0; q < 2; ++q) {
          w[q] = load(z.decay + t * N + j + q * kLanes);
          k[q] = load(x.k + o + j + q * kLanes);
          b[q] = load(x.b + o + j + q * kLanes);
          dr[q] = load(z.dr + t * N + j + q * kLanes);
        }
        for (int i = 0; i < kRows; ++i) {
          const Vec ui = splat(u[i]), vi = splat(v[i]), dyi = splat(dy[i]);
          for (int q = 0; q < 2; ++q) {
            const int at_ij = i * N + j + q * kLanes;
            const Vec s = load(from + at_ij) * w[q] + ui * b[q] + vi * k[q];
            store(to + at_ij, s);
            dr[q] += s * dyi;
          }
        }
        for (int q = 0; q < 2; ++q) store(z.dr + t * N + j + q * kLanes, dr[q]);
      }
    }
  }

  // One token backward for kRows rows of lambda (N floats each).
  static RWKV_INLINE void token_backward(const Rows& x, const Tiles& z, int i0, int t,
                                         const float* __restrict s_prev, float* __restrict lambda) {
    const int64_t o = t * x.stride;
    const float *u = x.u + t * N + i0, *v = x.v + o + i0, *dy = x.dy + o + i0;
    // lambda += dy r^T; dv = lambda k; e = lambda b
    Vec part[2 * kRows];
    for (int i = 0; i < kRows; ++i) {
      const Vec dyi = splat(dy[i]);
      Vec dot_k{}, dot_b{};
      for (int j = 0; j < N; j += kLanes) {
        const Vec l = load(lambda + i * N + j) + dyi * load(x.r + o + j);
        store(lambda + i * N + j, l);
        dot_k += l * load(x.k + o + j);
        dot_b += l * load(x.b + o + j);
      }
      part[i] = dot_k;
      part[kRows + i] = dot_b;
    }
    alignas(64) float sums[2 * kRows];
    for (int g = 0; g < 2 * kRows; g += kLanes) store(sums + g, sum_lanes(part + g));
    std::copy(sums, sums + kRows, z.dv + t * N + i0);
    const float* e = sums + kRows;

    for (int j = 0; j < N; j += 2 * kLanes) {
      Vec w[2], a[2], dw[2], dk[2], da[2], db[2];
      for (int q = 0; q < 2; ++q) {
        const int at_j = t * N + j + q * kLanes;
        w[q] = load(z.decay + at_j);
        a[q] = load(x.a + o + j + q * kLanes);
        dw[q] = load(z.dw + at_j);
        dk[q] = load(z.dk + at_j);
        da[q] = load(z.da + at_j);
        db[q] = load(z.db + at_j);
      }
      for (int i = 0; i < kRows; ++i) {
        const Vec vi = splat(v[i]), ui = splat(u[i]), ei = splat(e[i]);
        for (int q = 0; q < 2; ++q) {
          const int at_ij = i * N + j + q * kLanes;
          const Vec l = load(lambda + at_ij), s = load(s_prev + at_ij);
          dk[q] += l * vi;
          db[q] += l * ui;
          dw[q] += l * s;
          da[q] += s * ei;
          store(lambda + at_ij, l * w[q] + ei * a[q]);
        }
      }
      for (int q = 0; q < 2; ++q) {
        const int at_j = t * N + j + q * kLanes;
        store(z.dw + at_j, dw[q]);
        store(z.dk + at_j, dk[q]);
        store(z.da + at_j, da[q]);
        store(z.db + at_j, db[q]);
      }
    }
  }

  static void backward(const Wkv7Call& c, int64_t head, float* scratch) {
    float* lambda = scratch;
    float* start = lambda + N * N;
    float* hist = start + N * N;
    float* tile = hist + (kEvery + 1) * kRows * N;
    Tiles z;
    float** const tiles[] = {&z.dr, &z.dw, &z.dk, &z.da, &z.db, &z.dv, &z.decay, &z.logit_factor};
    for (float** p : tiles) {
      *p = tile;
      tile += kEvery * N;
    }
    const int64_t o = c.origin(head);
    const float* states = c.saved + head * static_cast<int64_t>(saved_per_head(c.tokens));
    const float* saved_u = states + segments(c.tokens) * N * N;
    if (c.ds_out != nullptr)
      std::copy(c.ds_out + head * N * N, c.ds_out + (head + 1) * N * N, lambda);
    else
      std::fill(lambda, lambda + N * N, 0.0f);

    for (int64_t seg = segments(c.tokens) - 1; seg >= 0; --seg) {
      const int64_t t0 = seg * kEvery, x0 = o + t0 * c.stride;
      const int n = static_cast<int>(std::min<int64_t>(kEvery, c.tokens - t0));
      const Rows x{c.r + x0, c.k + x0,  c.v + x0,         c.a + x0,
                   c.b + x0, c.dy + x0, saved_u + t0 * N, c.stride};
      for (int t = 0; t < n; ++t) {
        for (int j = 0; j < N; j += kLanes) {
          Vec s, rest;
          vsigmoid(load(c.w + x0 + t * c.stride + j), s, rest);
          const Vec decay = vexp(-kDecayScale * s);
          store(z.decay + t * N + j, decay);
          store(z.logit_factor + t * N + j, decay * -kDecayScale * s * rest);
        }
      }
      std::fill(z.dr, z.dr + 5 * kEvery * N, 0.0f);  // dr, dw, dk, da, db
      export_state(states + seg * N * N, start);
      for (int i0 = 0; i0 < N; i0 += kRows) {
        std::copy(start + i0 * N, start + (i0 + kRows) * N, hist);
        rerun(x, z, i0, n, hist);
        for (int t = n - 1; t >= 0; --t) {
          if (i0 == 0 && seg > 0) {
            for (const float* p : {c.r, c.w, c.k, c.v, c.a, c.b, c.dy})
              prefetch_row<N>(p + x0 + (t - kEvery) * c.stride);
          }
          token_backward(x, z, i0, t, hist + t * kRows * N, lambda + i0 * N);
        }
      }
      for (int i = 0; i < n * N; i += kLanes)
        store(z.dw + i, load(z.dw + i) * load(z.logit_factor + i));
      const float* const out[] = {z.dr, z.dw, z.dk, z.dv, z.da, z.db};
      for (size_t g = 0; g < 6; ++g) {
        if (c.mode[g] != Accum::kSkip) put_rows<N>(c.grad[g] + x0, c.stride, c.mode[g], out[g], n);
      }
    }
    if (c.mode[6] != Accum::kSkip) put_rows<N>(c.grad[6] + head * N * N, N, c.mode[6], lambda, N);
  }

  // --- one token --------------------------------------------------------------------------------

  // Row-major state, kLanes rows at a time; a group is read before it is written, so `to` may be
  // `from`.
  static void step(const Wkv7Call& c, int64_t head) {
    const int64_t o = c.origin(head);
    const float *from = c.s0 + head * N * N, *r = c.r + o, *k = c.k + o, *v = c.v + o, *a = c.a + o,
                *b = c.b + o;
    float* to = c.s_out + head * N * N;
    alignas(64) float decay[N];
    decays(c.w + o, 0, 1, decay);
    for (int i0 = 0; i0 < N; i0 += kLanes) {
      Vec part[kLanes];
      for (int i = 0; i < kLanes; ++i) {
        Vec dot{};
        for (int j = 0; j < N; j += kLanes) dot += load(from + (i0 + i) * N + j) * load(a + j);
        part[i] = dot;
      }
      alignas(64) float u[kLanes];
      store(u, sum_lanes(part));
      for (int i = 0; i < kLanes; ++i) {
        const Vec ui = splat(u[i]), vi = splat(v[i0 + i]);
        Vec dot{};
        for (int j = 0; j < N; j += kLanes) {
          const int64_t at_ij = (i0 + i) * N + j;
          const Vec s = load(from + at_ij) * load(decay + j) + ui * load(b + j) + vi * load(k + j);
          store(to + at_ij, s);
          dot += s * load(r + j);
        }
        part[i] = dot;
      }
      store(c.y + o + i0, sum_lanes(part));
    }
  }
};

void forward(Context& ctx, const OpCall& call) {
  const Wkv7Call c = unpack_forward(call);
  with_head_size(c.stride / c.heads, [&](auto n) {
    for_each_head(ctx, c.batch * c.heads, Serial<n()>::kForwardFloats,
                  [&](int64_t head, float* scratch) { Serial<n()>::forward(c, head, scratch); });
  });
}

void backward(Context& ctx, const OpCall& call) {
  const Wkv7Call c = unpack_backward(call);
  with_head_size(c.stride / c.heads, [&](auto n) {
    for_each_head(ctx, c.batch * c.heads, Serial<n()>::kBackwardFloats,
                  [&](int64_t head, float* scratch) { Serial<n()>::backward(c, head, scratch); });
  });
}

size_t saved_bytes(const WkvShape& s) {
  return with_head_size(s.head_size, [&](auto n) {
    return static_cast<size_t>(s.batch * s.heads) * Serial<n()>::saved_per_head(s.tokens) *
           sizeof(float);
  });
}

size_t workspace_bytes(const WkvShape& s) {
  return with_head_size(s.head_size,
                        [&](auto n) { return workers_bytes(s, Serial<n()>::kBackwardFloats); });
}

}  // namespace

void wkv7_step_f32(Context& ctx, const OpCall& call) {
  const Wkv7Call c = unpack_forward(call);
  if (c.tokens != 1 || c.s0 == nullptr) return forward(ctx, call);
  with_head_size(c.stride / c.heads, [&](auto n) {
    parallel_for(c.batch * c.heads, 1, [&](int64_t head, int64_t) { Serial<n()>::step(c, head); });
  });
}

constinit const WkvKernel kWkv7CpuSerial = {
    .name = "wkv7.cpu.serial.f32",
    .op = "wkv7",
    .family = "serial",
    .head_sizes = kCpuHeadSizes,
    .saved_bytes = saved_bytes,
    .workspace_bytes = workspace_bytes,
    .forward = forward,
    .backward = backward,
    .step = wkv7_step_f32,
    .note = "token by token; decode and short inputs",
};

}  // namespace rwkv::cpu
