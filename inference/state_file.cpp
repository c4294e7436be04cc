#include "inference/state_file.h"

#include <algorithm>
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

/// Tensors of a state in host memory, one after the other.
using Layout = std::span<const SequenceRunner::StateTensor>;

/// Without the batch; at least one dimension.
Shape shape_of(const TensorSpec& spec) {
  Shape shape(spec.dim.begin() + 1, spec.dim.begin() + spec.rank);
  return shape.empty() ? Shape{1} : shape;
}

void check_single(const TensorSpec& spec) {
  RWKV_CHECK(spec.dim[0] == 1, ShapeError, "state files hold one sequence, the state has ",
             spec.dim[0]);
}

std::vector<float> fetch(const SequenceRunner::StateTensor& t, std::span<const std::byte> bytes) {
  std::vector<float> values(static_cast<size_t>(t.spec.numel()));
  decode_tensor(file_type(t.spec.dtype), bytes.subspan(t.offset, t.spec.bytes()), values);
  return values;
}

/// Whether the rows of tensor i have exponents: they are the next tensor.
bool has_exponents(Layout layout, size_t i) {
  return i + 1 < layout.size() && layout[i + 1].name == exponent_name(layout[i].name);
}

std::vector<SequenceRunner::StateTensor> layout_of(const RnnState& state) {
  std::vector<SequenceRunner::StateTensor> layout;
  size_t offset = 0;
  for (const auto& s : state.specs()) {
    check_single(s.spec);
    layout.push_back({s.name, s.spec, offset, s.scale});
    offset += s.spec.bytes();
  }
  return layout;
}

size_t bytes_of(Layout layout) {
  return layout.empty() ? 0 : layout.back().offset + layout.back().spec.bytes();
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

void write(const std::string& path, const ModelConfig& config, Layout layout,
           std::span<const std::byte> bytes, int64_t tokens) {
  std::vector<TensorPlan> plan;
  for (const auto& t : layout) plan.push_back({t.name, shape_of(t.spec), TensorType::kF32});
  const auto out = create_safetensors(path, plan,
                                      {{"greylag", kKind},
                                       {"architecture", config.architecture},
                                       {"model", model_config_json(config)},
                                       {"tokens", std::to_string(tokens)}});
  for (size_t i = 0; i < layout.size(); ++i) {
    std::vector<float> values = fetch(layout[i], bytes);
    for (float& x : values) x /= layout[i].scale;
    if (has_exponents(layout, i)) {
      const std::vector<float> exponents = fetch(layout[i + 1], bytes);
      const auto width = static_cast<size_t>(layout[i].spec.last());
      for (size_t n = 0; n < values.size(); ++n)
        values[n] = std::ldexp(values[n], static_cast<int>(exponents[n / width]));
    }
    out->write(values);
  }
  out->finish();
}

int64_t read(const std::string& path, Layout layout, std::span<std::byte> bytes) {
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
  const auto take = [&](const SequenceRunner::StateTensor& t, std::vector<float>& values) {
    const auto at = file->find(t.name);
    if (!at || file->tensors()[*at].shape != shape_of(t.spec))
      fail(str(t.name,
               at ? str(" has shape ", shape_string(file->tensors()[*at].shape))
                  : std::string(" is missing"),
               ", expected ", shape_string(shape_of(t.spec)),
               "; is it the state of another model? It says ", header_value(*file, "model")));
    file->read(*at, values);
    for (const float x : values)
      if (!std::isfinite(x)) fail(str(t.name, " holds NaN or infinite values"));
  };
  for (size_t i = 0; i < layout.size(); ++i) {
    const auto& t = layout[i];
    std::vector<float> values(static_cast<size_t>(t.spec.numel()));
    used += file->find(t.name).has_value();
    if (t.name == kElapsed) {
      values.assign(1, static_cast<float>(tokens));
    } else if (i > 0 && has_exponents(layout, i - 1)) {
      values = exponents;
    } else {
      take(t, values);
      for (float& x : values) x *= t.scale;
    }
    if (has_exponents(layout, i)) {
      const auto& rows = layout[i + 1];
      exponents.clear();
      if (file->find(rows.name)) {
        exponents.resize(static_cast<size_t>(rows.spec.numel()));
        take(rows, exponents);
      }
      if (!take_apart(values, exponents, t.spec.last()))
        fail(str(rows.name, " does not fit ", t.name, ": expected multiples of ", kExponentStep,
                 " from 0 to ", kMostExponent, " that leave rows below 65504"));
    }
    std::vector<std::byte> raw;
    if (t.spec.dtype == DType::kI32) {
      const auto count = static_cast<int32_t>(std::min<int64_t>(tokens, INT32_MAX));
      raw.resize(sizeof count);
      std::memcpy(raw.data(), &count, sizeof count);
    } else if (t.spec.dtype == DType::kI8) {
      for (const float x : values) raw.push_back(static_cast<std::byte>(static_cast<int>(x)));
    } else {
      raw = encode_tensor(file_type(t.spec.dtype), values);
    }
    RWKV_ASSERT(raw.size() == t.spec.bytes(), "a state's tensor of another size");
    std::ranges::copy(raw, bytes.begin() + static_cast<std::ptrdiff_t>(t.offset));
  }
  // What only variants with a binary16 state have.
  const bool counts = !layout.empty() && layout.back().name == kElapsed;
  const bool rows =
      std::ranges::any_of(layout, [](const auto& t) { return t.name.ends_with(".wkv_exponent"); });
  for (const auto& t : file->tensors())
    used += (!counts && t.name == kElapsed) || (!rows && t.name.ends_with(".wkv_exponent"));
  if (used != file->tensors().size())
    fail(str("it has ", file->tensors().size(), " tensors, the model's state ", layout.size()));
  return tokens;
}

}  // namespace

