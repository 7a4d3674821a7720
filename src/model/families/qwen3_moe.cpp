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
  read_qwen_experts(keys, config, {.moe_intermediate_size = 768});
}

void write(const ModelConfig& config, Json& json) {
  json["attention_bias"] = config.qkv_bias;
  write_qwen_experts(config, json);
}

}  // namespace

extern const Family kQwen3Moe;
const Family kQwen3Moe = {"qwen3_moe", "Qwen3MoeForCausalLM", read, write, nullptr, /*has_experts=*/true};

}  // namespace dagmoe
