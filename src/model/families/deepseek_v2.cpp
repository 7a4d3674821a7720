// DeepSeek-V2 and V2-Lite: latent attention, dense first layers, ungated shared experts, group-limited routing.
#include "base/text.h"
#include "model/families.h"

namespace dagmoe {
namespace {

void read_attention(ConfigKeys& keys, ModelConfig& config) {
  MlaConfig mla = {
      .q_lora_rank = 1536, .kv_lora_rank = 512, .qk_nope_head_dim = 128, .qk_rope_head_dim = 64, .v_head_dim = 128};
  if (!keys.is_absent("q_lora_rank") && keys.peek("q_lora_rank") == nullptr) mla.q_lora_rank = 0;
  keys.integer("q_lora_rank", mla.q_lora_rank, 1, kMaxHiddenSize);
  keys.integer("kv_lora_rank", mla.kv_lora_rank, 1, kMaxHiddenSize);
  keys.integer("qk_nope_head_dim", mla.qk_nope_head_dim, 1, kMaxHeadDim);
  keys.integer("qk_rope_head_dim", mla.qk_rope_head_dim, 2, kMaxHeadDim);
  keys.integer("v_head_dim", mla.v_head_dim, 1, kMaxHeadDim);
  if (mla.qk_rope_head_dim % 2 != 0) {
    keys.problem("qk_rope_head_dim", str("found ", mla.qk_rope_head_dim, ", expected an even number"));
  }
  if (mla.v_head_dim > mla.qk_nope_head_dim + mla.qk_rope_head_dim) {
    keys.problem("v_head_dim", str("found ", mla.v_head_dim, ", expected at most qk_nope_head_dim + qk_rope_head_dim (",
                                   mla.qk_nope_head_dim + mla.qk_rope_head_dim, ")"));
  }
  config.head_dim = mla.qk_rope_head_dim;  // what is rotated, as in transformers
  config.mla = mla;
}

void read_groups(ConfigKeys& keys, MoeConfig& moe) {
  keys.integer("n_group", moe.n_group, 1, kMaxExperts);
  keys.integer("topk_group", moe.topk_group, 1, kMaxExperts);
  const Json* method = keys.peek("topk_method");
  if (method == nullptr || *method == "greedy") {
    moe.n_group = moe.topk_group = 0;
  } else if (*method != "group_limited_greedy") {
    keys.problem("topk_method", str("found ", found_text(*method), ", supported: greedy, group_limited_greedy"));
  } else if (moe.n_group == 0 || moe.topk_group == 0 || moe.topk_group > moe.n_group) {
    keys.problem("topk_group", "group_limited_greedy needs 'n_group' and 'topk_group', at most as large");
  }
}

void read(ConfigKeys& keys, ModelConfig& config) {
  read_common(keys, config, {});
  config.num_key_value_heads = config.num_attention_heads;  // every head has its own keys once they are expanded
  read_attention(keys, config);
  MoeConfig moe = {.moe_intermediate_size = 1407, .norm_topk_prob = false};
  keys.number("routed_scaling_factor", moe.routed_scaling_factor, 0.0);
  keys.integer("moe_intermediate_size", moe.moe_intermediate_size, 1, kMaxIntermediateSize);
  keys.integer("first_k_dense_replace", moe.first_k_dense_replace, 0, kMaxLayers);
  std::int64_t num_shared = 2;
  keys.integer("n_shared_experts", num_shared, 0, kMaxExperts);
  moe.shared_expert_intermediate_size = num_shared * moe.moe_intermediate_size;
  read_groups(keys, moe);
  read_experts(keys, config, moe, 0.0);
  if (config.moe->n_group > 0 && config.moe->num_experts % config.moe->n_group != 0) {
    keys.problem("n_group", str("found ", config.moe->n_group, ", expected a divisor of the number of experts (",
                                config.moe->num_experts, ")"));
  }
  // transformers ignores these; the published models have the harmless values.
  if (config.model_type == "deepseek_v2") {
    keys.refuse_unless("norm_topk_prob", false, "renormalised weights are not part of this family");
    keys.refuse_unless("scoring_func", "softmax", "this family's router is softmax");
  }
  keys.refuse_unless("moe_layer_freq", 1, "experts in some layers only are not part of this family");
}

void write(const ModelConfig& config, Json& json) {
  const MoeConfig& moe = *config.moe;
  const MlaConfig& mla = *config.mla;
  json["q_lora_rank"] = mla.q_lora_rank > 0 ? Json(mla.q_lora_rank) : Json(nullptr);
  json["kv_lora_rank"] = mla.kv_lora_rank;
  json["qk_nope_head_dim"] = mla.qk_nope_head_dim;
  json["qk_rope_head_dim"] = mla.qk_rope_head_dim;
  json["v_head_dim"] = mla.v_head_dim;
  json["n_routed_experts"] = moe.num_experts;
  json["num_experts_per_tok"] = moe.num_experts_per_tok;
  json["moe_intermediate_size"] = moe.moe_intermediate_size;
  json["n_shared_experts"] = moe.shared_expert_intermediate_size / moe.moe_intermediate_size;
  json["first_k_dense_replace"] = moe.first_k_dense_replace;
  json["routed_scaling_factor"] = moe.routed_scaling_factor;
  json["n_group"] = moe.n_group > 0 ? Json(moe.n_group) : Json(nullptr);
  json["topk_group"] = moe.topk_group > 0 ? Json(moe.topk_group) : Json(nullptr);
}

std::string on_disk(std::string name) {
  replace_part(name, ".mlp.shared_expert.", ".mlp.shared_experts.");
  return name;
}

}  // namespace

extern const Family kDeepseekV2;
const Family kDeepseekV2 = {"deepseek_v2", "DeepseekV2ForCausalLM", read, write, on_disk, /*has_experts=*/true};

}  // namespace dagmoe