std::vector<SequenceRunner::StateTensor> state_file_layout(const ModelConfig& config,
                                                           Layout layout) {
  const auto find = [&](std::string_view name) {
    return std::ranges::find(layout, name, &SequenceRunner::StateTensor::name);
  };
  const auto shift = find("shift_states"), wkv = find("wkv_states");
  if (shift == layout.end() || wkv == layout.end()) return {layout.begin(), layout.end()};
  const auto rows = find("wkv_exponents"), elapsed = find(kElapsed);
  const bool half = wkv->spec.dtype == DType::kF16;
  const int64_t layers = config.n_layer, size = config.head_size, heads = config.n_embd / size;
  std::vector<SequenceRunner::StateTensor> out;
  const auto part = [&](const std::string& name, const auto& of, TensorSpec spec, size_t index) {
    out.push_back({name, spec, of->offset + index * spec.bytes(), of->scale});
  };
  for (int64_t l = 0; l < layers; ++l) {
    const std::string block = str("blocks.", l, ".");
    const auto i = static_cast<size_t>(l);
    const TensorSpec width({1, config.n_embd}, shift->spec.dtype);
    part(block + "att.shift_state", shift, width, 2 * i);
    part(block + "att.wkv_state", wkv, TensorSpec({1, heads, size, size}, wkv->spec.dtype), i);
    if (half)
      part(block + "att.wkv_exponent", rows, TensorSpec({1, heads, size}, rows->spec.dtype), i);
    part(block + "ffn.shift_state", shift, width, 2 * i + 1);
  }
  part(kElapsed, elapsed, TensorSpec({1}, elapsed->spec.dtype), 0);
  return out;
}

void write_state_file(const std::string& path, Engine& engine, const RnnState& state,
                      int64_t tokens) {
  const auto layout = layout_of(state);
  std::vector<std::byte> bytes(bytes_of(layout));
  for (size_t i = 0; i < layout.size(); ++i)
    copy(engine.context(), TensorView(bytes.data() + layout[i].offset, layout[i].spec), state[i]);
  write(path, engine.model().config(), layout, bytes, tokens);
}

int64_t read_state_file(const std::string& path, Engine& engine, RnnState& state) {
  const auto layout = layout_of(state);
  std::vector<std::byte> bytes(bytes_of(layout));
  const int64_t tokens = read(path, layout, bytes);
  for (size_t i = 0; i < layout.size(); ++i)
    copy(engine.context(), state[i], TensorView(bytes.data() + layout[i].offset, layout[i].spec));
  return tokens;
}

void write_state_file(const std::string& path, SequenceRunner& runner, int64_t slot,
                      int64_t tokens) {
  std::vector<std::byte> bytes(runner.state_bytes());
  runner.save(slot, bytes);
  write(path, runner.config(), state_file_layout(runner.config(), runner.layout()), bytes, tokens);
}

int64_t read_state_file(const std::string& path, SequenceRunner& runner, int64_t slot) {
  std::vector<std::byte> bytes(runner.state_bytes());
  const int64_t tokens = read(path, state_file_layout(runner.config(), runner.layout()), bytes);
  runner.load(slot, bytes);
  return tokens;
}

}  // namespace rwkv
