// Qwen1.5-MoE and Qwen2-MoE: a gated shared expert, biases on q, k and v, some layers dense.
#include "model/families.h"

namespace dagmoe {
namespace {

void read(ConfigKeys& keys, ModelConfig& config) {
  read_common(keys, config,
              {.max_position_embeddings = 32768, .bos_token_id = std::nullopt, .eos_token_id = std::nullopt});
  config.qkv_bias = true;
  keys.boolean("qkv_bias", config.qkv_bias);
  keys.refuse_unless("use_sliding_window", false, "sliding windows of this family are not supported");
  MoeConfig moe = {.moe_intermediate_size = 1408,
                   .norm_topk_prob = false,
                   .shared_expert_intermediate_size = 5632,
                   .shared_expert_gate = true};
  keys.boolean("norm_topk_prob", moe.norm_topk_prob);
  keys.integer("moe_intermediate_size", moe.moe_intermediate_size, 1, kMaxIntermediateSize);
  keys.integer("shared_expert_intermediate_size", moe.shared_expert_intermediate_size, 0, kMaxIntermediateSize);
  keys.integer("decoder_sparse_step", moe.decoder_sparse_step, 1, kMaxLayers);
  keys.layers("mlp_only_layers", moe.mlp_only_layers, config.num_hidden_layers);
  read_experts(keys, config, moe, 0.001);
}

void write(const ModelConfig& config, Json& json) {
  const MoeConfig& moe = *config.moe;
  json["qkv_bias"] = config.qkv_bias;
  json["num_experts"] = moe.num_experts;
  json["num_experts_per_tok"] = moe.num_experts_per_tok;
  json["norm_topk_prob"] = moe.norm_topk_prob;
  json["moe_intermediate_size"] = moe.moe_intermediate_size;
  json["shared_expert_intermediate_size"] = moe.shared_expert_intermediate_size;
  json["decoder_sparse_step"] = moe.decoder_sparse_step;
  json["mlp_only_layers"] = moe.mlp_only_layers;
  json["router_aux_loss_coef"] = config.router_aux_loss_coef;
}

}  // namespace

extern const Family kQwen2Moe;
const Family kQwen2Moe = {"qwen2_moe", "Qwen2MoeForCausalLM", read, write, nullptr, /*has_experts=*/true};

}  // namespace dagmoe
