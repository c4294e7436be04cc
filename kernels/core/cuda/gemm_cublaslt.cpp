// Matrix products by cuBLASLt. Row-major C = A B is the column-major C^T = B^T A^T, so the operands
// change places and nothing is copied.

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <limits>
#include <memory>
#include <span>
#include <sstream>
#include <utility>
#include <vector>

#include "kernels/core/backend.h"
#include "kernels/core/cuda/cuda_state.h"

namespace rwkv::backend {
namespace {

cudaDataType_t type_of(DType t) {
  switch (t) {
    case DType::kF32:
      return CUDA_R_32F;
    case DType::kBF16:
      return CUDA_R_16BF;
    case DType::kF16:
      return CUDA_R_16F;
    default:
      throw DTypeError(
          str("matrix product on CUDA: found ", dtype_name(t), ", expected f32, bf16 or f16"));
  }
}

/// The largest power of two up to 256 that divides an address.
uint32_t alignment(const void* p) {
  const auto address = reinterpret_cast<uintptr_t>(p) | 256;
  return static_cast<uint32_t>(address & (~address + 1));
}

struct LayoutDelete {
  void operator()(cublasLtMatrixLayout_t p) const { cublasLtMatrixLayoutDestroy(p); }
};
using Layout = std::unique_ptr<std::remove_pointer_t<cublasLtMatrixLayout_t>, LayoutDelete>;

Layout layout(DType t, int64_t rows, int64_t cols, int64_t ld) {
  cublasLtMatrixLayout_t p = nullptr;
  RWKV_CUBLAS(cublasLtMatrixLayoutCreate(&p, type_of(t), static_cast<uint64_t>(rows),
                                         static_cast<uint64_t>(cols), ld));
  return Layout(p);
}

struct DescDelete {
  void operator()(cublasLtMatmulDesc_t p) const { cublasLtMatmulDescDestroy(p); }
};
using Desc = std::unique_ptr<std::remove_pointer_t<cublasLtMatmulDesc_t>, DescDelete>;
struct PreferenceDelete {
  void operator()(cublasLtMatmulPreference_t p) const { cublasLtMatmulPreferenceDestroy(p); }
};
using Preference =
    std::unique_ptr<std::remove_pointer_t<cublasLtMatmulPreference_t>, PreferenceDelete>;

/// One call in cuBLASLt's words.
struct Product {
  Product(CudaState& s, const GemmCall& g)
      : state(s),
        call(g),
        first(g.trans_b ? layout(g.dtype, g.k, g.n, g.ldb) : layout(g.dtype, g.n, g.k, g.ldb)),
        second(g.trans_a ? layout(g.dtype, g.m, g.k, g.lda) : layout(g.dtype, g.k, g.m, g.lda)),
        out(layout(g.out_dtype, g.n, g.m, g.ldc)) {
    cublasLtMatmulDesc_t raw = nullptr;
    RWKV_CUBLAS(cublasLtMatmulDescCreate(&raw, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    desc.reset(raw);
    // Column-major: first operand B^T (n, k), second A^T (k, m).
    const cublasOperation_t op_first = g.trans_b ? CUBLAS_OP_T : CUBLAS_OP_N;
    const cublasOperation_t op_second = g.trans_a ? CUBLAS_OP_T : CUBLAS_OP_N;
    set(CUBLASLT_MATMUL_DESC_TRANSA, op_first);
    set(CUBLASLT_MATMUL_DESC_TRANSB, op_second);
    if (g.alpha != nullptr) set(CUBLASLT_MATMUL_DESC_POINTER_MODE, CUBLASLT_POINTER_MODE_DEVICE);
  }

  template <class T>
  void set(cublasLtMatmulDescAttributes_t attribute, const T& value) {
    RWKV_CUBLAS(cublasLtMatmulDescSetAttribute(desc.get(), attribute, &value, sizeof value));
  }

  cublasStatus_t run(const cublasLtMatmulAlgo_t& algorithm) const {
    constexpr float kOne = 1, kZero = 0;
    const bool add = call.mode == Accum::kAdd;
    const void* alpha = &kOne;
    const void* beta = add ? &kOne : &kZero;
    if (call.alpha != nullptr) {
      alpha = call.alpha;
      beta = state.zero_one + (add ? 1 : 0);
    }
    return cublasLtMatmul(state.lt, desc.get(), alpha, call.b, first.get(), call.a, second.get(),
                          beta, addend(), out.get(), call.c, out.get(), &algorithm,
                          state.lt_workspace, state.lt_workspace_bytes, state.stream);
  }

  const void* addend() const {
    return call.mode == Accum::kAdd && call.addend != nullptr ? call.addend : call.c;
  }

  CudaState::GemmKey key() const {
    const GemmCall& g = call;
    return {g.m,
            g.n,
            g.k,
            g.lda,
            g.ldb,
            g.ldc,
            g.trans_a,
            g.trans_b,
            static_cast<int64_t>(g.dtype),
            static_cast<int64_t>(g.out_dtype),
            g.mode != Accum::kAdd ? 0
            : addend() == g.c     ? 1
                                  : 1 + alignment(addend()),
            g.alpha != nullptr,
            alignment(g.a),
            alignment(g.b),
            alignment(g.c)};
  }

  /// Up to `most`, best guess first.
  std::vector<cublasLtMatmulAlgo_t> proposals(int most) const {
    cublasLtMatmulPreference_t raw = nullptr;
    RWKV_CUBLAS(cublasLtMatmulPreferenceCreate(&raw));
    const Preference preference(raw);
    const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
      RWKV_CUBLAS(cublasLtMatmulPreferenceSetAttribute(raw, attribute, &value, sizeof value));
    };
    prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, state.lt_workspace_bytes);
    // Parts of a split k are kept apart in f32 and added in order; sums in the output's type, or in
    // place, would round at every part.
    prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
           static_cast<uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
    // cuBLASLt takes 256-byte alignment for granted unless told otherwise.
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment(call.b));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment(call.a));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment(addend()));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment(call.c));
    std::vector<cublasLtMatmulHeuristicResult_t> results(static_cast<size_t>(most));
    int found = 0;
    RWKV_CUBLAS(cublasLtMatmulAlgoGetHeuristic(state.lt, desc.get(), first.get(), second.get(),
                                               out.get(), out.get(), raw, most, results.data(),
                                               &found));
    std::vector<cublasLtMatmulAlgo_t> algorithms;
    for (int i = 0; i < found; ++i)
      if (results[static_cast<size_t>(i)].state == CUBLAS_STATUS_SUCCESS)
        algorithms.push_back(results[static_cast<size_t>(i)].algo);
    RWKV_CHECK(!algorithms.empty(), DeviceError, "cuBLASLt has no algorithm for a product of ",
               call.m, " x ", call.n, " x ", call.k, " in ", dtype_name(call.dtype));
    return algorithms;
  }

  bool can_run(const cublasLtMatmulAlgo_t& algorithm) const {
    uint32_t reduction = 0;
    if (cublasLtMatmulAlgoConfigGetAttribute(&algorithm, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME,
                                             &reduction, sizeof reduction,
                                             nullptr) != CUBLAS_STATUS_SUCCESS ||
        (reduction & ~static_cast<uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE)) != 0)
      return false;
    cublasLtMatmulHeuristicResult_t result{};
    return cublasLtMatmulAlgoCheck(state.lt, desc.get(), first.get(), second.get(), out.get(),
                                   out.get(), &algorithm, &result) == CUBLAS_STATUS_SUCCESS &&
           result.workspaceSize <= state.lt_workspace_bytes;
  }

  CudaState& state;
  const GemmCall& call;
  Layout first, second, out;
  Desc desc;
};

