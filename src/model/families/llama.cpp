// Llama 2 and 3, TinyLlama, SmolLM2.
#include "model/families.h"

namespace dagmoe {
namespace {

void read(ConfigKeys& keys, ModelConfig& config) {
  read_common(keys, config, {});
  read_attention_bias(keys, config);
  keys.boolean("mlp_bias", config.mlp_bias);
  keys.refuse_unless("sliding_window", nullptr, "Llama has no sliding window");
}

void write(const ModelConfig& config, Json& json) {
  json["attention_bias"] = config.qkv_bias;
  json["mlp_bias"] = config.mlp_bias;
}

}  // namespace

extern const Family kLlama;
const Family kLlama = {"llama", "LlamaForCausalLM", read, write};

}  // namespace dagmoe
