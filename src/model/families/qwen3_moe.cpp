// Qwen3-MoE: q and k normalized per head, head size set on its own, no shared expert, some layers dense.
#include "model/families.h"

namespace dagmoe {
namespace {

void read(ConfigKeys& keys, ModelConfig& config) {
  read_common(keys, config,
              {.max_position_embeddings = 32768, .bos_token_id = std::nullopt, .eos_token_id = std::nullopt});
  read_attention_bias(keys, config);
  config.qk_norm = QkNorm::kPerHead;
  if (const Json* use = keys.peek("use_sliding_window"); use != nullptr && *use == true) {
    read_sliding_window(keys, config, 4096);
  }
  MoeConfig moe = {.moe_intermediate_size = 768, .norm_topk_prob = false};
  keys.boolean("norm_topk_prob", moe.norm_topk_prob);
  keys.integer("moe_intermediate_size", moe.moe_intermediate_size, 1, kMaxIntermediateSize);
  keys.integer("decoder_sparse_step", moe.decoder_sparse_step, 1, kMaxLayers);
  keys.layers("mlp_only_layers", moe.mlp_only_layers, config.num_hidden_layers);
  read_experts(keys, config, moe, 0.001);
}

void write(const ModelConfig& config, Json& json) {
  const MoeConfig& moe = *config.moe;
  json["attention_bias"] = config.qkv_bias;
  json["num_experts"] = moe.num_experts;
  json["num_experts_per_tok"] = moe.num_experts_per_tok;
  json["norm_topk_prob"] = moe.norm_topk_prob;
  json["moe_intermediate_size"] = moe.moe_intermediate_size;
  json["decoder_sparse_step"] = moe.decoder_sparse_step;
  json["mlp_only_layers"] = moe.mlp_only_layers;
  json["router_aux_loss_coef"] = config.router_aux_loss_coef;
}

}  // namespace

extern const Family kQwen3Moe;
const Family kQwen3Moe = {"qwen3_moe", "Qwen3MoeForCausalLM", read, write, nullptr, /*has_experts=*/true};

}  // namespace dagmoe
