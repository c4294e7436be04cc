#include "trainer/device_params.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "kernels/core/bf16.h"
#include "kernels/core/memory.h"
#include "kernels/core/parallel.h"

namespace rwkv {
namespace {

TensorView flat_view(const ParamStore& store, Device device) {
  const std::span<float> flat = store.flat();
  return TensorView(flat.data(), TensorSpec({static_cast<int64_t>(flat.size())}), device);
}

TensorView bytes_view(void* p, size_t bytes, Device device) {
  return TensorView(p, TensorSpec({static_cast<int64_t>(bytes)}, DType::kI8), device);
}

}  // namespace

DeviceParams::DeviceParams(Context& ctx, const ParamRegistry& params, DType activations,
                           const AdamWOptions& options, const std::vector<bool>& trained)
    : options_(options),
      masters_(ctx.device(), params, "parameters"),
      grads_(ctx.device(), params, "gradients"),
      m_(ctx.device(), params, "first moments"),
      v_(ctx.device(), params, "second moments") {
  const bool half = activations == DType::kBF16;
  if (half)
    copies_ = Arena(ctx.device(), static_cast<size_t>(params.flat_elements()) * sizeof(uint16_t),
                    "bf16 copies of the matrices");
  std::vector<AdamWPiece> pieces;
  for (size_t i = 0; i < params.size(); ++i) {
    const auto id = static_cast<ParamId>(i);
    const ParamSpec& spec = params.specs()[i];
    if (half && spec.matrix) {
      TensorSpec s = spec.spec;
      s.dtype = DType::kBF16;
      views_.push_back(copies_.at(static_cast<size_t>(params.offset(id)) * sizeof(uint16_t), s));
    } else {
      views_.push_back(masters_[id]);
    }
    if (!trained.empty() && !trained[i]) continue;
    const int64_t begin = params.offset(id), end = begin + spec.spec.numel();
    const float decay = spec.weight_decay ? static_cast<float>(options.weight_decay) : 0.0f;
    for (int64_t b = begin; b < end; b += kAdamWPieceElements)
      pieces.push_back({b, std::min(end, b + kAdamWPieceElements), spec.lr_scale, decay});
  }
  piece_count_ = static_cast<int64_t>(pieces.size());
  const size_t piece_bytes = pieces.size() * sizeof(AdamWPiece);
  small_ = Arena(ctx.device(), align_up(piece_bytes) + kArenaAlignment, "optimizer pieces");
  pieces_ = small_.take(TensorSpec({static_cast<int64_t>(piece_bytes)}, DType::kI8), "pieces");
  static_assert(sizeof(Outcome) == 2 * sizeof(double));
  outcome_ = small_.take(TensorSpec({sizeof(Outcome)}, DType::kI8), "norm and loss");
  read_ = HostBuffer(ctx.device(), sizeof(Outcome));
  copy(ctx, pieces_, bytes_view(pieces.data(), piece_bytes, Device::kCpu));
  ctx.synchronize("optimizer set-up");
  ctx.reserve_workspace(grad_norm_workspace_bytes(pieces.size()));
}

void DeviceParams::upload(Context& ctx, const ParamStore& values, const ParamStore& m,
                          const ParamStore& v) {
  copy(ctx, flat_view(masters_, ctx.device()), flat_view(values, Device::kCpu));
  copy(ctx, flat_view(m_, ctx.device()), flat_view(m, Device::kCpu));
  copy(ctx, flat_view(v_, ctx.device()), flat_view(v, Device::kCpu));
  if (copies_.bytes() > 0) {
    const std::span<float> flat = values.flat();
    std::vector<BF16> half(flat.size());
    parallel_for(static_cast<int64_t>(flat.size()), 1 << 18, [&](int64_t begin, int64_t end) {
      for (auto i = static_cast<size_t>(begin); i < static_cast<size_t>(end); ++i)
        half[i] = to_bf16(flat[i]);
    });
    const size_t bytes = half.size() * sizeof(BF16);
    copy(ctx, bytes_view(copies_.data(), bytes, ctx.device()),
         bytes_view(half.data(), bytes, Device::kCpu));
    ctx.synchronize("upload of the parameters");
  }
  ctx.synchronize("upload of the parameters");
}

void DeviceParams::fill(const ValuePattern& pattern) {
  const auto n = static_cast<int64_t>(masters_.flat().size());
  pattern.fill(masters_.flat().data(), 0, n, DType::kF32);
  if (copies_.bytes() > 0) pattern.fill(copies_.data(), 0, n, DType::kBF16);
}

void DeviceParams::download(Context& ctx, ParamStore& values, ParamStore& m, ParamStore& v) const {
  copy(ctx, flat_view(values, Device::kCpu), flat_view(masters_, ctx.device()));
  copy(ctx, flat_view(m, Device::kCpu), flat_view(m_, ctx.device()));
  copy(ctx, flat_view(v, Device::kCpu), flat_view(v_, ctx.device()));
}

void DeviceParams::add_loss(Context& ctx, const TensorView& loss, Accum mode) {
  rwkv::add_loss(ctx, loss.f32(), static_cast<double*>(outcome_.data) + 1, mode);
}

void DeviceParams::update(Context& ctx, double lr, int64_t update) {
  const auto* pieces = static_cast<const AdamWPiece*>(pieces_.data);
  auto* norm = static_cast<double*>(outcome_.data);
  const auto count = static_cast<size_t>(piece_count_);
  grad_norm(ctx, grads_.flat().data(), pieces, count, norm + 1, norm);
  const AdamWBuffers buffers{.master = masters_.flat().data(),
                             .m = m_.flat().data(),
                             .v = v_.flat().data(),
                             .grad = grads_.flat().data(),
                             .copy = reinterpret_cast<BF16*>(copies_.data())};
  adamw_update(ctx, buffers, pieces, count,
               {.beta1 = options_.beta1,
                .beta2 = options_.beta2,
                .eps = options_.eps,
                .lr = lr,
                .clip = options_.clip,
                .update = update},
               norm);
}

DeviceParams::Outcome DeviceParams::read_outcome(Context& ctx) {
  copy_later(ctx, TensorView(read_.data(), outcome_.spec), outcome_);
  ctx.synchronize("read loss and norm");
  Outcome o{};
  std::memcpy(&o, read_.data(), sizeof o);
  return o;
}

size_t DeviceParams::bytes() const {
  return 4 * masters_.flat().size_bytes() + copies_.bytes() + small_.bytes();
}

}  // namespace rwkv
