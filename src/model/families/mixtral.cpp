// Mixtral: Mistral with experts, named w1 (gate), w2 (down), w3 (up) in block_sparse_moe.
#include <array>

#include "model/families.h"

namespace dagmoe {
namespace {

void read(ConfigKeys& keys, ModelConfig& config) {
  read_common(keys, config, {.rms_norm_eps = 1e-5, .rope_theta = 1e6, .max_position_embeddings = 131072});
  read_sliding_window(keys, config);
  read_experts(keys, config, {.norm_topk_prob = true}, 0.001);
  // Keys of other families' routers, which transformers would ignore here.
  for (const auto& [key, value] : {std::pair{"scoring_func", Json("softmax")},
                                   {"norm_topk_prob", Json(true)},
                                   {"routed_scaling_factor", Json(1.0)}}) {
    if (config.model_type == "mixtral") {
      keys.refuse_unless(key, value,
                         "Mixtral's router is softmax, renormalised, without a scale; another needs 'dagmoe'");
    }
  }
}

void write(const ModelConfig& config, Json& json) {
  if (config.sliding_window == 0) json["sliding_window"] = nullptr;
  json["num_local_experts"] = config.moe->num_experts;
  json["num_experts_per_tok"] = config.moe->num_experts_per_tok;
  json["router_aux_loss_coef"] = config.router_aux_loss_coef;
}

std::string on_disk(std::string name) {
  if (replace_part(name, ".mlp.gate.", ".block_sparse_moe.gate.")) return name;
  if (replace_part(name, ".mlp.shared_expert", ".block_sparse_moe.shared_expert")) return name;
  if (!replace_part(name, ".mlp.experts.", ".block_sparse_moe.experts.")) return name;
  constexpr std::array<std::pair<std::string_view, std::string_view>, 3> kProjections{
      {{".gate_proj.", ".w1."}, {".down_proj.", ".w2."}, {".up_proj.", ".w3."}}};
  for (const auto& [ours, theirs] : kProjections) {
    if (replace_part(name, ours, theirs)) break;
  }
  return name;
}

}  // namespace

extern const Family kMixtral;
const Family kMixtral = {"mixtral", "MixtralForCausalLM", read, write, on_disk, /*has_experts=*/true};

}  // namespace dagmoe
