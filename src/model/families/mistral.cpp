// Mistral: Llama with a sliding window.
#include "model/families.h"

namespace dagmoe {
namespace {

constexpr std::int64_t kWindowWhenAbsent = 4096;

void read(ConfigKeys& keys, ModelConfig& config) {
  read_common(keys, config, {.max_position_embeddings = 131072});
  read_sliding_window(keys, config, kWindowWhenAbsent);
}

void write(const ModelConfig& config, Json& json) {
  // An absent key would mean the default window.
  if (config.sliding_window == 0) json["sliding_window"] = nullptr;
}

}  // namespace

extern const Family kMistral;
const Family kMistral = {"mistral", "MistralForCausalLM", read, write};

}  // namespace dagmoe
