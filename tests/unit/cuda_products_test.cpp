// Products of the decoding kernels: the same bits for any number of rows and any way to cut the
// work, and near the exact sums. Skipped without a GPU.

#include "kernels/cuda/decode/products.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>

#include "kernels/core/arena.h"
#include "kernels/core/bf16.h"
#include "kernels/core/context.h"
#include "kernels/core/error.h"
#include "kernels/core/half.h"
#include "kernels/core/memory.h"
#include "kernels/core/rng.h"
#include "kernels/decode/step.h"

namespace rwkv::cuda::decode {
namespace {

struct Shape {
  int n, k;
  ProductAct act = ProductAct::kNone;
  bool wide = false;
};
struct Case {
  const char* name;
  std::vector<Shape> shapes;
};

constexpr int kMostRows = 1024;

uint16_t bits_of(DType type, float x) {
  return type == DType::kF16 ? to_half(x).bits : to_bf16(x).bits;
}
float value_of(DType type, uint16_t bits) {
  return type == DType::kF16 ? to_float(F16{bits}) : to_float(BF16{bits});
}

double activated(ProductAct act, double x) {
  if (act == ProductAct::kTanh) return std::tanh(x);
  if (act == ProductAct::kSigmoid) return 1 / (1 + std::exp(-x));
  if (act == ProductAct::kSquaredRelu) return x > 0 ? x * x : 0;
  return x;
}

class CudaProducts : public testing::Test {
 protected:
  void SetUp() override {
    try {
      const Context ctx(Device::kCuda);
    } catch (const DeviceError&) {
      GTEST_SKIP() << "no GPU";
    }
  }
};

TensorSpec bytes_spec(size_t n) {
  return TensorSpec({static_cast<int64_t>(n)}, DType::kI8);
}

/// Operands and results of a case on the device, results on the host.
class Bench {
 public:
  Bench(Context& ctx, DType type, const Case& c)
      : ctx_(ctx), type_(type), case_(c), processors_(rwkv::decode::multiprocessors(ctx)) {
    const Rng rng(5, hash_name(c.name));
    uint64_t drawn = 0;
    for (const Shape& s : c.shapes) {
      for (const int rows : {kMostRows, s.n}) {
        std::vector<uint16_t> host(static_cast<size_t>(rows) * static_cast<size_t>(s.k));
        const double scale = rows == s.n ? 1 / std::sqrt(static_cast<double>(s.k)) : 1;
        for (auto& x : host) x = bits_of(type, static_cast<float>(scale * rng.normal(drawn++)));
        operands_.push_back(host);
        arenas_.emplace_back(Device::kCuda, align_up(2 * host.size()), "operand");
        copy(ctx, arenas_.back().at(0, bytes_spec(2 * host.size())),
             TensorView(operands_.back().data(), bytes_spec(2 * host.size())));
        ctx.synchronize("operands");
      }
      results_.emplace_back(Device::kCuda,
                            align_up(size_t{4} * kMostRows * static_cast<size_t>(s.n)), "results");
    }
    pieces_ = product_pieces(products());
    memory_ = Arena(Device::kCuda, align_up(product_bytes(kMostRows, kMostPieces, processors_) + 1),
                    "sums");
  }
  int pieces() const { return pieces_; }
  std::vector<Product> products() const {
    std::vector<Product> all;
    for (size_t i = 0; i < case_.shapes.size(); ++i) {
      const Shape& s = case_.shapes[i];
      all.push_back({.x = arenas_[2 * i].data(),
                     .w = arenas_[2 * i + 1].data(),
                     .y = results_[i].data(),
                     .ldx = s.k,
                     .ldw = s.k,
                     .ldy = s.n,
                     .n = s.n,
                     .k = s.k,
                     .act = s.act,
                     .wide = s.wide});
    }
    return all;
  }
  std::vector<ProductPlan> plans(int rows) const {
    return product_plans(products(), rows, pieces_, processors_);
  }
  /// Results one behind the other; what a launch does not write is 0x55.
  std::vector<std::vector<std::byte>> run(int rows, const ProductPlan& plan, bool overlap) {
    std::vector<std::vector<std::byte>> all;
    for (size_t i = 0; i < results_.size(); ++i) {
      std::vector<std::byte> fill(results_[i].bytes(), std::byte{0x55});
      copy(ctx_, results_[i].at(0, bytes_spec(fill.size())),
           TensorView(fill.data(), bytes_spec(fill.size())));
      ctx_.synchronize("results");
    }
    launch_products({.type = type_,
                     .rows = rows,
                     .pieces = pieces_,
                     .multiprocessors = processors_,
                     .plan = plan,
                     .memory = memory_.data(),
                     .overlap = overlap},
                    products(), static_cast<cudaStream_t>(ctx_.stream()));
    for (size_t i = 0; i < results_.size(); ++i) {
      all.emplace_back(results_[i].bytes());
      copy(ctx_, TensorView(all.back().data(), bytes_spec(all.back().size())),
           results_[i].at(0, bytes_spec(all.back().size())));
    }
    ctx_.synchronize("results");
    return all;
  }
  /// Largest error of some rows, in units of the type's rounding.
  double error(const std::vector<std::vector<std::byte>>& got) const {
    double most = 0;
    const double unit = type_ == DType::kF16 ? 1.0 / 2048 : 1.0 / 256;
    for (size_t i = 0; i < results_.size(); ++i) {
      const Shape& s = case_.shapes[i];
      for (const size_t m : {size_t{0}, size_t{7}, size_t{16}, size_t{255}, size_t{1023}})
        for (size_t n = 0; n < static_cast<size_t>(s.n); n += 3) {
          double want = 0;
          for (size_t k = 0; k < static_cast<size_t>(s.k); ++k)
            want += static_cast<double>(
                        value_of(type_, operands_[2 * i][m * static_cast<size_t>(s.k) + k])) *
                    static_cast<double>(
                        value_of(type_, operands_[2 * i + 1][n * static_cast<size_t>(s.k) + k]));
          want = activated(s.act, want);
          const size_t at = m * static_cast<size_t>(s.n) + n;
          float y = 0;
          if (s.wide) {
            std::memcpy(&y, got[i].data() + 4 * at, 4);
          } else {
            uint16_t bits = 0;
            std::memcpy(&bits, got[i].data() + 2 * at, 2);
            y = value_of(type_, bits);
          }
          const double e = std::fabs(static_cast<double>(y) - want) /
                           ((s.wide ? 1e-5 : unit) * std::max(1.0, std::fabs(want)));
          if (std::isnan(e)) return e;
          most = std::max(most, e);
        }
    }
    return most;
  }
  size_t row_bytes(size_t i) const {
    return static_cast<size_t>(case_.shapes[i].n) * (case_.shapes[i].wide ? 4 : 2);
  }

