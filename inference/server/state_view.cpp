#include "inference/server/state_view.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "kernels/core/error.h"
#include "kernels/core/half.h"

namespace rwkv {

float StateLayer::largest() const {
  float most = 0;
  for (const float x : values) most = std::max(most, std::fabs(x));
  return most;
}

float StateLayer::rms() const {
  double sum = 0;
  for (const float x : values) sum += static_cast<double>(x) * static_cast<double>(x);
  return static_cast<float>(
      std::sqrt(sum / static_cast<double>(std::max<size_t>(values.size(), 1))));
}

std::vector<StateLayer> wkv_layers(std::span<const SequenceRunner::StateTensor> layout,
                                   const StateSnapshot& snapshot) {
  std::vector<StateLayer> layers;
  for (size_t n = 0; n < layout.size(); ++n) {
    const auto& t = layout[n];
    if (t.name.find("wkv") == std::string::npos) continue;
    const TensorSpec& s = t.spec;
    StateLayer layer{t.name, 1, 1, s.last(), {}};
    if (s.rank >= 3) layer.rows = s.dim[static_cast<size_t>(s.rank - 2)];
    layer.heads = s.numel() / (layer.rows * layer.columns);
    const std::byte* from = snapshot.bytes.data() + t.offset;
    layer.values.resize(static_cast<size_t>(s.numel()));
    if (s.dtype == DType::kF32) {
      std::memcpy(layer.values.data(), from, s.bytes());
    } else if (s.dtype == DType::kF16) {
      for (size_t i = 0; i < layer.values.size(); ++i) {
        F16 x;
        std::memcpy(&x, from + i * sizeof x, sizeof x);
        layer.values[i] = to_float(x);
      }
    } else {
      continue;
    }
    for (float& x : layer.values) x /= t.scale;
    if (n + 1 < layout.size() && layout[n + 1].spec.dtype == DType::kI8 &&
        layout[n + 1].spec.numel() > 0) {  // exponents of rows
      const auto& rows = layout[n + 1];
      const size_t width = layer.values.size() / static_cast<size_t>(rows.spec.numel());
      for (size_t i = 0; i < layer.values.size(); ++i)
        layer.values[i] = std::ldexp(
            layer.values[i], std::to_integer<int8_t>(snapshot.bytes[rows.offset + i / width]));
    }
    const int64_t blocks = s.rank == 4 ? s.dim[0] : 1;
    if (blocks == 1) {
      layers.push_back(std::move(layer));
      continue;
    }
    const auto each = std::ssize(layer.values) / blocks;  // all blocks in one tensor
    for (int64_t b = 0; b < blocks; ++b)
      layers.push_back({str("blocks.", b, ".att.wkv_state"),
                        layer.heads / blocks,
                        layer.rows,
                        layer.columns,
                        {layer.values.begin() + b * each, layer.values.begin() + (b + 1) * each}});
  }
  return layers;
}

std::string state_summary_json(const std::vector<StateLayer>& layers, int64_t tokens) {
  nlohmann::json list = nlohmann::json::array();
  for (const StateLayer& l : layers)
    list.push_back({{"name", l.name},
                    {"heads", l.heads},
                    {"rows", l.rows},
                    {"columns", l.columns},
                    {"largest", l.largest()},
                    {"rms", l.rms()}});
  return nlohmann::json{{"tokens", tokens}, {"layers", std::move(list)}}.dump();
}

std::string state_picture(const StateLayer& layer) {
  const float scale = layer.largest() > 0 ? 127 / layer.largest() : 0;
  std::string out(layer.values.size(), '\0');
  std::ranges::transform(layer.values, out.begin(), [&](float x) {
    return static_cast<char>(static_cast<unsigned char>(128 + std::lround(x * scale)));
  });
  return out;
}

}  // namespace rwkv
