#include "inference/serving.h"

#include <cstdint>

#include "inference/decode_weights.h"
#include "kernels/core/arena.h"
#include "kernels/core/backend.h"
#include "kernels/core/error.h"
#include "kernels/core/machine_memory.h"
#include "kernels/decode/batch.h"
#include "kernels/decode/layout.h"

namespace rwkv {
namespace {

/// Of an H200: the layout of weights hardly depends on it.
constexpr int kMultiprocessors = 132;

class EngineServing : public Serving {
 public:
  EngineServing(const Model& model, const ParamStore& weights, const ServingOptions& o)
      : engine_(model, weights, runner_engine_options(o.engine, o.runner)),
        runner_(make_engine_runner(engine_, o.runner)) {}
  SequenceRunner& runner() override { return *runner_; }

 private:
  Engine engine_;
  std::unique_ptr<SequenceRunner> runner_;
};

size_t device_weights(const Model& model, DType dtype) {
  size_t sum = 0;
  for (const GraphParam& p : model.params().graph_params(dtype)) sum += align_up(p.spec.bytes());
  return sum;
}

/// The file's, in f32, and the copies that the engine makes of matrices.
size_t host_weights(const Model& model, DType packed) {
  auto sum = static_cast<size_t>(model.params().flat_elements()) * sizeof(float);
  for (const GraphParam& p : model.params().packed_graph_params(packed))
    if (p.transposed || p.spec.dtype != DType::kF32) sum += align_up(p.spec.bytes());
  return sum;
}

}  // namespace

bool decode_kernels_take(const ModelConfig& c) {
  constexpr int64_t kWidest = int64_t{decode::kThreads} * 2 * decode::kMaxPairs;
  return c.architecture == "rwkv7" && c.head_size == decode::kHeadSize && c.n_embd <= kWidest &&
         c.n_embd % decode::kHeadSize == 0;
}

ServingSize serving_size(const ModelConfig& config, const ServingOptions& o) {
  const auto model = make_model(config);
  const auto slots = static_cast<size_t>(o.runner.slots);
  ServingSize s;
  s.logits = slots * static_cast<size_t>(config.vocab_size) * sizeof(float);
  if (!o.decode_kernels) {
    s.weights = o.engine.device == Device::kCuda ? device_weights(*model, o.engine.dtype)
                                                 : host_weights(*model, o.engine.weights);
    for (const auto& spec : model->state_specs(1, o.engine.dtype, o.engine.wkv))
      s.state += spec.spec.bytes();
    s.states = slots * s.state;
    return s;
  }
  const decode::Layout layout =
      decode::make_layout(decode_shape(config), o.weights, kMultiprocessors);
  s.weights = layout.bytes + layout.params() * sizeof(float);
  if (o.weights != DType::kF32)
    s.weights += decode::make_plain_layout(layout).bytes;
  else
    s.prefill = device_weights(*model, DType::kF32);
  const auto d = static_cast<size_t>(config.n_embd), layers = static_cast<size_t>(config.n_layer);
  // Rows of WKV states have exponents of a byte.
  s.state = layers * (2 * d * dtype_bytes(o.weights) +
                      d * decode::kHeadSize * (o.half_state ? sizeof(F16) : sizeof(float)) + d) +
            sizeof(int32_t);
  s.states = (slots + 1) * s.state;  // one for rows that fill a batch up
  return s;
}

std::string to_string(const ServingSize& s, int64_t slots) {
  std::string text = str("weights ", format_bytes(s.weights));
  if (s.prefill > 0) text += str(" + ", format_bytes(s.prefill), " for prompts");
  return text + str(", states ", format_bytes(s.states), " (", slots, " x ", format_bytes(s.state),
                    "), logits ", format_bytes(s.logits), ": ", format_bytes(s.all()),
                    " and activations");
}

ServingRoom serving_room(Device device, size_t taken) {
  if (device == Device::kCuda)
    return {backend::cuda_memory().free, "GPU memory", "what is free on the GPU", ""};
  const MachineMemory machine = machine_memory();
  if (machine.available == 0) return {SIZE_MAX, "memory", "", ""};
  return {machine.available + taken, "memory", machine.words(),
          machine.limit_file.empty() ? "" : "raise that limit"};
}

void check_room(const ServingSize& size, int64_t slots, const ServingRoom& room) {
  if (size.all() <= room.bytes) return;
  const size_t each = size.state + size.logits / static_cast<size_t>(slots);
  const size_t rest = size.all() - each * static_cast<size_t>(slots);
  const std::string what =
      str("serving takes more ", room.memory, " than there is: ", to_string(size, slots),
          "; expected at most ", format_bytes(room.bytes), ", ", room.words, ". ");
  const std::string advice = room.advice.empty() ? "" : str(", or ", room.advice);
  RWKV_CHECK(rest + each <= room.bytes, DeviceError, what,
             "Not even one slot fits: use a smaller model, or --weights with fewer bytes", advice);
  throw DeviceError(
      str(what, "About ", (room.bytes - rest) / each, " slots fit (--slots)", advice));
}

namespace {

/// `taken`: bytes of the model that are in memory already.
void check(const ModelConfig& config, const ServingOptions& options, size_t taken) {
  if (options.decode_kernels)
    RWKV_CHECK(decode_kernels_take(config), ConfigError,
               "decoding kernels take RWKV-7 with heads of 64 and a width of up to 4096; this "
               "model is ",
               config.architecture, ", ", config.n_embd, " wide");
  const bool cuda = options.decode_kernels || options.engine.device == Device::kCuda;
  if (cuda && !backend::has_cuda()) return;  // which is said by what is asked next
  check_room(serving_size(config, options), options.runner.slots,
             serving_room(cuda ? Device::kCuda : Device::kCpu, taken));
}

}  // namespace

void check_serving(const ModelConfig& config, const ServingOptions& options) {
  check(config, options, 0);
}

std::unique_ptr<Serving> make_serving(const Model& model, const ParamStore& weights,
                                      const ServingOptions& options) {
  const auto file = static_cast<size_t>(model.params().flat_elements()) * sizeof(float);
  check(model.config(), options, file);
  if (options.decode_kernels) return make_decode_serving(model, weights, options);
  return std::make_unique<EngineServing>(model, weights, options);
}

}  // namespace rwkv
