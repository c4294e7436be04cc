#pragma once
/// Symbolic forward description: ops applied to symbolic values. Recorded once per shape, turned
/// into a plan (plan.h) and replayed. The graph knows nothing of RWKV.

#include <concepts>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/ops/op.h"

namespace rwkv {

/// Index of a parameter in the list that the graph was made with.
using ParamId = int32_t;

/// Name and shape of a parameter, as far as the graph is concerned.
struct GraphParam {
  std::string name;
  TensorSpec spec;
  bool transposed = false;  ///< kept (in, out), so that rows of zero inputs need not be read
};

/// A symbolic tensor of one graph. Default-constructed values are "none".
struct Value {
  int32_t id = -1;
  explicit operator bool() const { return id >= 0; }
  bool operator==(const Value&) const = default;
};
using Values = std::vector<Value>;

class Graph {
 public:
  struct ValueInfo {
    TensorSpec spec;
    std::string name;
    int32_t node = -1;            ///< producer, -1 for graph inputs
    bool differentiable = false;  ///< graph inputs only: its gradient is wanted
  };
  struct Node {
    const Op* op;
    Values in, out;
    std::vector<ParamId> params;
    std::vector<TensorSpec> saved;
    std::shared_ptr<const void> attrs;
    size_t workspace_bytes;
    double forward_flops, backward_flops;
    int32_t block;  ///< -1 outside of all blocks
    std::string label;
  };
  struct Named {
    std::string name;
    Value value;
  };
  /// Leaves its block when it goes out of scope.
  class BlockScope {
   public:
    ~BlockScope() { graph_->current_block_ = -1; }
    BlockScope(const BlockScope&) = delete;
    BlockScope& operator=(const BlockScope&) = delete;

   private:
    friend class Graph;
    explicit BlockScope(Graph* g) : graph_(g) {}
    Graph* graph_;
  };

  /// The parameters stay with the caller and must outlive the graph.
  explicit Graph(std::span<const GraphParam> params) : params_(params) {}

  /// A tensor that the caller fills before each run. `differentiable`: the plan also provides the
  /// gradient of the loss with respect to it.
  Value input(std::string name, const TensorSpec& spec, bool differentiable = false);

  /// Records op(in; params). `label` names the node and its outputs in dumps and traces; empty
  /// means the op's name. Throws what the op's shape inference throws, with the label in front.
  Values apply(const Op& op, Values in, std::vector<ParamId> params, std::string label);
  /// The same with the op's attributes, which are copied.
  template <class Attrs>
  Values apply(const Op& op, Values in, std::vector<ParamId> params, const Attrs& attrs,
               std::string label) {
    return apply_impl(op, std::move(in), std::move(params), std::make_shared<const Attrs>(attrs),
                      std::move(label));
  }

  /// Makes a value readable by name after a run.
  void output(std::string name, Value value);

  /// Ops applied while the scope lives belong to one block: the unit of recomputation, of capture
  /// and of gradient synchronisation. Blocks do not nest.
  [[nodiscard]] BlockScope block(std::string name);

  const TensorSpec& spec(Value v) const { return value(v).spec; }
  const ValueInfo& value(Value v) const;
  std::span<const ValueInfo> values() const { return values_; }
  std::span<const Node> nodes() const { return nodes_; }
  std::span<const Named> inputs() const { return inputs_; }
  std::span<const Named> outputs() const { return outputs_; }
  std::span<const std::string> blocks() const { return blocks_; }
  std::span<const GraphParam> params() const { return params_; }
  bool transposed(ParamId p) const { return params_[static_cast<size_t>(p)].transposed; }

 private:
  Values apply_impl(const Op& op, Values in, std::vector<ParamId> params,
                    std::shared_ptr<const void> attrs, std::string label);

  std::span<const GraphParam> params_;
  std::vector<ValueInfo> values_;
  std::vector<Node> nodes_;
  std::vector<Named> inputs_, outputs_;
  std::vector<std::string> blocks_;
  int32_t current_block_ = -1;
};

/// What a layer is: something that extends a graph.
template <class M>
concept Module = requires(const M m, Graph& g, Values x) {
  { m.build(g, x) } -> std::same_as<Values>;
};

}  // namespace rwkv