/// Measuring: this many proposals; launches in one measurement; a later proposal must save this
/// share of the first one's time, so that noise does not choose.
constexpr int kProposals = 24;
constexpr int kFewestLaunches = 3, kMostLaunches = 24;
constexpr double kSecondsPerMeasurement = 3e-4;
constexpr double kWorthIt = 0.985;

/// Seconds of one of n launches in a row; infinite if the algorithm does not run.
double measure(const Product& p, const cublasLtMatmulAlgo_t& algorithm, int n, void* begin,
               void* end) {
  cuda_event_record(begin, p.state.stream);
  for (int i = 0; i < n; ++i)
    if (p.run(algorithm) != CUBLAS_STATUS_SUCCESS) return std::numeric_limits<double>::infinity();
  cuda_event_record(end, p.state.stream);
  return cuda_event_seconds(begin, end) / n;
}

struct EventDelete {
  void operator()(void* e) const { cuda_event_release(e); }
};

cublasLtMatmulAlgo_t fastest(const Product& p) {
  const std::vector<cublasLtMatmulAlgo_t> proposals = p.proposals(kProposals);
  const std::unique_ptr<void, EventDelete> begin(cuda_event_create()), end(cuda_event_create());
  std::vector<double> seconds;
  for (const auto& algorithm : proposals) {
    measure(p, algorithm, 1, begin.get(), end.get());  // loads the kernel
    seconds.push_back(measure(p, algorithm, 2, begin.get(), end.get()));
  }
  const double bound = 1.25 * *std::ranges::min_element(seconds);
  for (int round = 0; round < 3; ++round)
    for (size_t i = 0; i < proposals.size(); ++i) {
      if (seconds[i] > bound && i > 0) continue;
      const double wanted = kSecondsPerMeasurement / seconds[i];
      const int n = std::clamp(wanted < kMostLaunches ? static_cast<int>(wanted) : kMostLaunches,
                               kFewestLaunches, kMostLaunches);
      const double now = measure(p, proposals[i], n, begin.get(), end.get());
      seconds[i] = round == 0 ? now : std::min(seconds[i], now);
    }
  const auto best = static_cast<size_t>(std::ranges::min_element(seconds) - seconds.begin());
  return proposals[seconds[best] < kWorthIt * seconds[0] ? best : 0];
}

