// Settings that GGUF files have no key for are those of llama.cpp's graph of the architecture.
#include "checkpoint/import_gguf_architectures.h"

#include <algorithm>
#include <array>
#include <vector>

namespace dagmoe {
namespace {

constexpr std::int64_t kSoftmaxGating = 1;  // of expert_gating_func

bool has_qkv_bias(const GgufMetadata& metadata) { return metadata.file().tensor("blk.0.attn_q.bias") != nullptr; }

/// Number of experts and how they are chosen; `norm_topk_prob` is fixed by the architecture.
void add_experts(const GgufMetadata& metadata, Json& config, bool norm_topk_prob) {
  config["num_experts"] = metadata.needed_integer(metadata.own("expert_count"));
  config["num_experts_per_tok"] = metadata.needed_integer(metadata.own("expert_used_count"));
  config["norm_topk_prob"] = norm_topk_prob;
}

void add_llama(const GgufMetadata& metadata, Json& config) {
  const std::int64_t num_experts = metadata.integer(metadata.own("expert_count")).value_or(0);
  config["model_type"] = num_experts == 0 ? "llama" : "mixtral";
  if (num_experts == 0) {
    config["attention_bias"] = has_qkv_bias(metadata);
    return;
  }
  config["num_local_experts"] = num_experts;
  config["num_experts_per_tok"] = metadata.needed_integer(metadata.own("expert_used_count"));
}

void add_qwen2(const GgufMetadata&, Json& config) {
  config["model_type"] = "qwen2";
  config["use_sliding_window"] = false;
}

void add_qwen3(const GgufMetadata& metadata, Json& config) {
  config["model_type"] = "qwen3";
  config["use_sliding_window"] = false;
  config["attention_bias"] = has_qkv_bias(metadata);
}

// feed_forward_length, and so intermediate_size, is the width of one expert.
void add_olmoe(const GgufMetadata& metadata, Json& config) {
  config["model_type"] = "olmoe";
  config["attention_bias"] = has_qkv_bias(metadata);
  const std::optional<double> clip = metadata.real(metadata.own("attention.clamp_kqv"));
  config["clip_qkv"] = clip && *clip > 0.0 ? Json(*clip) : Json(nullptr);
  add_experts(metadata, config, /*norm_topk_prob=*/false);
}

void add_qwen2_moe(const GgufMetadata& metadata, Json& config) {
  config["model_type"] = "qwen2_moe";
  config["use_sliding_window"] = false;
  config["qkv_bias"] = has_qkv_bias(metadata);
  add_experts(metadata, config, /*norm_topk_prob=*/false);
  config["moe_intermediate_size"] = metadata.needed_integer(metadata.own("expert_feed_forward_length"));
  config["shared_expert_intermediate_size"] =
      metadata.needed_integer(metadata.own("expert_shared_feed_forward_length"));
  config["decoder_sparse_step"] = 1;
  config["mlp_only_layers"] = Json::array();
}

void add_qwen3_moe(const GgufMetadata& metadata, Json& config) {
  config["model_type"] = "qwen3_moe";
  config["use_sliding_window"] = false;
  config["attention_bias"] = has_qkv_bias(metadata);
  add_experts(metadata, config, /*norm_topk_prob=*/true);
  config["moe_intermediate_size"] = metadata.needed_integer(metadata.own("expert_feed_forward_length"));
  config["decoder_sparse_step"] = 1;
  config["mlp_only_layers"] = Json::array();
}

constexpr std::array<GgufArchitecture, 6> kArchitectures = {{{"llama", true, add_llama},
                                                             {"qwen2", false, add_qwen2},
                                                             {"qwen3", false, add_qwen3},
                                                             {"olmoe", false, add_olmoe},
                                                             {"qwen2moe", false, add_qwen2_moe},
                                                             {"qwen3moe", false, add_qwen3_moe}}};

struct LayerName {
  std::string_view ours;
  const char* theirs;
};
constexpr std::array<LayerName, 19> kLayerNames = {{{"input_layernorm", "attn_norm"},
                                                    {"post_attention_layernorm", "ffn_norm"},
                                                    {"self_attn.q_proj", "attn_q"},
                                                    {"self_attn.k_proj", "attn_k"},
                                                    {"self_attn.v_proj", "attn_v"},
                                                    {"self_attn.o_proj", "attn_output"},
                                                    {"self_attn.q_norm", "attn_q_norm"},
                                                    {"self_attn.k_norm", "attn_k_norm"},
                                                    {"mlp.gate", "ffn_gate_inp"},
                                                    {"mlp.gate_proj", "ffn_gate"},
                                                    {"mlp.up_proj", "ffn_up"},
                                                    {"mlp.down_proj", "ffn_down"},
                                                    {"mlp.shared_expert_gate", "ffn_gate_inp_shexp"},
                                                    {"mlp.shared_expert.gate_proj", "ffn_gate_shexp"},
                                                    {"mlp.shared_expert.up_proj", "ffn_up_shexp"},
                                                    {"mlp.shared_expert.down_proj", "ffn_down_shexp"},
                                                    {"gate_proj", "ffn_gate"},
                                                    {"up_proj", "ffn_up"},
                                                    {"down_proj", "ffn_down"}}};

// A router that these families do not have would be silently wrong.
void check_router(const GgufMetadata& metadata) {
  const std::string gating = metadata.own("expert_gating_func"), scale = metadata.own("expert_weights_scale");
  if (const std::int64_t kind = metadata.integer(gating).value_or(kSoftmaxGating); kind != kSoftmaxGating) {
    metadata.fail(gating, str("found ", kind, ", supported: ", kSoftmaxGating, " (softmax)"));
  }
  // llama.cpp takes 0 for "none".
  if (const double factor = metadata.real(scale).value_or(1.0); factor != 1.0 && factor != 0.0) {
    metadata.fail(scale, str("found ", factor, "; a scale of the experts' weights is not supported"));
  }
}

}  // namespace

const GgufArchitecture& find_gguf_architecture(const GgufMetadata& metadata) {
  constexpr std::string_view kKey = "general.architecture";
  const std::string name = metadata.text(kKey);
  if (name.empty()) metadata.fail(kKey, "is missing");
  std::vector<std::string> known;
  for (const GgufArchitecture& architecture : kArchitectures) {
    if (architecture.name == name) {
      check_router(metadata);
      return architecture;
    }
    known.emplace_back(architecture.name);
  }
  metadata.fail(kKey,
                str("found ", quoted_for_message(name), ", supported: ", join(known, ", "), did_you_mean(name, known)));
}

std::string gguf_layer_name(std::string_view ours) {
  const auto found =
      std::find_if(kLayerNames.begin(), kLayerNames.end(), [&](const LayerName& name) { return name.ours == ours; });
  if (found == kLayerNames.end()) throw InternalError(str("parameter '", ours, "' has no name in GGUF files"));
  return found->theirs;
}

}  // namespace dagmoe
