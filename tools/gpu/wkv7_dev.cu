/// Checks and times the CUDA WKV-7 kernels without the rest of the project.
///   wkv7_dev check            every variant against the double reference on many shapes
///   wkv7_dev time [B T H G [N [serial]]]
///                             medians over the target shapes, or one shape (G segments, 0 =
///                             chosen)
///   wkv7_dev once B T H G [N] a forward and backward, for profilers and compute-sanitizer
/// Build: nvcc -std=c++20 -O3 -gencode=arch=compute_90a,code=sm_90a -I. tools/gpu/wkv7_dev.cu
///        kernels/wkv/cuda/*.cu -o wkv7_dev

#include <cuda_bf16.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "kernels/ref/wkv7_ref.h"
#include "kernels/wkv/cuda/wkv7_cuda.h"

namespace {

using namespace rwkv::cuda;
using std::vector;

void require(cudaError_t e, const char* what) {
  if (e == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(e));
  std::exit(4);
}

template <class T>
struct Buffer {
  T* data = nullptr;
  size_t size = 0;
  explicit Buffer(size_t n) : size(n) {
    require(cudaMalloc(&data, std::max<size_t>(n, 1) * sizeof(T)), "cudaMalloc");
    require(cudaMemset(data, 0xff, n * sizeof(T)), "poison");
  }
  Buffer(const Buffer&) = delete;
  ~Buffer() { cudaFree(data); }
  void put(const vector<T>& x) {
    require(cudaMemcpy(data, x.data(), x.size() * sizeof(T), cudaMemcpyHostToDevice), "copy in");
  }
  vector<T> get() const {
    vector<T> x(size);
    require(cudaMemcpy(x.data(), data, size * sizeof(T), cudaMemcpyDeviceToHost), "copy out");
    return x;
  }
};

enum class Kind { kPeers, kFloor, kSameKey, kZeroKey, kNearOne };

struct Problem {
  int B, T, H;
  bool state;
  Kind kind = Kind::kPeers;
  int N = 64;  // head size
};

// r, w, k, v, a, b, dy in bf16-exact floats; s0, ds_out.
struct Host {
  vector<float> x[7], s0, ds_out;
};

float round_bf16(double x) {
  return __bfloat162float(__float2bfloat16(static_cast<float>(x)));
}

Host make_inputs(const Problem& p, unsigned seed) {
  const int kN = p.N;
  std::mt19937_64 engine(seed);
  std::normal_distribution<double> normal;
  const size_t rows = static_cast<size_t>(p.B) * p.T * p.H;
  Host h;
  for (auto& x : h.x) x.resize(rows * kN);
  vector<double> z(kN);
  for (size_t row = 0; row < rows; ++row) {
    const size_t t = row / p.H % p.T, o = row * kN;
    if (p.kind != Kind::kSameKey || t == 0) {
      double norm = 0;
      for (double& e : z) {
        e = normal(engine);
        norm += e * e;
      }
      for (double& e : z) e /= std::sqrt(norm);
    }
    const bool zero = p.kind == Kind::kZeroKey && (t % 8 == 0 || t + 1 == static_cast<size_t>(p.T));
    for (size_t j = 0; j < kN; ++j) {
      double rate = 1 / (1 + std::exp(-normal(engine))), w = 1.5 * normal(engine) - 2;
      if (p.kind == Kind::kFloor) w = 20;
      if (p.kind == Kind::kNearOne) w = -13 + 0.5 * normal(engine);
      if (p.kind == Kind::kSameKey) rate = 0.98, w = -7;
      h.x[0][o + j] = round_bf16(normal(engine));
      h.x[1][o + j] = round_bf16(w);
      h.x[2][o + j] = zero ? 0 : round_bf16(0.7 * normal(engine));
      h.x[3][o + j] = round_bf16(normal(engine));
      h.x[4][o + j] = zero ? 0 : round_bf16(-z[j]);
      h.x[5][o + j] = zero ? 0 : round_bf16(z[j] * rate);
      h.x[6][o + j] = round_bf16(normal(engine));
    }
  }
  if (p.state) {
    h.s0.resize(static_cast<size_t>(p.B) * p.H * kN * kN);
    h.ds_out.resize(h.s0.size());
    for (auto& e : h.s0) e = static_cast<float>(normal(engine));
    for (auto& e : h.ds_out) e = static_cast<float>(normal(engine));
  }
  return h;
}

template <class T>
vector<T> convert(const vector<float>& x) {
  vector<T> y(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    if constexpr (std::is_same_v<T, float>)
      y[i] = x[i];
    else
      y[i] = __float2bfloat16(x[i]);
  }
  return y;
}
template <class T>
vector<double> widen(const vector<T>& x) {
  vector<double> y(x.size());
  for (size_t i = 0; i < x.size(); ++i) y[i] = static_cast<double>(static_cast<float>(x[i]));
  return y;
}

const char* const kNames[] = {"y", "s_out", "dr", "dw", "dk", "dv", "da", "db", "ds0"};
using Results = vector<vector<double>>;  // in the order of kNames

// The reference, one host thread per head.
Results reference(const Problem& p, const Host& h, bool backward) {
  const int kN = p.N;
  const size_t vectors = h.x[0].size(), states = static_cast<size_t>(p.B) * p.H * kN * kN;
  Results out(9);
  for (size_t i = 0; i < 9; ++i) out[i].assign(i == 1 || i == 8 ? states : vectors, 0.0);
  const auto work = [&](int head) {
    const int b = head / p.H, hh = head % p.H;
    const auto each = [&](auto&& f) {
      for (int t = 0; t < p.T; ++t)
        for (int j = 0; j < kN; ++j)
          f(static_cast<size_t>(((b * p.T + t) * p.H + hh) * kN + j),
            static_cast<size_t>(t * kN + j));
    };
    rwkv::ref::Wkv7Inputs<double> in;
    in.T = p.T;
    in.N = p.N;
    vector<double> dy, ds;
    vector<double>* to[] = {&in.r, &in.w_logit, &in.k, &in.v, &in.a, &in.b, &dy};
    for (size_t i = 0; i < 7; ++i) {
      to[i]->resize(static_cast<size_t>(p.T * kN));
      each([&](size_t from, size_t at) { (*to[i])[at] = h.x[i][from]; });
    }
    const size_t state = static_cast<size_t>(head) * kN * kN;
    if (p.state) {
      in.s0.assign(h.s0.begin() + state, h.s0.begin() + state + kN * kN);
      ds.assign(h.ds_out.begin() + state, h.ds_out.begin() + state + kN * kN);
    }
    const auto f = rwkv::ref::wkv7_forward(in);
    each([&](size_t at, size_t from) { out[0][at] = f.y[from]; });
    std::copy(f.s_out.begin(), f.s_out.end(), out[1].begin() + state);
    if (!backward) return;
    const auto g = rwkv::ref::wkv7_backward(in, dy, ds);
    const vector<double>* from[] = {&g.dr, &g.dw_logit, &g.dk, &g.dv, &g.da, &g.db};
    for (size_t i = 0; i < 6; ++i)
      each([&](size_t at, size_t f0) { out[2 + i][at] = (*from[i])[f0]; });
    std::copy(g.ds0.begin(), g.ds0.end(), out[8].begin() + state);
  };
  vector<std::thread> pool;
  for (int worker = 0; worker < 16; ++worker)
    pool.emplace_back([&, worker] {
      for (int head = worker; head < p.B * p.H; head += 16) work(head);
    });
  for (auto& t : pool) t.join();
  return out;
}

enum class Variant { kChunk, kSerial, kSerialF32 };

// Device side of one problem.
template <class T>
struct Runner {
  Variant variant;
  Wkv7Shape shape;
  bool state;
  vector<Buffer<T>*> in, out;  // r w k v a b dy; y dr dw dk dv da db
  Buffer<float> s0, ds_out, s_out, ds0;
  Buffer<char> saved, workspace;

