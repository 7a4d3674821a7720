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
  MoeConfig moe = {.moe_intermediate_size = 1408, .shared_expert_intermediate_size = 5632, .shared_expert_gate = true};
  keys.integer("shared_expert_intermediate_size", moe.shared_expert_intermediate_size, 0, kMaxIntermediateSize);
  read_qwen_experts(keys, config, moe);
}

void write(const ModelConfig& config, Json& json) {
  json["qkv_bias"] = config.qkv_bias;
  json["shared_expert_intermediate_size"] = config.moe->shared_expert_intermediate_size;
  write_qwen_experts(config, json);
}

}  // namespace

extern const Family kQwen2Moe;
const Family kQwen2Moe = {"qwen2_moe", "Qwen2MoeForCausalLM", read, write, nullptr, /*has_experts=*/true};

}  // namespace dagmoe