/// Names what choices hold for.
std::string gemm_place(const CudaState& s) {
  cudaDeviceProp prop{};
  RWKV_CUDA(cudaGetDeviceProperties(&prop, s.device));
  return str("greylag-gemm 1; ", prop.name, ", ", prop.multiProcessorCount, " SM; cuBLASLt ",
             cublasLtGetVersion(), "; workspace ", s.lt_workspace_bytes);
}

}  // namespace

void cuda_gemm(Context& ctx, const GemmCall& g) {
  if (g.m == 0 || g.n == 0) return;
  const TraceScope trace(
      ctx.tracer(), "gemm",
      2.0 * static_cast<double>(g.m) * static_cast<double>(g.n) * static_cast<double>(g.k));
  CudaState& s = ctx.cuda();
  CudaState& owner = *s.gemm_owner;
  const Product product(s, g);
  const CudaState::GemmKey key = product.key();
  auto it = owner.gemm_choices.find(key);
  if (it != owner.gemm_choices.end() && it->second.imported) {
    it->second.imported = false;
    if (!product.can_run(it->second.algorithm)) {
      owner.gemm_choices.erase(it);
      it = owner.gemm_choices.end();
    }
  }
  if (it == owner.gemm_choices.end()) {
    CudaState::GemmChoice choice{.measured = owner.measure_gemms};
    choice.algorithm = choice.measured ? fastest(product) : product.proposals(1)[0];
    it = owner.gemm_choices.emplace(key, choice).first;
  }
  it->second.used = true;
  RWKV_CUBLAS(product.run(it->second.algorithm));
}

void cuda_share_gemms(CudaState& lane, CudaState& owner) {
  lane.gemm_owner = &owner;
}

void cuda_measure_gemms(CudaState& state, bool on) {
  state.measure_gemms = on;
}

std::string cuda_export_gemms(const CudaState& state, GemmChoices which) {
  std::ostringstream out;
  out << gemm_place(state) << "\n";
  for (const auto& [key, choice] : state.gemm_choices) {
    if (which == GemmChoices::kUsed ? !choice.used : !choice.measured) continue;
    for (const int64_t x : key) out << x << ' ';
    out << std::hex;
    for (const uint64_t x : choice.algorithm.data) out << ' ' << x;
    out << std::dec << "\n";
  }
  return out.str();
}

size_t cuda_import_gemms(CudaState& state, std::string_view text) {
  std::istringstream in{std::string(text)};
  std::string line;
  if (!std::getline(in, line) || line != gemm_place(state)) return 0;
  std::map<CudaState::GemmKey, CudaState::GemmChoice> found;
  for (int number = 2; std::getline(in, line); ++number) {
    std::istringstream fields(line);
    CudaState::GemmKey key{};
    CudaState::GemmChoice choice{.imported = true};
    for (int64_t& x : key) fields >> x;
    fields >> std::hex;
    for (uint64_t& x : choice.algorithm.data) fields >> x;
    RWKV_CHECK(fields && (fields >> std::ws).eof(), IoError,
               "reading choices of matrix product algorithms: line ", number, " is '", line,
               "', expected 15 decimal and 8 hexadecimal numbers");
    found.emplace(key, choice);
  }
  size_t taken = 0;  // only now: a damaged text changes nothing
  for (const auto& [key, choice] : found)
    taken += state.gemm_choices.emplace(key, choice).second ? 1 : 0;
  return taken;
}

}  // namespace rwkv::backend
