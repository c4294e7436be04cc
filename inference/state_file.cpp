#include "inference/state_file.h"

#include <charconv>
#include <cmath>
#include <cstring>

#include "data/io/tensor_file.h"
#include "kernels/core/half.h"
#include "kernels/core/memory.h"

namespace rwkv {
namespace {

constexpr const char* kKind = "state 1";
constexpr const char* kElapsed = "elapsed";  ///< of Model::state_specs: i32, tokens seen

TensorType file_type(DType type) {
  switch (type) {
    case DType::kF32:
      return TensorType::kF32;
    case DType::kBF16:
      return TensorType::kBF16;
    case DType::kF16:
      return TensorType::kF16;
    case DType::kI32:
      return TensorType::kI32;
    default:
      throw InternalError(str("a state of type ", dtype_name(type)));
  }
}

/// Without the batch; at least one dimension.
Shape shape_of(const TensorSpec& spec) {
  Shape shape(spec.dim.begin() + 1, spec.dim.begin() + spec.rank);
  return shape.empty() ? Shape{1} : shape;
}

void check_single(const Model::StateSpec& s) {
  RWKV_CHECK(s.spec.dim[0] == 1, ShapeError, "state files hold one sequence, the state has ",
             s.spec.dim[0]);
}

std::string header_value(const TensorFile& file, std::string_view key) {
  for (const auto& [k, v] : file.header())
    if (k == str("metadata.", key)) return v;
  return "";
}

}  // namespace

void write_state_file(const std::string& path, Engine& engine, const RnnState& state,
                      int64_t tokens) {
  std::vector<TensorPlan> plan;
  for (const auto& s : state.specs()) {
    check_single(s);
    plan.push_back({s.name, shape_of(s.spec), TensorType::kF32});
  }
  const ModelConfig& config = engine.model().config();
  const auto out = create_safetensors(path, plan,
                                      {{"greylag", kKind},
                                       {"architecture", config.architecture},
                                       {"model", model_config_json(config)},
                                       {"tokens", std::to_string(tokens)}});
  for (size_t i = 0; i < state.specs().size(); ++i) {
    const TensorSpec& spec = state.specs()[i].spec;
    std::vector<std::byte> raw(spec.bytes());
    copy(engine.context(), TensorView(raw.data(), spec), state[i]);
    std::vector<float> values(static_cast<size_t>(spec.numel()));
    decode_tensor(file_type(spec.dtype), raw, values);
    for (float& x : values) x /= state.specs()[i].scale;
    out->write(values);
  }
  out->finish();
}

int64_t read_state_file(const std::string& path, Engine& engine, RnnState& state) {
  const auto file = open_safetensors(path);
  const auto fail = [&](const std::string& what) {
    throw IoError(str("opening the state ", path, ": ", what));
  };
  if (header_value(*file, "greylag") != kKind)
    fail("it is no state file of this version; expected one that --state-out wrote");
  const std::string text = header_value(*file, "tokens");
  int64_t tokens = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), tokens);
  if (error != std::errc{} || end != text.data() + text.size() || tokens < 0)
    fail("the number of tokens is missing");
  size_t used = 0;
  for (size_t i = 0; i < state.specs().size(); ++i) {
    const auto& s = state.specs()[i];
    check_single(s);
    std::vector<float> values(static_cast<size_t>(s.spec.numel()));
    const auto at = file->find(s.name);
    if (s.name == kElapsed) {
      values.assign(1, static_cast<float>(tokens));
    } else {
      if (!at || file->tensors()[*at].shape != shape_of(s.spec))
        fail(str(s.name,
                 at ? str(" has shape ", shape_string(file->tensors()[*at].shape))
                    : std::string(" is missing"),
                 ", expected ", shape_string(shape_of(s.spec)),
                 "; is it the state of another model? It says ", header_value(*file, "model")));
      file->read(*at, values);
    }
    used += at.has_value();
    for (const float x : values)
      if (!std::isfinite(x)) fail(str(s.name, " holds NaN or infinite values"));
    for (float& x : values) {
      x *= s.scale;
      if (s.spec.dtype == DType::kF16 && !std::isfinite(round_to_half(x)))
        fail(str(s.name, " holds ", x / s.scale,
                 ", more than a binary16 state can hold; take another ",
                 "--wkv than fp16-dithered and fp16-plain"));
    }
    std::vector<std::byte> raw;
    if (s.spec.dtype == DType::kI32) {
      const auto count = static_cast<int32_t>(std::min<int64_t>(tokens, INT32_MAX));
      raw.resize(sizeof count);
      std::memcpy(raw.data(), &count, sizeof count);
    } else {
      raw = encode_tensor(file_type(s.spec.dtype), values);
    }
    copy(engine.context(), state[i], TensorView(raw.data(), s.spec));
  }
  if (file->find(kElapsed) && (state.specs().empty() || state.specs().back().name != kElapsed))
    ++used;
  if (used != file->tensors().size())
    fail(str("it has ", file->tensors().size(), " tensors, the model's state ",
             state.specs().size()));
  return tokens;
}

}  // namespace rwkv
