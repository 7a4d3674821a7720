// Qwen3, dense: q and k normalized per head, head size set on its own.
#include "model/families.h"

namespace dagmoe {
namespace {

void read(ConfigKeys& keys, ModelConfig& config) {
  read_common(
      keys, config,
      {.max_position_embeddings = 32768, .bos_token_id = std::nullopt, .eos_token_id = std::nullopt, .head_dim = 128});
  read_attention_bias(keys, config);
  config.qk_norm = QkNorm::kPerHead;
  read_layered_window(keys, config);
}

void write(const ModelConfig& config, Json& json) { json["attention_bias"] = config.qkv_bias; }

}  // namespace

extern const Family kQwen3;
const Family kQwen3 = {"qwen3", "Qwen3ForCausalLM", read, write};

}  // namespace dagmoe