  Runner(Variant v, const Problem& p, int segments)
      : variant(v),
        shape{p.B, p.T, p.H, p.N, segments},
        state(p.state),
        s0(states(p)),
        ds_out(states(p)),
        s_out(states(p)),
        ds0(states(p)),
        saved(v == Variant::kChunk ? wkv7_chunk_saved_bytes(shape)
                                   : wkv7_serial_saved_bytes(shape)),
        workspace(v == Variant::kChunk ? wkv7_chunk_workspace_bytes(shape) : 0) {
    const size_t n = static_cast<size_t>(p.B) * p.T * p.H * p.N;
    for (int i = 0; i < 7; ++i) in.push_back(new Buffer<T>(n));
    for (int i = 0; i < 7; ++i) out.push_back(new Buffer<T>(n));
  }
  ~Runner() {
    for (auto* b : in) delete b;
    for (auto* b : out) delete b;
  }
  static size_t states(const Problem& p) {
    return p.state ? static_cast<size_t>(p.B) * p.H * p.N * p.N : 0;
  }
  void put(const Host& h) {
    for (size_t i = 0; i < 7; ++i) in[i]->put(convert<T>(h.x[i]));
    if (state) s0.put(h.s0), ds_out.put(h.ds_out);
  }
  void forward(cudaStream_t s) {
    const Wkv7Forward io{in[0]->data,
                         in[1]->data,
                         in[2]->data,
                         in[3]->data,
                         in[4]->data,
                         in[5]->data,
                         state ? s0.data : nullptr,
                         out[0]->data,
                         state ? s_out.data : nullptr,
                         saved.data,
                         workspace.data};
    require(variant == Variant::kChunk
                ? wkv7_chunk_forward(shape, io, s)
                : wkv7_serial_forward(shape, io, variant == Variant::kSerialF32, s),
            "forward");
  }
  void backward(cudaStream_t s, unsigned add = 0, unsigned skip = 0) {
    Wkv7Backward io{in[0]->data,
                    in[1]->data,
                    in[2]->data,
                    in[3]->data,
                    in[4]->data,
                    in[5]->data,
                    in[6]->data,
                    state,
                    state ? ds_out.data : nullptr,
                    out[1]->data,
                    out[2]->data,
                    out[3]->data,
                    out[4]->data,
                    out[5]->data,
                    out[6]->data,
                    state ? ds0.data : nullptr,
                    add,
                    saved.data,
                    workspace.data};
    void** const to[] = {&io.dr, &io.dw, &io.dk, &io.dv, &io.da, &io.db};
    for (int i = 0; i < 6; ++i)
      if ((skip >> i & 1) != 0) *to[i] = nullptr;
    if ((skip >> 6 & 1) != 0) io.ds0 = nullptr;
    require(variant == Variant::kChunk
                ? wkv7_chunk_backward(shape, io, s)
                : wkv7_serial_backward(shape, io, variant == Variant::kSerialF32, s),
            "backward");
  }
  Results results() const {
    Results x;
    x.push_back(widen(out[0]->get()));
    x.push_back(widen(s_out.get()));
    for (size_t i = 1; i < 7; ++i) x.push_back(widen(out[i]->get()));
    x.push_back(widen(ds0.get()));
    return x;
  }
};

double relative(const vector<double>& x, const vector<double>& ref) {
  double d = 0, n = 0;
  for (size_t i = 0; i < x.size(); ++i)
    d += (x[i] - ref[i]) * (x[i] - ref[i]), n += ref[i] * ref[i];
  return n == 0 ? std::sqrt(d) : std::sqrt(d / n);
}

template <class T>
bool compare(Variant variant, const char* name, const Problem& p, const Host& h, const Results& ref,
             int segments, bool backward, const double (&limit)[9]) {
  Runner<T> run(variant, p, segments);
  run.put(h);
  cudaStream_t stream;
  require(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
  run.forward(stream);
  if (backward) run.backward(stream);
  require(cudaStreamSynchronize(stream), "run");
  const Results got = run.results();
  run.forward(stream);
  if (backward) run.backward(stream);
  require(cudaStreamSynchronize(stream), "second run");
  const Results again = run.results();
  cudaStreamDestroy(stream);
  cudaStream_t stream2;
  require(cudaStreamCreateWithFlags(&stream2, cudaStreamNonBlocking), "stream");
  std::printf("%-10s N%d (%d,%d,%d) G%d%s kind %d:", name, p.N, p.B, p.T, p.H, segments,
              p.state ? " state" : "", static_cast<int>(p.kind));
  bool ok = true;
  for (size_t i = 0; i < 9; ++i) {
    if (!p.state && (i == 1 || i == 8)) continue;
    if (!backward && i > 1) continue;
    const double error = relative(got[i], ref[i]);
    const bool good = error <= limit[i];
    const bool same = got[i] == again[i];
    std::printf(" %s %.2e%s%s", kNames[i], error, good ? "" : " BAD", same ? "" : " VARIES");
    ok = ok && good && same;
  }
  if (backward) {
    // Gradient i is skipped, written or added to (to what the run before left, so it doubles).
    for (int shift = 0; shift < 3; ++shift) {
      unsigned add = 0, skip = 0;
      for (int i = 0; i < 7; ++i) {
        if ((i + shift) % 3 == 0) skip |= 1u << i;
        if ((i + shift) % 3 == 1) add |= 1u << i;
      }
      run.backward(stream2);
      run.backward(stream2, add, skip);
      require(cudaStreamSynchronize(stream2), "modes");
      const Results modes = run.results();
      for (size_t i = 2; i < 9; ++i) {
        vector<double> want = got[i];
        if ((add >> (i - 2) & 1) != 0)
          for (double& x : want) x *= 2;
        if (!(relative(modes[i], want) <= (sizeof(T) == 2 ? 3e-3 : 1e-6))) {
          std::printf(" %s MODE%d", kNames[i], shift);
          ok = false;
        }
      }
    }
  }
  cudaStreamDestroy(stream2);
  std::printf("\n");
  std::fflush(stdout);
  return ok;
}

template <class T>
bool check(Variant variant, const char* name, const Problem& p, int segments, bool backward,
           const double (&limit)[9]) {
  const Host h = make_inputs(p, 17u + static_cast<unsigned>(p.T));
  return compare<T>(variant, name, p, h, reference(p, h, backward), segments, backward, limit);
}

const double kGoldenLimits[9] = {.01, .01, .01, .03, .01, .01, .015, .015, .01};

// One case of wkv7_ops.h5 as wkv7_golden.py writes it.
bool check_golden(const char* path) {
  constexpr int kN = 64;
  std::FILE* file = std::fopen(path, "rb");
  if (file == nullptr) {
    std::fprintf(stderr, "cannot open %s\n", path);
    std::exit(3);
  }
  int size[4];
  const auto read = [&](void* to, size_t bytes) {
    if (std::fread(to, 1, bytes, file) != bytes) std::fprintf(stderr, "%s is short\n", path);
  };
  read(size, sizeof size);
  Problem p{size[0], size[1], size[2], size[3] != 0};
  if (std::strstr(path, "floor") != nullptr) p.kind = Kind::kFloor;
  const size_t vectors = static_cast<size_t>(p.B) * p.T * p.H * kN;
  const size_t states = static_cast<size_t>(p.B) * p.H * kN * kN;
  Host h;
  for (auto& x : h.x) x.resize(vectors), read(x.data(), 4 * vectors);
  if (p.state)
    for (auto* x : {&h.s0, &h.ds_out}) x->resize(states), read(x->data(), 4 * states);
  Results ref(9);
  for (size_t i = 0; i < 9; ++i) {
    const bool of_state = i == 1 || i == 8;
    ref[i].resize(of_state ? states : vectors);
    if (!of_state || p.state) read(ref[i].data(), 8 * ref[i].size());
  }
  std::fclose(file);
  std::printf("%s\n  ", path);
  return compare<__nv_bfloat16>(Variant::kChunk, "chunk", p, h, ref, 1, true, kGoldenLimits);
}

int run_checks() {
  //                         y    s_out   dr      dw    dk      dv    da    db    ds0
  const double peers[9] = {.0035, .01, .0035, .004, .0035, .0035, .005, .005, .01};
  const auto& golden = kGoldenLimits;
  const double serial16[9] = {.003, 5e-6, .003, .003, .003, .003, .003, .003, 1e-4};
  const double serial32[9] = {5e-6, 5e-6, 1e-4, 1e-4, 5e-6, 5e-6, 1e-4, 5e-6, 1e-4};
  const double stepping[9] = {.003, 5e-6, .006, .006, .003, .003, .006, .003, .006};
  bool ok = true;
  const auto chunk = [&](const Problem& p, int g, bool backward, const double(&limit)[9]) {
    ok &= check<__nv_bfloat16>(Variant::kChunk, "chunk", p, g, backward, limit);
  };
  chunk({1, 16, 1, false}, 1, true, peers);
  chunk({1, 32, 1, true}, 1, true, peers);
  for (int heads : {2, 12}) chunk({1, 128, heads, false}, 1, true, peers);
  chunk({1, 4096, 2, false}, 1, false, peers);
  for (int t : {1, 17, 63, 65, 200}) chunk({2, t, 3, true}, 1, true, peers);
  chunk({1, 200, 2, true}, 3, true, peers);
  chunk({1, 1000, 2, false}, 7, true, peers);
  chunk({4, 200, 16, true}, 3, true, peers);
  for (Kind kind : {Kind::kFloor, Kind::kSameKey, Kind::kZeroKey, Kind::kNearOne}) {
    chunk({1, 48, 1, true, kind}, 1, true, golden);
    chunk({1, 64, 2, false, kind}, 1, true, golden);
    chunk({2, 130, 2, true, kind}, 2, true, golden);
  }
  for (int n : {32, 128}) {
    for (int t : {1, 17, 63, 200})
      chunk({t == 1 ? 40 : 2, t, 3, true, Kind::kPeers, n}, 1, true, peers);
    chunk({1, 128, 12, false, Kind::kPeers, n}, 1, true, peers);
    chunk({1, 200, 2, true, Kind::kPeers, n}, 3, true, peers);
    chunk({1, 1000, 2, false, Kind::kPeers, n}, 7, true, peers);
    chunk({4, 200, 16, true, Kind::kPeers, n}, 3, true, peers);
    for (Kind kind : {Kind::kFloor, Kind::kSameKey, Kind::kZeroKey, Kind::kNearOne})
      chunk({2, 130, 2, true, kind, n}, 2, true, golden);
    for (int t : {1, 17, 65}) {
      const Problem p{2, t, 3, true, Kind::kPeers, n};
      ok &= check<__nv_bfloat16>(Variant::kSerial, "serial", p, 1, true, serial16);
      ok &= check<float>(Variant::kSerialF32, "serial32", p, 1, true, serial32);
    }
  }
  for (int t : {1, 17, 48, 65, 200}) {
    ok &= check<__nv_bfloat16>(Variant::kSerial, "serial", {2, t, 3, true}, 1, true, serial16);
    ok &= check<float>(Variant::kSerialF32, "serial32", {2, t, 3, true}, 1, true, serial32);
  }
  ok &= check<__nv_bfloat16>(Variant::kSerial, "serial", {1, 128, 12, false}, 1, true, serial16);
  for (Kind kind : {Kind::kFloor, Kind::kSameKey, Kind::kZeroKey, Kind::kNearOne})
    ok &=
        check<__nv_bfloat16>(Variant::kSerial, "serial", {1, 48, 2, true, kind}, 1, true, stepping);
  std::printf(ok ? "all good\n" : "FAILED\n");
  return ok ? 0 : 1;
}

__global__ void spin(long long cycles) {
  const long long begin = clock64();
  while (clock64() - begin < cycles) {
  }
}
__global__ void fill_random(__nv_bfloat16* x, size_t n, int what, unsigned seed) {
  for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < n;
       i += size_t{gridDim.x} * blockDim.x) {
    const auto draw = [&](unsigned salt) {  // a hash good enough for timing data
      unsigned long long z = i * 0x9e3779b97f4a7c15ull + seed * 0xbf58476d1ce4e5b9ull + salt;
      z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
      z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
      return static_cast<float>((z >> 40) + 1) / 16777217.0f;
    };
    const float normal = sqrtf(-2 * logf(draw(1))) * cospif(2 * draw(2));
    float value = normal;
    if (what == 1) value = 1.5f * normal - 2;
    if (what == 2) value = 0.7f * normal;
    if (what == 4) value = 0.125f * (draw(3) < 0.5f ? 1.0f : -1.0f);  // unit norm, b below matches
    if (what == 5) value = -0.125f * (draw(3) < 0.5f ? 1.0f : -1.0f) / (1 + expf(-normal));
    x[i] = __float2bfloat16(value);
  }
}

struct Timing {
  double forward, backward;
};

Timing measure(Runner<__nv_bfloat16>& run, int reps, char* flush, size_t flush_bytes) {
  cudaStream_t s;
  require(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking), "stream");
  cudaEvent_t e[4];
  for (auto& x : e) require(cudaEventCreate(&x), "event");
  vector<float> f, b;
  for (int i = 0; i < reps + 2; ++i) {
    if (flush != nullptr) require(cudaMemsetAsync(flush, i, flush_bytes, s), "flush");
    spin<<<1, 1, 0, s>>>(60000);
    require(cudaEventRecord(e[0], s), "record");
    run.forward(s);
    require(cudaEventRecord(e[1], s), "record");
    if (flush != nullptr) require(cudaMemsetAsync(flush, i, flush_bytes, s), "flush");
    spin<<<1, 1, 0, s>>>(60000);
    require(cudaEventRecord(e[2], s), "record");
    run.backward(s);
    require(cudaEventRecord(e[3], s), "record");
    require(cudaStreamSynchronize(s), "run");
    float ms;
    cudaEventElapsedTime(&ms, e[0], e[1]);
    if (i >= 2) f.push_back(ms);
    cudaEventElapsedTime(&ms, e[2], e[3]);
    if (i >= 2) b.push_back(ms);
  }
  for (auto& x : e) cudaEventDestroy(x);
  cudaStreamDestroy(s);
  std::sort(f.begin(), f.end());
  std::sort(b.begin(), b.end());
  return {f[f.size() / 2], b[b.size() / 2]};
}

