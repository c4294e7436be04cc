#include "model/tensor_names.h"

#include <algorithm>
#include <array>
#include <charconv>

namespace rwkv {
namespace {

constexpr int64_t kMaxLayers = 1024;  // ModelConfig's limit

constexpr std::array kFla = {
    NameRule{"emb.weight", "model.embeddings.weight"},
    NameRule{"head.weight", "lm_head.weight"},
    NameRule{"ln_out.weight", "model.norm.weight"},
    NameRule{"ln_out.bias", "model.norm.bias"},
    NameRule{"blocks.#.ln0.weight", "model.layers.#.pre_norm.weight"},
    NameRule{"blocks.#.ln0.bias", "model.layers.#.pre_norm.bias"},
    NameRule{"blocks.#.ln1.weight", "model.layers.#.attn_norm.weight"},
    NameRule{"blocks.#.ln1.bias", "model.layers.#.attn_norm.bias"},
    NameRule{"blocks.#.ln2.weight", "model.layers.#.ffn_norm.weight"},
    NameRule{"blocks.#.ln2.bias", "model.layers.#.ffn_norm.bias"},
    NameRule{"blocks.#.att.x_r", "model.layers.#.attn.x_r"},
    NameRule{"blocks.#.att.x_w", "model.layers.#.attn.x_w"},
    NameRule{"blocks.#.att.x_k", "model.layers.#.attn.x_k"},
    NameRule{"blocks.#.att.x_v", "model.layers.#.attn.x_v"},
    NameRule{"blocks.#.att.x_a", "model.layers.#.attn.x_a"},
    NameRule{"blocks.#.att.x_g", "model.layers.#.attn.x_g"},
    NameRule{"blocks.#.att.w0", "model.layers.#.attn.w_lora.lora.2.bias", Change::kFlatten},
    NameRule{"blocks.#.att.w1", "model.layers.#.attn.w_lora.lora.0.weight", Change::kTranspose},
    NameRule{"blocks.#.att.w2", "model.layers.#.attn.w_lora.lora.2.weight", Change::kTranspose},
    NameRule{"blocks.#.att.a0", "model.layers.#.attn.a_lora.lora.2.bias", Change::kFlatten},
    NameRule{"blocks.#.att.a1", "model.layers.#.attn.a_lora.lora.0.weight", Change::kTranspose},
    NameRule{"blocks.#.att.a2", "model.layers.#.attn.a_lora.lora.2.weight", Change::kTranspose},
    NameRule{"blocks.#.att.v0", "model.layers.#.attn.v_lora.lora.2.bias", Change::kFlatten},
    NameRule{"blocks.#.att.v1", "model.layers.#.attn.v_lora.lora.0.weight", Change::kTranspose},
    NameRule{"blocks.#.att.v2", "model.layers.#.attn.v_lora.lora.2.weight", Change::kTranspose},
    NameRule{"blocks.#.att.g1", "model.layers.#.attn.g_lora.lora.0.weight", Change::kTranspose},
    NameRule{"blocks.#.att.g2", "model.layers.#.attn.g_lora.lora.2.weight", Change::kTranspose},
    NameRule{"blocks.#.att.k_k", "model.layers.#.attn.k_k", Change::kFlatten},
    NameRule{"blocks.#.att.k_a", "model.layers.#.attn.k_a", Change::kFlatten},
    NameRule{"blocks.#.att.r_k", "model.layers.#.attn.r_k"},
    NameRule{"blocks.#.att.receptance.weight", "model.layers.#.attn.r_proj.weight"},
    NameRule{"blocks.#.att.key.weight", "model.layers.#.attn.k_proj.weight"},
    NameRule{"blocks.#.att.value.weight", "model.layers.#.attn.v_proj.weight"},
    NameRule{"blocks.#.att.output.weight", "model.layers.#.attn.o_proj.weight"},
    NameRule{"blocks.#.att.ln_x.weight", "model.layers.#.attn.g_norm.weight"},
    NameRule{"blocks.#.att.ln_x.bias", "model.layers.#.attn.g_norm.bias"},
    NameRule{"blocks.#.ffn.x_k", "model.layers.#.ffn.x_k", Change::kFlatten},
    NameRule{"blocks.#.ffn.key.weight", "model.layers.#.ffn.key.weight"},
    NameRule{"blocks.#.ffn.value.weight", "model.layers.#.ffn.value.weight"},
};

constexpr std::array kHf4 = {
    NameRule{"emb.weight", "rwkv.embeddings.weight"},
    NameRule{"head.weight", "head.weight"},
    NameRule{"ln_out.weight", "rwkv.ln_out.weight"},
    NameRule{"ln_out.bias", "rwkv.ln_out.bias"},
    NameRule{"blocks.#.ln0.weight", "rwkv.blocks.#.pre_ln.weight"},
    NameRule{"blocks.#.ln0.bias", "rwkv.blocks.#.pre_ln.bias"},
    NameRule{"blocks.#.ln1.weight", "rwkv.blocks.#.ln1.weight"},
    NameRule{"blocks.#.ln1.bias", "rwkv.blocks.#.ln1.bias"},
    NameRule{"blocks.#.ln2.weight", "rwkv.blocks.#.ln2.weight"},
    NameRule{"blocks.#.ln2.bias", "rwkv.blocks.#.ln2.bias"},
    NameRule{"blocks.#.att.time_decay", "rwkv.blocks.#.attention.time_decay"},
    NameRule{"blocks.#.att.time_first", "rwkv.blocks.#.attention.time_first"},
    NameRule{"blocks.#.att.time_mix_k", "rwkv.blocks.#.attention.time_mix_key"},
    NameRule{"blocks.#.att.time_mix_v", "rwkv.blocks.#.attention.time_mix_value"},
    NameRule{"blocks.#.att.time_mix_r", "rwkv.blocks.#.attention.time_mix_receptance"},
    NameRule{"blocks.#.att.key.weight", "rwkv.blocks.#.attention.key.weight"},
    NameRule{"blocks.#.att.value.weight", "rwkv.blocks.#.attention.value.weight"},
    NameRule{"blocks.#.att.receptance.weight", "rwkv.blocks.#.attention.receptance.weight"},
    NameRule{"blocks.#.att.output.weight", "rwkv.blocks.#.attention.output.weight"},
    NameRule{"blocks.#.ffn.time_mix_k", "rwkv.blocks.#.feed_forward.time_mix_key"},
    NameRule{"blocks.#.ffn.time_mix_r", "rwkv.blocks.#.feed_forward.time_mix_receptance"},
    NameRule{"blocks.#.ffn.key.weight", "rwkv.blocks.#.feed_forward.key.weight"},
    NameRule{"blocks.#.ffn.receptance.weight", "rwkv.blocks.#.feed_forward.receptance.weight"},
    NameRule{"blocks.#.ffn.value.weight", "rwkv.blocks.#.feed_forward.value.weight"},
};

constexpr std::array kGguf = {
    NameRule{"emb.weight", "token_embd.weight"},
    NameRule{"head.weight", "output.weight"},
    NameRule{"ln_out.weight", "output_norm.weight"},
    NameRule{"ln_out.bias", "output_norm.bias"},
    NameRule{"blocks.0.ln0.weight", "token_embd_norm.weight"},
    NameRule{"blocks.0.ln0.bias", "token_embd_norm.bias"},
    NameRule{"blocks.#.ln1.weight", "blk.#.attn_norm.weight"},
    NameRule{"blocks.#.ln1.bias", "blk.#.attn_norm.bias"},
    NameRule{"blocks.#.ln2.weight", "blk.#.attn_norm_2.weight"},
    NameRule{"blocks.#.ln2.bias", "blk.#.attn_norm_2.bias"},
    NameRule{"blocks.#.att.w0", "blk.#.time_mix_w0.weight", Change::kFlatten},
    NameRule{"blocks.#.att.w1", "blk.#.time_mix_w1.weight", Change::kTranspose},
    NameRule{"blocks.#.att.w2", "blk.#.time_mix_w2.weight", Change::kTranspose},
    NameRule{"blocks.#.att.a0", "blk.#.time_mix_a0.weight", Change::kFlatten},
    NameRule{"blocks.#.att.a1", "blk.#.time_mix_a1.weight", Change::kTranspose},
    NameRule{"blocks.#.att.a2", "blk.#.time_mix_a2.weight", Change::kTranspose},
    NameRule{"blocks.#.att.v0", "blk.#.time_mix_v0.weight", Change::kFlatten},
    NameRule{"blocks.#.att.v1", "blk.#.time_mix_v1.weight", Change::kTranspose},
    NameRule{"blocks.#.att.v2", "blk.#.time_mix_v2.weight", Change::kTranspose},
    NameRule{"blocks.#.att.g1", "blk.#.time_mix_g1.weight", Change::kTranspose},
    NameRule{"blocks.#.att.g2", "blk.#.time_mix_g2.weight", Change::kTranspose},
    NameRule{"blocks.#.att.k_k", "blk.#.time_mix_k_k.weight", Change::kFlatten},
    NameRule{"blocks.#.att.k_a", "blk.#.time_mix_k_a.weight", Change::kFlatten},
    NameRule{"blocks.#.att.r_k", "blk.#.time_mix_r_k.weight", Change::kFlatten},
    NameRule{"blocks.#.att.receptance.weight", "blk.#.time_mix_receptance.weight"},
    NameRule{"blocks.#.att.key.weight", "blk.#.time_mix_key.weight"},
    NameRule{"blocks.#.att.value.weight", "blk.#.time_mix_value.weight"},
    NameRule{"blocks.#.att.output.weight", "blk.#.time_mix_output.weight"},
    NameRule{"blocks.#.att.ln_x.weight", "blk.#.time_mix_ln.weight"},
    NameRule{"blocks.#.att.ln_x.bias", "blk.#.time_mix_ln.bias"},
    NameRule{"blocks.#.ffn.x_k", "blk.#.channel_mix_lerp_k.weight", Change::kFlatten},
    NameRule{"blocks.#.ffn.key.weight", "blk.#.channel_mix_key.weight"},
    NameRule{"blocks.#.ffn.value.weight", "blk.#.channel_mix_value.weight"},
};

constexpr std::array<std::string_view, 6> kStacked = {"blocks.#.att.x_r", "blocks.#.att.x_w",
                                                      "blocks.#.att.x_k", "blocks.#.att.x_v",
                                                      "blocks.#.att.x_a", "blocks.#.att.x_g"};

}  // namespace

std::string_view layout_name(Layout layout) {
  constexpr std::array<std::string_view, 4> kNames = {"BlinkDL", "fla", "transformers",
                                                      "llama.cpp"};
  return kNames[static_cast<size_t>(layout)];
}

std::span<const NameRule> name_rules(Layout layout) {
  switch (layout) {
    case Layout::kFla:
      return kFla;
    case Layout::kHf4:
      return kHf4;
    case Layout::kGguf:
      return kGguf;
    case Layout::kBlinkDl:
      break;
  }
  return {};
}

std::span<const std::string_view> stacked_names() {
  return kStacked;
}

std::string_view stack_name(Layout layout) {
  if (layout == Layout::kGguf) return "blk.#.time_mix_lerp_fused.weight";
  // Only old files have it: what is written there are the six tensors.
  if (layout == Layout::kFla) return "model.layers.#.attn.x_x";
  return {};
}

std::optional<LayeredName> split_layer(std::string_view name) {
  for (size_t at = 0; at < name.size();) {
    const size_t end = std::min(name.find('.', at), name.size());
    const std::string_view part = name.substr(at, end - at);
    if (!part.empty() && part.find_first_not_of("0123456789") == std::string_view::npos) {
      int64_t layer = 0;
      const auto [rest, error] = std::from_chars(part.data(), part.data() + part.size(), layer);
      if (error != std::errc{} || layer >= kMaxLayers || (part[0] == '0' && part.size() > 1))
        return std::nullopt;
      return LayeredName{std::string(name.substr(0, at)) + "#" + std::string(name.substr(end)),
                         layer};
    }
    at = end + 1;
  }
  return LayeredName{std::string(name), -1};
}

std::string join_layer(std::string_view pattern, int64_t layer) {
  std::string name(pattern);
  if (const size_t at = name.find('#'); at != std::string::npos)
    name.replace(at, 1, std::to_string(layer));
  return name;
}

}  // namespace rwkv
