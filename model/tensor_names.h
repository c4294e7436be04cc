#pragma once
/// The names that other projects give to the tensors of RWKV models, and how they store them.
/// Our names and shapes are those of the published .pth files; '#' stands for the layer's number.

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace rwkv {

enum class Layout : uint8_t {
  kBlinkDl,  ///< .pth files, our HDF5: our names
  kFla,      ///< transformers folders of flash-linear-attention, RWKV-7
  kHf4,      ///< transformers' RwkvForCausalLM, RWKV-4
  kGguf,     ///< llama.cpp, RWKV-7
};
std::string_view layout_name(Layout layout);

/// What is done to our values to get theirs; the same way back.
enum class Change : uint8_t {
  kNone,
  kTranspose,  ///< (a, b) becomes (b, a)
  kFlatten,    ///< written with one dimension; read with any that fit
};

struct NameRule {
  std::string_view ours, theirs;
  Change change = Change::kNone;
};

/// All rules of a layout but kBlinkDl, which has none. Stacks are not among them.
std::span<const NameRule> name_rules(Layout layout);

/// Some layouts store x_r, x_w, x_k, x_v, x_a and x_g of a layer as one tensor, in this order.
std::span<const std::string_view> stacked_names();
/// The name of that tensor; empty for layouts without.
std::string_view stack_name(Layout layout);

/// "blocks.#.att.r_k" and 12 for "blocks.12.att.r_k"; -1 for names without a layer. None if the
/// number is not one that a layer can have.
struct LayeredName {
  std::string pattern;
  int64_t layer = -1;
};
std::optional<LayeredName> split_layer(std::string_view name);
/// The other way round.
std::string join_layer(std::string_view pattern, int64_t layer);

}  // namespace rwkv
