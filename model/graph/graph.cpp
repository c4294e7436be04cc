#include "model/graph/graph.h"

#include <utility>

namespace rwkv {

const Graph::ValueInfo& Graph::value(Value v) const {
  RWKV_ASSERT(v.id >= 0 && static_cast<size_t>(v.id) < values_.size(), "value ", v.id);
  return values_[static_cast<size_t>(v.id)];
}

Value Graph::input(std::string name, const TensorSpec& spec, bool differentiable) {
  for (const Named& n : inputs_) RWKV_ASSERT(n.name != name, "two inputs are called ", name);
  RWKV_ASSERT(!differentiable || spec.dtype == DType::kF32, "input ", name);
  const Value v{static_cast<int32_t>(values_.size())};
  values_.push_back({.spec = spec, .name = name, .node = -1, .differentiable = differentiable});
  inputs_.push_back({std::move(name), v});
  return v;
}

void Graph::output(std::string name, Value v) {
  value(v);
  for (const Named& n : outputs_) RWKV_ASSERT(n.name != name, "two outputs are called ", name);
  outputs_.push_back({std::move(name), v});
}

Graph::BlockScope Graph::block(std::string name) {
  RWKV_ASSERT(current_block_ == -1, "block ", name, " opened inside block ",
              blocks_[static_cast<size_t>(current_block_)]);
  current_block_ = static_cast<int32_t>(blocks_.size());
  blocks_.push_back(std::move(name));
  return BlockScope(this);
}

Values Graph::apply(const Op& op, Values in, std::vector<ParamId> params, std::string label) {
  return apply_impl(op, std::move(in), std::move(params), nullptr, std::move(label));
}

Values Graph::apply_impl(const Op& op, Values in, std::vector<ParamId> params,
                         std::shared_ptr<const void> attrs, std::string label) {
  if (label.empty()) label = op.name;
  std::vector<TensorSpec> in_specs, param_specs;
  for (size_t i = 0; i < in.size(); ++i) {
    in_specs.push_back(spec(in[i]));
    // Write and add modes are decided per value: one value in two places of one call would need
    // kernels to finish the first gradient before the second.
    for (size_t j = 0; j < i; ++j)
      RWKV_ASSERT(in[i] != in[j], label, ": inputs ", j, " and ", i, " are the same value");
  }
  for (const ParamId p : params) {
    RWKV_ASSERT(p >= 0 && static_cast<size_t>(p) < params_.size(), label, ": parameter ", p);
    param_specs.push_back(params_[static_cast<size_t>(p)].spec);
  }
  ShapeCall shape{.in = in_specs, .param = param_specs, .attrs = attrs.get()};
  try {
    op.infer(shape);
  } catch (const ShapeError& e) {
    throw ShapeError(str(label, ": ", e.what()));
  } catch (const ConfigError& e) {
    throw ConfigError(str(label, ": ", e.what()));
  }
  Node node{.op = &op,
            .in = std::move(in),
            .out = {},
            .params = std::move(params),
            .saved = std::move(shape.saved),
            .attrs = std::move(attrs),
            .workspace_bytes = shape.workspace_bytes,
            .forward_flops = op.forward_flops ? op.forward_flops(shape) : 0,
            .backward_flops = op.backward_flops ? op.backward_flops(shape) : 0,
            .block = current_block_,
            .label = std::move(label)};
  const auto node_id = static_cast<int32_t>(nodes_.size());
  for (size_t i = 0; i < shape.out.size(); ++i) {
    node.out.push_back({static_cast<int32_t>(values_.size())});
    values_.push_back({.spec = shape.out[i],
                       .name = shape.out.size() == 1 ? node.label : str(node.label, ".", i),
                       .node = node_id});
  }
  nodes_.push_back(std::move(node));
  return nodes_.back().out;
}

}  // namespace rwkv