struct Target {
  int B, T, H;
  double floor, goal;
};

void time_one(const Target& t, int segments, int multiprocessors, char* flush, size_t bytes,
              int head_size = 64, Variant variant = Variant::kChunk) {
  Problem p{t.B, t.T, t.H, false};
  p.N = head_size;
  if (segments == 0) segments = wkv7_chunk_segments({t.B, t.T, t.H, p.N, 1}, multiprocessors);
  Runner<__nv_bfloat16> run(variant, p, segments);
  for (int i = 0; i < 7; ++i)
    fill_random<<<1024, 256>>>(run.in[i]->data, run.in[i]->size, i, i == 5 ? 4u : 0u + i);
  require(cudaDeviceSynchronize(), "inputs");
  const Timing warm = measure(run, 15, nullptr, 0), cold = measure(run, 11, flush, bytes);
  const double both = warm.forward + warm.backward, tokens = double(t.B) * t.T * t.H;
  std::printf(
      "%s N%d (%2d,%6d,%2d) G%-3d fwd %.4f bwd %.4f sum %.4f | flushed %.4f %.4f %.4f | "
      "floor %.2f goal %.2f %s | %.2f ns/token-head, %.0f GB/s of the bound's bytes\n",
      variant == Variant::kChunk ? "chunk" : "serial", p.N, t.B, t.T, t.H, segments, warm.forward,
      warm.backward, both, cold.forward, cold.backward, cold.forward + cold.backward, t.floor,
      t.goal,
      both <= t.goal    ? "GOAL"
      : both <= t.floor ? "floor"
                        : "MISSED",
      both * 1e6 / tokens, tokens * 40 * p.N / both * 1e-6);
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  const std::string mode = argc > 1 ? argv[1] : "check";
  const auto number = [&](int i) { return argc > i ? std::atoi(argv[i]) : 0; };
  if (mode == "check") return run_checks();
  if (mode == "golden") {
    bool ok = true;
    for (int i = 2; i < argc; ++i) ok &= check_golden(argv[i]);
    std::printf(ok ? "all good\n" : "FAILED\n");
    return ok ? 0 : 1;
  }
  cudaDeviceProp device;
  require(cudaGetDeviceProperties(&device, 0), "device");
  const Target one{number(2), number(3), number(4), 0, 0};
  if (mode == "once") {
    const Problem p{one.B, one.T, one.H, true, Kind::kPeers, argc > 6 ? number(6) : 64};
    Runner<__nv_bfloat16> run(Variant::kChunk, p, number(5));
    run.put(make_inputs(p, 1));
    cudaStream_t s;
    require(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking), "stream");
    for (int i = 0; i < 2; ++i) run.forward(s), run.backward(s);
    require(cudaStreamSynchronize(s), "run");
    return 0;
  }
  const size_t flush_bytes = size_t{256} << 20;
  Buffer<char> flush(flush_bytes);
  if (argc > 2) {
    time_one(one, number(5), device.multiProcessorCount, flush.data, flush_bytes,
             argc > 6 ? number(6) : 64, argc > 7 ? Variant::kSerial : Variant::kChunk);
    return 0;
  }
  const Target targets[] = {{8, 4096, 12, 1.5, 0.7},   {30, 4096, 12, 3.6, 1.6},
                            {8, 4096, 64, 4.2, 2.5},   {16, 512, 12, 0.30, 0.16},
                            {2, 1024, 12, 0.25, 0.12}, {1, 32768, 12, 3.0, 1.2},
                            {1, 131072, 12, 11, 4}};
  for (const Target& t : targets)
    time_one(t, 0, device.multiProcessorCount, flush.data, flush_bytes);
  return 0;
}
