// Host side of the decoding products: how they are cut, tensor maps, launch.

#include "kernels/cuda/decode/products.cuh"

#include <bit>

#include "kernels/core/cuda/cuda_check.h"
#include "kernels/core/error.h"
#include "kernels/cuda/decode/few_products.h"

namespace rwkv::cuda::decode {
namespace {

constexpr int kColumnsOf[] = {16, 32, 64, 128, 160, 240, 256, 320};
constexpr int kMostColumns = 320;
/// Rows that one copy brings. Wider tiles are for pairs, and only where one column is enough: they
/// read weights once instead of twice, at 960 rows they were slower than four columns of 240.
constexpr int kMostOfBox = 256;
/// Blocks that pieces are meant for, and the fewest steps of 64 that a piece has. Constants, not
/// the GPU's: results must not depend on it.
constexpr int kBlocksWanted = 64, kLeastSteps = 3;
constexpr int kMostBlocksOfCluster = 8;

int up(int n, int unit) {
  return (n + unit - 1) / unit;
}
int levels_of(int pieces) {
  return std::countr_zero(static_cast<unsigned>(pieces));
}
int items_of(std::span<const Product> products, int rows, const ProductPlan& plan) {
  int items = 0;
  for (const Product& p : products)
    items += up(up(p.n, kTileRows), plan.pair) * up(rows, plan.columns);
  return items;
}
/// Blocks of a launch; those that have one tile only are not limited by the multiprocessors.
int blocks_of(int items, const ProductPlan& plan, int multiprocessors) {
  return plan.split > 1 ? items * plan.pair * plan.split
                        : std::min(items, multiprocessors / plan.pair) * plan.pair;
}

/// A rough forecast, in clocks.
double forecast(std::span<const Product> products, int rows, int pieces, const ProductPlan& plan,
                int multiprocessors) {
  constexpr double kMemory = 4.1e12 / 1.75e9, kLink = 48;  // bytes per clock: all; of one block
  constexpr double kStart = 2500, kExchange = 1500, kWait = 900;
  double bytes = 0, steps = 0;
  for (const Product& p : products) {
    bytes += 2.0 * p.n * p.k;
    steps = std::max(steps, static_cast<double>(up(p.k, kDepth)));
  }
  const int items = items_of(products, rows, plan), cluster = plan.pair * plan.split;
  // Large clusters do not fill a GPU up.
  const int at_once =
      std::max(1, (multiprocessors - (cluster > 2 ? multiprocessors / 8 : 0)) / cluster);
  const double turns = up(items, at_once);
  const double multiply = std::max(4.0 * plan.columns, 128 + 2.0 * plan.columns);
  const double load = (kWeightBytes + 128.0 * plan.columns / plan.pair) / kLink;
  double tile = steps / plan.split * std::max(multiply, load) + 8.0 * plan.columns / plan.split;
  if (plan.split > 1) tile += kExchange + 4.0 * plan.columns;
  tile += (pieces / plan.split - 1) * (kWait + 6.0 * plan.columns);
  return kStart + std::max(turns * tile, bytes / kMemory);
}

/// Of the kernel for few rows: all of the weights are there, in one round.
double few_forecast(std::span<const Product> products, int rows, const ProductPlan& plan) {
  constexpr double kStart = 1500, kExchange = 600, kLink = 40;
  double steps = 0;
  for (const Product& p : products) steps = std::max(steps, static_cast<double>(up(p.k, kDepth)));
  const double columns = std::min(plan.columns, rows);
  return kStart + steps / plan.split * 128 * columns / kLink + (plan.split > 1 ? kExchange : 0);
}

/// The first cluster of those that share the late items: those that have no item in the last of
/// several rounds of the main ones, if there are such and they have time for all late ones; else
/// all clusters.
int late_begin_of(const ProductLaunch& l, std::span<const Product> products) {
  constexpr int kOther = 8;  ///< steps that pass until a tile's sums begin and are written
  const int main = items_of(products, l.rows, l.plan);
  const int clusters =
      blocks_of(main + items_of(l.late.products, l.rows, l.plan), l.plan, l.multiprocessors) /
      l.plan.pair;
  const int busy = main % clusters;
  if (main < clusters || busy == 0) return 0;
  int64_t work = 0;
  for (const Product& p : l.late.products)
    work += int64_t{items_of({&p, 1}, l.rows, l.plan)} * (up(p.k, kDepth) + kOther);
  return work <= int64_t{clusters - busy} * up(products.back().k, kDepth) ? busy : 0;
}

}  // namespace

int product_pieces(std::span<const Product> products) {
  int tiles = 0, steps = INT_MAX;
  for (const Product& p : products) {
    tiles += up(p.n, kTileRows);
    steps = std::min(steps, up(p.k, kDepth));
  }
  int pieces = 1;
  while (2 * pieces <= kMostPieces && tiles * 2 * pieces <= kBlocksWanted &&
         steps / (2 * pieces) >= kLeastSteps)
    pieces *= 2;
  return pieces;
}

std::vector<ProductPlan> product_plans(std::span<const Product> products, int rows, int pieces,
                                       int multiprocessors) {
  std::vector<std::pair<double, ProductPlan>> all, few;
  for (const int columns : {16, 32, 64}) {
    for (int split = 1; split <= pieces; split *= 2) {
      const ProductPlan plan{.columns = columns, .split = split, .height = kFewRows};
      if (few_products_fit(products, rows, pieces, plan, multiprocessors))
        few.emplace_back(few_forecast(products, rows, plan), plan);
    }
    if (columns >= rows) break;
  }
  for (const int columns : kColumnsOf) {
    if (columns > kMostOfBox ? rows > columns : rows > 6 * columns && columns < kMostOfBox)
      continue;
    for (int pair = 1; pair <= 2; ++pair)
      for (int split = 1; split <= pieces && pair * split <= kMostBlocksOfCluster; split *= 2) {
        const ProductPlan plan{columns, pair, split};
        if (columns > pair * kMostOfBox) continue;
        const int blocks = blocks_of(items_of(products, rows, plan), plan, multiprocessors);
        // Sums that wait have a place per multiprocessor.
        if (split < pieces && blocks > multiprocessors) continue;
        all.emplace_back(forecast(products, rows, pieces, plan, multiprocessors), plan);
      }
    if (columns >= rows) break;
  }
  // Forecasts of two kernels do not compare well: no more of the one for few rows in front than
  // leave some of the other among those that are tried.
  constexpr size_t kFewInFront = 5;
  const auto by_time = [](auto& list) {
    std::ranges::stable_sort(list, {}, &std::pair<double, ProductPlan>::first);
  };
  by_time(few);
  const size_t front = std::min(few.size(), kFewInFront);
  all.insert(all.end(), few.begin(), few.begin() + static_cast<std::ptrdiff_t>(front));
  by_time(all);
  all.insert(all.end(), few.begin() + static_cast<std::ptrdiff_t>(front), few.end());
  std::vector<ProductPlan> plans;
  for (const auto& [time, plan] : all) plans.push_back(plan);
  return plans;
}

size_t product_bytes(int rows, int pieces, int multiprocessors) {
  int columns = kMostColumns;
  for (const int c : kColumnsOf)
    if (c >= rows) columns = std::min(columns, c);
  return static_cast<size_t>(multiprocessors) * static_cast<size_t>(levels_of(pieces)) *
         static_cast<size_t>(columns / 8 * kMultiplyingThreads) * sizeof(float4);
}

bool late_products_fit(const ProductLaunch& l, std::span<const Product> products) {
  return l.plan.height == kTileRows && l.plan.split == 1 && late_begin_of(l, products) > 0;
}

void launch_products(const ProductLaunch& l, std::span<const Product> products,
                     cudaStream_t stream) {
  if (l.plan.height == kFewRows) {
    launch_few_products(l, products, stream);
    return;
  }
  const LateProducts& late = l.late;
  RWKV_ASSERT(products.size() + late.products.size() <= kMostProducts, products.size(), " and ",
              late.products.size(), " products");
  RWKV_ASSERT(l.type == DType::kF16 || l.type == DType::kBF16, "products of ", dtype_name(l.type));
  RWKV_ASSERT(l.plan.split >= 1 && l.pieces % l.plan.split == 0, l.plan.split, " of ", l.pieces);
  RWKV_ASSERT(late.products.empty() || (l.plan.split == 1 && late.gate != nullptr),
              "late products, split ", l.plan.split);
  ProductTasks all{};
  all.rows = l.rows;
  all.columns = up(l.rows, l.plan.columns);
  all.pair = l.plan.pair;
  all.split = l.plan.split;
  all.levels = levels_of(std::max(l.pieces, late.pieces));
  all.memory = static_cast<float4*>(l.memory);
  size_t i = 0;
  const auto add = [&](const Product& p, int pieces) {
    RWKV_ASSERT(p.k % 8 == 0 && p.ldx % 8 == 0 && p.ldw % 8 == 0 && (p.wide || p.ldy % 8 == 0),
                "product ", p.n, " x ", p.k);
    RWKV_ASSERT(!p.wide || p.act == ProductAct::kNone, "f32 results are not activated");
    RWKV_ASSERT(up(p.k, kDepth) >= pieces, "k ", p.k, " in ", pieces, " pieces");
    RWKV_CUDA(tile::describe_matrix(all.w[i], p.w, p.n, p.k, kTileRows, p.ldw));
    RWKV_CUDA(
        tile::describe_matrix(all.x[i], p.x, l.rows, p.k, l.plan.columns / l.plan.pair, p.ldx));
    if (!p.wide) RWKV_CUDA(tile::describe_matrix(all.y[i], p.y, l.rows, p.n, 16, p.ldy));
    all.of[i] = {.n = p.n,
                 .steps = up(p.k, kDepth),
                 .pieces = pieces,
                 .act = static_cast<int>(p.act),
                 .ld = p.ldy,
                 .keep = p.keep,
                 .wide = p.wide ? static_cast<float*>(p.y) : nullptr};
    all.first[i + 1] = all.first[i] + up(up(p.n, kTileRows), l.plan.pair) * all.columns;
    ++i;
  };
  for (const Product& p : products) add(p, l.pieces);
  all.late = static_cast<int>(i);
  for (const Product& p : late.products) add(p, late.pieces);
  for (; i < kMostProducts; ++i) all.first[i + 1] = all.first[i];
  const int blocks = blocks_of(all.first[kMostProducts], l.plan, l.multiprocessors);
  if (!late.products.empty()) {
    all.makers = late.makers;
    all.needed = static_cast<uint32_t>(2 * l.plan.pair * all.first[late.makers]);
    all.gate = late.gate;
    all.late_begin = late_begin_of(l, products);
  }
  const auto launch = l.type == DType::kF16 ? launch_products_f16 : launch_products_bf16;
  RWKV_CUDA(launch(all, l.plan.columns, static_cast<unsigned>(blocks),
                   static_cast<unsigned>(l.plan.pair * l.plan.split), l.overlap, stream));
  RWKV_LAUNCHED("products of a batch", stream);
}

}  // namespace rwkv::cuda::decode
