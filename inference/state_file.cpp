#include "inference/state_file.h"

#include <charconv>
#include <cmath>
#include <cstring>

#include "data/io/tensor_file.h"
#include "kernels/core/half.h"
#include "kernels/core/memory.h"
#include "kernels/wkv/row_exponent.h"

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
    case DType::kI8:
      return TensorType::kI8;
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

std::vector<float> fetch(Engine& engine, const RnnState& state, size_t i) {
  const TensorSpec& spec = state.specs()[i].spec;
  std::vector<std::byte> raw(spec.bytes());
  copy(engine.context(), TensorView(raw.data(), spec), state[i]);
  std::vector<float> values(static_cast<size_t>(spec.numel()));
  decode_tensor(file_type(spec.dtype), raw, values);
  return values;
}

/// Whether the rows of tensor i have exponents: they are the next tensor.
bool has_exponents(const RnnState& state, size_t i) {
  return i + 1 < state.specs().size() &&
         state.specs()[i + 1].name == exponent_name(state.specs()[i].name);
}

/// Takes the rows of `values`, S times the scale, apart. `exponents`: those that the file has;
/// empty: it has none, and they are chosen. Whether they fit.
bool take_apart(std::vector<float>& values, std::vector<float>& exponents, int64_t width) {
  const auto rows = values.size() / static_cast<size_t>(width);
  const bool known = !exponents.empty();
  exponents.resize(rows);
  for (size_t i = 0; i < rows; ++i) {
    const std::span row(values.data() + i * static_cast<size_t>(width), static_cast<size_t>(width));
    float largest = 0;
    for (const float x : row) largest = std::max(largest, std::fabs(x));
    if (!known) exponents[i] = static_cast<float>(exponent_for(largest));
    const float e = exponents[i];
    if (!(e >= 0 && e <= kMostExponent && std::fmod(e, static_cast<float>(kExponentStep)) == 0))
      return false;
    for (float& x : row) x = std::ldexp(x, -static_cast<int>(e));
    if (!std::isfinite(round_to_half(std::ldexp(largest, -static_cast<int>(e))))) return false;
  }
  return true;
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
    const Model::StateSpec& s = state.specs()[i];
    std::vector<float> values = fetch(engine, state, i);
    for (float& x : values) x /= s.scale;
    if (has_exponents(state, i)) {
      const std::vector<float> exponents = fetch(engine, state, i + 1);
      for (size_t n = 0; n < values.size(); ++n)
        values[n] = std::ldexp(values[n],
                               static_cast<int>(exponents[n / static_cast<size_t>(s.spec.last())]));
    }
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
  std::vector<float> exponents;  // of the tensor before
  const auto read = [&](const Model::StateSpec& s, std::vector<float>& values) {
    const auto at = file->find(s.name);
    if (!at || file->tensors()[*at].shape != shape_of(s.spec))
      fail(str(s.name,
               at ? str(" has shape ", shape_string(file->tensors()[*at].shape))
                  : std::string(" is missing"),
               ", expected ", shape_string(shape_of(s.spec)),
               "; is it the state of another model? It says ", header_value(*file, "model")));
    file->read(*at, values);
    for (const float x : values)
      if (!std::isfinite(x)) fail(str(s.name, " holds NaN or infinite values"));
  };
  for (size_t i = 0; i < state.specs().size(); ++i) {
    const auto& s = state.specs()[i];
    check_single(s);
    std::vector<float> values(static_cast<size_t>(s.spec.numel()));
    used += file->find(s.name).has_value();
    if (s.name == kElapsed) {
      values.assign(1, static_cast<float>(tokens));
    } else if (i > 0 && has_exponents(state, i - 1)) {
      values = exponents;
    } else {
      read(s, values);
      for (float& x : values) x *= s.scale;
    }
    if (has_exponents(state, i)) {
      const Model::StateSpec& rows = state.specs()[i + 1];
      exponents.clear();
      if (file->find(rows.name)) {
        exponents.resize(static_cast<size_t>(rows.spec.numel()));
        read(rows, exponents);
      }
      if (!take_apart(values, exponents, s.spec.last()))
        fail(str(rows.name, " does not fit ", s.name, ": expected multiples of ", kExponentStep,
                 " from 0 to ", kMostExponent, " that leave rows below 65504"));
    }
    std::vector<std::byte> raw;
    if (s.spec.dtype == DType::kI32) {
      const auto count = static_cast<int32_t>(std::min<int64_t>(tokens, INT32_MAX));
      raw.resize(sizeof count);
      std::memcpy(raw.data(), &count, sizeof count);
    } else if (s.spec.dtype == DType::kI8) {
      for (const float x : values) raw.push_back(static_cast<std::byte>(static_cast<int>(x)));
    } else {
      raw = encode_tensor(file_type(s.spec.dtype), values);
    }
    copy(engine.context(), state[i], TensorView(raw.data(), s.spec));
  }
  // What only variants with a binary16 state have.
  const bool counts = !state.specs().empty() && state.specs().back().name == kElapsed;
  for (const auto& t : file->tensors())
    used += !counts && (t.name == kElapsed || t.name.ends_with(".wkv_exponent"));
  if (used != file->tensors().size())
    fail(str("it has ", file->tensors().size(), " tensors, the model's state ",
             state.specs().size()));
  return tokens;
}

}  // namespace rwkv
