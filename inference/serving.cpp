#include "inference/serving.h"

#include <unistd.h>

#include "inference/decode_weights.h"
#include "kernels/core/arena.h"
#include "kernels/core/backend.h"
#include "kernels/core/error.h"
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

void check_room(const ServingSize& size, int64_t slots, size_t room, std::string_view memory) {
  if (size.all() <= room) return;
  const size_t each = size.state + size.logits / static_cast<size_t>(slots);
  const size_t rest = size.all() - each * static_cast<size_t>(slots);
  const std::string what =
      str("serving takes more ", memory, " than there is: ", to_string(size, slots),
          "; there is room for ", format_bytes(room), ". ");
  RWKV_CHECK(rest + each <= room, DeviceError, what,
             "Not even one slot fits: use a smaller model, ", "or --weights with fewer bytes");
  throw DeviceError(str(what, "About ", (room - rest) / each, " slots fit (--slots)"));
}

void check_serving(const ModelConfig& config, const ServingOptions& options) {
  if (options.decode_kernels)
    RWKV_CHECK(decode_kernels_take(config), ConfigError,
               "decoding kernels take RWKV-7 with heads of 64 and a width of up to 4096; this "
               "model is ",
               config.architecture, ", ", config.n_embd, " wide");
  const bool cuda = options.decode_kernels || options.engine.device == Device::kCuda;
  const ServingSize size = serving_size(config, options);
  if (cuda && backend::has_cuda())
    check_room(size, options.runner.slots, backend::cuda_memory().free, "GPU memory");
  // The model's own weights are among it already.
  if (!cuda)
    check_room(size, options.runner.slots,
               static_cast<size_t>(::sysconf(_SC_PHYS_PAGES)) *
                   static_cast<size_t>(::sysconf(_SC_PAGESIZE)),
               "memory");
}

std::unique_ptr<Serving> make_serving(const Model& model, const ParamStore& weights,
                                      const ServingOptions& options) {
  check_serving(model.config(), options);
  if (options.decode_kernels) return make_decode_serving(model, weights, options);
  return std::make_unique<EngineServing>(model, weights, options);
}

}  // namespace rwkv
