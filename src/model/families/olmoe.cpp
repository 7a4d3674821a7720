// OLMoE: q and k normalized over the whole projection, then clipped; intermediate_size is the width of one expert.
#include "model/families.h"

namespace dagmoe {
namespace {

void read(ConfigKeys& keys, ModelConfig& config) {
  read_common(keys, config,
              {.rms_norm_eps = 1e-5,
               .max_position_embeddings = 4096,
               .bos_token_id = std::nullopt,
               .eos_token_id = 50279,
               .pad_token_id = 1});
  read_attention_bias(keys, config);
  config.qk_norm = QkNorm::kWholeProjection;
  if (double clip = 0.0; keys.number("clip_qkv", clip, 0.0)) config.clip_qkv = clip;
  MoeConfig moe = {.norm_topk_prob = false};
  keys.boolean("norm_topk_prob", moe.norm_topk_prob);
  read_experts(keys, config, moe, 0.01);
}

void write(const ModelConfig& config, Json& json) {
  json["attention_bias"] = config.qkv_bias;
  json["clip_qkv"] = config.clip_qkv ? Json(*config.clip_qkv) : Json(nullptr);
  json["num_experts"] = config.moe->num_experts;
  json["num_experts_per_tok"] = config.moe->num_experts_per_tok;
  json["norm_topk_prob"] = config.moe->norm_topk_prob;
  json["router_aux_loss_coef"] = config.router_aux_loss_coef;
}

}  // namespace

extern const Family kOlmoe;
const Family kOlmoe = {"olmoe", "OlmoeForCausalLM", read, write, nullptr, /*has_experts=*/true};

}  // namespace dagmoe
