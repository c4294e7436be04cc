#pragma once
/// What the architectures share: embedding, blocks of a time mix and a channel mix with their layer
/// norms, head. Spec rwkv7 2.1, rwkv4 2.

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/wkv/wkv.h"
#include "model/rwkv.h"

namespace rwkv {

class BlockModel : public Model {
 public:
  Graph build(const GraphOptions& options) const final;
  std::string wkv_name(const GraphOptions& options) const final;

 protected:
  struct LayerNormParams {
    ParamId weight, bias;
  };
  /// What one block is recorded with.
  struct BlockCall {
    size_t layer;
    std::span<const Value> state;  ///< inputs of this block as in state_specs; empty without state
    const WkvKernel& wkv;
    bool expose;     ///< name the intermediates as outputs
    bool fused_ffn;  ///< the products of the channel mix and what is between them are one op
    Value& v_first;  ///< RWKV-7: layer 0's value
    Value elapsed;   ///< "elapsed" of state_specs, if the variant counts tokens
    Value& elapsed_out;
  };

  using Model::Model;

  // The constructor of an architecture calls these and adds its own tensors, in the order that the
  // parameters have in memory: embedding, for every block its norms and layers, head.
  void add_embedding();
  void add_block_norms(int64_t layer);  ///< ln1 and ln2; ln0 in layer 0
  void add_head();

  /// Records a block: x (B, T, C) to the residual stream after it.
  virtual Value build_block(Graph& g, const BlockCall& call, Value x) const = 0;
  virtual const WkvKernel& select(const GraphOptions& options) const = 0;

  /// ln1 or ln2 (which = 1, 2) of a block.
  Value block_norm(Graph& g, size_t layer, int which, Value x) const;

  ParamId emb_ = -1, head_ = -1;

 private:
  LayerNormParams add_layer_norm(const std::string& name, const std::string& bucket);

  LayerNormParams ln0_{}, ln_out_{};
  std::vector<LayerNormParams> ln1_, ln2_;
};

/// One maker per architecture, for make_model. `config` is finished.
std::unique_ptr<Model> make_rwkv4(const ModelConfig& config);
std::unique_ptr<Model> make_rwkv7(const ModelConfig& config);

}  // namespace rwkv