 private:
  Context& ctx_;
  DType type_;
  const Case& case_;
  int processors_, pieces_ = 1;
  std::vector<std::vector<uint16_t>> operands_;
  std::vector<Arena> arenas_, results_;
  Arena memory_;
};

TEST_F(CudaProducts, NeitherRowsNorPlansChangeABit) {
  const std::vector<Case> cases = {
      {"one step", {{64, 64}, {32, 40, ProductAct::kTanh}}},
      {"odd sizes", {{200, 328}, {136, 328, ProductAct::kSigmoid}, {8, 328, ProductAct::kTanh}}},
      {"two pieces", {{3968, 384, ProductAct::kSquaredRelu}, {264, 384}}},
      {"four pieces", {{512, 768}, {768, 776}}},
      {"eight pieces", {{768, 3072}}},
      {"f32", {{1000, 512, ProductAct::kNone, true}}},
      {"f32 in one piece", {{1000, 136, ProductAct::kNone, true}}},
  };
  Context ctx(Device::kCuda);
  for (const Case& c : cases)
    for (const DType type : {DType::kF16, DType::kBF16}) {
      Bench bench(ctx, type, c);
      const auto want = bench.run(kMostRows, bench.plans(kMostRows).front(), false);
      const double error = bench.error(want);
      int launches = 0, wrong = 0;
      std::string which;
      for (const int rows : {1, 5, 16, 17, 64, 100, 320, 960, kMostRows}) {
        for (const ProductPlan& plan : bench.plans(rows)) {
          const auto got = bench.run(rows, plan, launches % 2 == 1);
          ++launches;
          bool same = true;
          for (size_t i = 0; i < got.size(); ++i) {
            const size_t mine = static_cast<size_t>(rows) * bench.row_bytes(i);
            same = same && std::memcmp(got[i].data(), want[i].data(), mine) == 0;
            for (size_t b = mine; b < got[i].size(); ++b)
              same = same && got[i][b] == std::byte{0x55};
          }
          if (!same && ++wrong <= 12)
            which += " " + std::to_string(rows) + ":" + std::to_string(plan.columns) + "/" +
                     std::to_string(plan.pair) + "/" + std::to_string(plan.split) + "/" +
                     std::to_string(plan.height);
        }
      }
      std::printf("  %s, %s, %d pieces: error %.2f roundings, %d launches, %d differ%s\n", c.name,
                  std::string(dtype_name(type)).c_str(), bench.pieces(), error, launches, wrong,
                  which.c_str());
      std::fflush(stdout);
      EXPECT_LE(error, 1.1);
      EXPECT_EQ(wrong, 0);
    }
}

/// Two products, and two that read what they write: in one launch and in two.
TEST_F(CudaProducts, LateProductsAreThoseOfTheirOwnLaunch) {
  constexpr int kWidth = 1088, kMiddle[2] = {200, 72}, kAll = 272;
  Context ctx(Device::kCuda);
  const int processors = rwkv::decode::multiprocessors(ctx);
  const Rng rng(6, hash_name("late products"));
  uint64_t drawn = 0;
  std::vector<Arena> arenas;
  const auto random = [&](size_t rows, size_t k) {
    std::vector<uint16_t> host(rows * k);
    for (auto& x : host)
      x = bits_of(DType::kF16, static_cast<float>(rng.normal(drawn++) / std::sqrt(kWidth)));
    arenas.emplace_back(Device::kCuda, align_up(2 * host.size()), "operand");
    copy(ctx, arenas.back().at(0, bytes_spec(2 * host.size())),
         TensorView(host.data(), bytes_spec(2 * host.size())));
    ctx.synchronize("operands");
    return arenas.back().data();
  };
  const auto rows_of = [](int n) { return static_cast<size_t>(n); };
  std::byte* const x = random(kMostRows, kWidth);
  std::byte* const first[3] = {random(rows_of(kMiddle[0]), kWidth),
                               random(rows_of(kMiddle[1]), kWidth), random(kWidth, kWidth)};
  std::byte* const second[2] = {random(kWidth, rows_of(kMiddle[0])),
                                random(kWidth, rows_of(kMiddle[1]))};
  const size_t result = size_t{2} * kMostRows * kWidth;
  const Arena middle(Device::kCuda, align_up(size_t{2} * kMostRows * kAll), "middle"),
      results(Device::kCuda, align_up(3 * result), "results"),
      gate(Device::kCuda, align_up(8), "gate"),
      sums(Device::kCuda, align_up(product_bytes(kMostRows, kMostPieces, processors) + 1), "sums");
  fill_zero(ctx, gate.at(0, bytes_spec(8)));
  std::vector<Product> makers, late;
  for (size_t i = 0; i < 2; ++i) {
    std::byte* const between = middle.data() + (i == 0 ? 0 : 2 * kMiddle[0]);
    makers.push_back({.x = x,
                      .w = first[i],
                      .y = between,
                      .ldx = kWidth,
                      .ldw = kWidth,
                      .ldy = kAll,
                      .n = kMiddle[i],
                      .k = kWidth,
                      .act = i == 0 ? ProductAct::kTanh : ProductAct::kNone});
    late.push_back({.x = between,
                    .w = second[i],
                    .y = results.data() + i * result,
                    .ldx = kAll,
                    .ldw = kMiddle[i],
                    .ldy = kWidth,
                    .n = kWidth,
                    .k = kMiddle[i]});
  }
  makers.push_back(makers.front());  // and one that nobody waits for
  makers.back().w = first[2];
  makers.back().y = results.data() + 2 * result;
  makers.back().n = makers.back().ldy = kWidth;
  makers.back().act = ProductAct::kNone;
  const int pieces = product_pieces(makers), late_pieces = product_pieces(late);
  const auto run = [&](int rows, const ProductPlan& plan, bool together, bool overlap) {
    fill_zero(ctx, middle.at(0, bytes_spec(middle.bytes())));
    fill_zero(ctx, results.at(0, bytes_spec(results.bytes())));
    ProductLaunch launch{.type = DType::kF16,
                         .rows = rows,
                         .pieces = pieces,
                         .multiprocessors = processors,
                         .plan = plan,
                         .memory = sums.data(),
                         .overlap = overlap};
    const auto stream = static_cast<cudaStream_t>(ctx.stream());
    if (together)
      launch.late = {.products = late,
                     .pieces = late_pieces,
                     .makers = 2,
                     .gate = reinterpret_cast<uint32_t*>(gate.data())};
    launch_products(launch, makers, stream);
    if (!together) {
      launch.pieces = late_pieces;
      launch_products(launch, late, stream);
    }
    std::vector<std::byte> host(results.bytes() + 8);
    copy(ctx, TensorView(host.data(), bytes_spec(results.bytes())),
         results.at(0, bytes_spec(results.bytes())));
    copy(ctx, TensorView(host.data() + results.bytes(), bytes_spec(8)), gate.at(0, bytes_spec(8)));
    ctx.synchronize("results");
    return host;
  };
  int launches = 0, wrong = 0;
  std::string which;
  for (const int rows : {1, 64, 320, 700, kMostRows})
    for (const ProductPlan& plan : product_plans(makers, rows, pieces, processors)) {
      if (plan.split > 1 || plan.height != kTileRows) continue;
      const auto want = run(rows, plan, false, false), got = run(rows, plan, true, launches % 2);
      ++launches;
      if (got == want) continue;
      ++wrong;
      which += " " + std::to_string(rows) + ":" + std::to_string(plan.columns) + "/" +
               std::to_string(plan.pair);
    }
  std::printf("  late products, %d and %d pieces: %d launches, %d differ%s\n", pieces, late_pieces,
              launches, wrong, which.c_str());
  EXPECT_GT(launches, 10);
  EXPECT_EQ(wrong, 0);
}

}  // namespace
}  // namespace rwkv::cuda::decode
