#pragma once
/// A model: its parameters and its forward description. Read this first.

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "model/config.h"
#include "model/graph/graph.h"
#include "model/init.h"
#include "model/params.h"

namespace rwkv {

/// What a graph is recorded for.
struct GraphOptions {
  int64_t batch = 1, tokens = 1;
  enum class Mode : uint8_t {
    kLoss,        ///< outputs "loss" (scalar) and "token_loss" (B, T); input "targets"
    kLogits,      ///< output "logits" (B, T, V)
    kLastLogits,  ///< output "logits" (B, 1, V): those after the last token only
  } mode = Mode::kLoss;
  /// Recurrent state comes in and goes out: inputs and outputs of the same names, those of
  /// Model::state_specs.
  bool state = false;
  bool l2wrap = true;  ///< kLoss only
  int64_t loss_chunk_tokens =
      0;                     ///< kLoss only: 0 keeps all logits, n recomputes n tokens at a time
  std::string wkv = "auto";  ///< WKV variant, see select_wkv
  Device device = Device::kCpu;
  DType dtype = DType::kF32;  ///< of activations and matrices: f32, or bf16 on CUDA
  /// On the CPU the matrices but the embedding may be packed (packed_graph_params), always where
  /// `weights` is not f32. Forward only.
  bool packed = false;
  DType weights = DType::kF32;
  /// kLogits and kLastLogits: the logits are f32 whatever `dtype` is. Forward only.
  bool f32_logits = false;
  /// kLogits only: also name intermediates of this block as outputs, for tests ("layer/r", ...).
  int64_t expose_layer = -1;
};

/// What initial values depend on besides the architecture and its sizes.
struct InitOptions {
  uint64_t seed = 1;
  /// The learning rate that training starts from: the embedding of RWKV-4 is uniform in +-lr.
  double lr = 6e-4;
};

/// Wkv7Attrs::state_scale of models with a binary16 state. At the length that a model was trained
/// with, slow heads gather states of 10^3 to 10^4, and sums over their rows pass 65504; this leaves
/// room up to 1.6e7 and full precision down to 0.016. For what expands further (a head was seen to
/// reach 9e7) rows have exponents: Wkv7Attrs::row_exponents, docs/fp16-state.md.
inline constexpr float kHalfStateScale = 1.0F / 256;

/// The name of the tensor with the exponents of a binary16 WKV state: "X.wkv_exponent" for
/// "X.wkv_state"; empty for other names.
std::string exponent_name(std::string_view state);

/// One architecture at one size. Inputs of every graph: "tokens" (B, T) i32.
class Model {
 public:
  virtual ~Model() = default;
  const ModelConfig& config() const { return config_; }
  const ParamRegistry& params() const { return params_; }

  /// Records the forward. The model must outlive the graph. Throws ConfigError or ShapeError if
  /// the options do not fit (no WKV variant, say).
  virtual Graph build(const GraphOptions& options) const = 0;

  /// Recurrent state of `batch` sequences, by name, in a fixed order.
  struct StateSpec {
    std::string name;
    TensorSpec spec;    ///< leading dimension = batch
    float initial = 0;  ///< every element of a fresh sequence's
    /// The tensor holds this multiple of the state: see Wkv7Attrs::state_scale.
    float scale = 1;
  };
  /// Shift states have the type of the activations, the WKV state is f32.
  virtual std::vector<StateSpec> state_specs(int64_t batch,
                                             DType activations = DType::kF32) const = 0;
  /// The same for graphs with this WKV variant (GraphOptions::wkv). One with a binary16 state has
  /// f16 WKV states, right behind each of them "blocks.N.att.wkv_exponent" (batch, heads, head
  /// size) i8, the exponents of its rows (kernels/wkv/row_exponent.h), and "elapsed" (batch) i32 as
  /// the last: the tokens that each sequence has seen.
  std::vector<StateSpec> state_specs(int64_t batch, DType activations, std::string_view wkv) const;

  /// The initial values of spec rwkv7 1.3 or rwkv4 1, tensor by tensor: a pure function of options
  /// and tensor name. For every parameter; nothing is computed yet.
  virtual std::vector<InitTensor> initial_values(const InitOptions& options) const = 0;
  /// Writes all of them, on all threads.
  void init_params(ParamStore& values, const InitOptions& options) const;

  /// Name of the WKV variant that build() resolves to.
  virtual std::string wkv_name(const GraphOptions& options) const = 0;

 protected:
  explicit Model(ModelConfig config) : config_(std::move(config)) {}
  ModelConfig config_;
  ParamRegistry params_;
};

/// By config.architecture. Throws ConfigError for an unknown one.
std::unique_ptr<Model> make_model(const ModelConfig& config);

}  // namespace rwkv
