// Qwen2 and Qwen2.5: biases on q, k and v, whatever the config says.
#include "model/families.h"

namespace dagmoe {
namespace {

void read(ConfigKeys& keys, ModelConfig& config) {
  read_common(keys, config,
              {.max_position_embeddings = 32768, .bos_token_id = std::nullopt, .eos_token_id = std::nullopt});
  config.qkv_bias = true;
  read_layered_window(keys, config);
}

void write(const ModelConfig&, Json&) {}

}  // namespace

extern const Family kQwen2;
const Family kQwen2 = {"qwen2", "Qwen2ForCausalLM", read, write};

}  // namespace dagmoe
