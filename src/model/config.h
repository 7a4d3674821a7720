#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/json.h"

namespace dagmoe {

enum class RouterScore { kSoftmax, kSigmoid };
/// What is added, as r / K, to each of the K first nodes (method.md 1.3).
enum class NodeResidual { kHiddenState, kNormedInput, kNone };
enum class DagNorm { kLayerNorm, kRmsNorm };

struct MoeConfig {
  std::int64_t num_experts = 8, num_experts_per_tok = 2, moe_intermediate_size = 0;
  RouterScore router_score = RouterScore::kSoftmax;
  bool norm_topk_prob = true;  ///< divide the K chosen scores by their sum
  double routed_scaling_factor = 1.0;
};

struct DagConfig {
  std::int64_t num_iterations = 2, node_size = 64;
  NodeResidual node_residual = NodeResidual::kHiddenState;
  DagNorm norm = DagNorm::kLayerNorm;
};

/// Field names are the keys of Hugging Face's config.json. A family's peculiarity is one field, added when that family
/// is loaded.
struct ModelConfig {
  std::string model_type = "llama";       ///< llama, mixtral, dagmoe
  std::string base_model_type = "llama";  ///< how routed weights are named on disk: llama (dense), mixtral
  std::int64_t vocab_size = 0, hidden_size = 0, intermediate_size = 0, num_hidden_layers = 0;
  std::int64_t num_attention_heads = 0, num_key_value_heads = 0, head_dim = 0;
  std::int64_t max_position_embeddings = 2048;
  double rms_norm_eps = 1e-5, rope_theta = 10000.0, initializer_range = 0.02;
  bool tie_word_embeddings = false;
  std::optional<std::int64_t> bos_token_id, pad_token_id;
  std::vector<std::int64_t> eos_token_ids;  ///< any of them ends generation
  std::optional<MoeConfig> moe;             ///< absent: dense feed-forward layers
  std::optional<DagConfig> dag;             ///< only with moe
  double router_aux_loss_coef = 0.0;
  std::string dtype;            ///< of the weights, as config.json says: "float32", "bfloat16"; may be empty
  Json extra = Json::object();  ///< keys we do not know, written back unchanged
};

/// Reads config.json of a folder, v4 and v5 spellings (contracts.md 1.3). Throws InputError with every problem, one a
/// line: missing keys, unknown model_type, quantization_config, hidden_act other than silu, rope kinds not supported. A
/// key that may be absent then has the value that transformers gives it.
///
/// model_type dagmoe holds its base family's keys, "base_model_type" and, unless it is a plain mixture of experts,
/// "dag": {"num_iterations", "node_size", "node_residual": hidden_state | normed_input | none, "norm": layer_norm |
/// rms_norm, "activation": "silu"}. Its router may differ from the base family's: "scoring_func": softmax | sigmoid,
/// "norm_topk_prob", "routed_scaling_factor".
ModelConfig read_model_config(const std::filesystem::path& folder);
ModelConfig parse_model_config(const Json& json, const std::string& where);
/// What read_model_config reads; a plain family's config opens in transformers 5.23.0 and older versions.
Json model_config_json(const ModelConfig& config);

/// Name and shape of every parameter of a model, in the order of the forward pass. Llama's names for every family,
/// experts one by one as `mlp.experts.E`; checkpoint/families.h knows what a family calls them on disk.
std::vector<std::pair<std::string, std::vector<std::int64_t>>> parameter_shapes(const ModelConfig& config);

std::int64_t num_parameters(const ModelConfig& config);
/// Per token: of the experts only the K chosen.
std::int64_t num_active_parameters(const ModelConfig& config);
/// Of one layer's DAG aggregator: L (2 D G + 4 G^2 + D), arXiv:2606.01062.
std::int64_t num_dag_parameters(const DagConfig& dag, std::int64_t hidden_size);

}  // namespace dagmoe
