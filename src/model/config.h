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

/// What the rotation angles of positions are made of (contracts.md 1.3); the fields that a kind does not use keep their
/// default.
enum class RopeKind { kDefault, kLinear, kLlama3, kYarn };
struct RopeConfig {
  RopeKind kind = RopeKind::kDefault;
  double theta = 10000.0;
  double factor = 1.0;
  double low_freq_factor = 1.0, high_freq_factor = 4.0;  ///< llama3
  std::int64_t original_max_position_embeddings = 0;     ///< llama3, yarn
  double beta_fast = 32.0, beta_slow = 1.0;              ///< yarn, and so are the rest
  bool truncate = true;
  std::optional<double> attention_factor, mscale, mscale_all_dim;
  bool operator==(const RopeConfig&) const = default;
};

/// Where q and k are normalized before rotation: not at all, per head, or over all heads of the projection at once.
enum class QkNorm { kNone, kPerHead, kWholeProjection };

/// Multi-head latent attention (DeepSeek-V2): keys and values come from one narrow latent, positions from a small part
/// of each head.
struct MlaConfig {
  std::int64_t q_lora_rank = 0;  ///< 0: q comes from one projection
  std::int64_t kv_lora_rank = 0, qk_nope_head_dim = 0, qk_rope_head_dim = 0, v_head_dim = 0;
  bool operator==(const MlaConfig&) const = default;
};

struct MoeConfig {
  std::int64_t num_experts = 8, num_experts_per_tok = 2, moe_intermediate_size = 0;
  RouterScore router_score = RouterScore::kSoftmax;
  bool norm_topk_prob = true;  ///< divide the K chosen scores by their sum
  double routed_scaling_factor = 1.0;
  /// The K experts are those of the largest score + bias; the bias enters no weight (arXiv:2408.15664). dagmoe only.
  bool router_bias = false;
  /// Above 0: experts lie in n_group groups, and only those of the topk_group groups with the best expert can be
  /// chosen.
  std::int64_t n_group = 0, topk_group = 0;
  std::int64_t shared_expert_intermediate_size = 0;  ///< of the expert that every token passes; 0: none
  bool shared_expert_gate = false;                   ///< its output is multiplied by sigmoid(w x)
  /// Layer i is dense when it is listed, comes before first_k_dense_replace, or i + 1 is no multiple of the step.
  std::vector<std::int64_t> mlp_only_layers = {};
  std::int64_t decoder_sparse_step = 1, first_k_dense_replace = 0;
  bool operator==(const MoeConfig&) const = default;
};

struct DagConfig {
  std::int64_t num_iterations = 2, node_size = 64;
  NodeResidual node_residual = NodeResidual::kHiddenState;
  DagNorm norm = DagNorm::kLayerNorm;
  bool operator==(const DagConfig&) const = default;
};

/// Field names are the keys of Hugging Face's config.json. A family's peculiarity is one field, which its file in
/// families/ sets.
struct ModelConfig {
  std::string model_type = "llama";       ///< a family (families.h) or dagmoe
  std::string base_model_type = "llama";  ///< the family whose keys and tensor names a dagmoe uses; else model_type
  std::int64_t vocab_size = 0, hidden_size = 0, intermediate_size = 0, num_hidden_layers = 0;
  std::int64_t num_attention_heads = 0, num_key_value_heads = 0, head_dim = 0;
  std::int64_t max_position_embeddings = 2048;
  double rms_norm_eps = 1e-5, initializer_range = 0.02;
  RopeConfig rope;
  bool tie_word_embeddings = false;
  bool qkv_bias = false, o_bias = false, mlp_bias = false;
  QkNorm qk_norm = QkNorm::kNone;
  std::optional<double> clip_qkv;                   ///< q, k and v are clamped to +- this before rotation
  std::int64_t sliding_window = 0;                  ///< tokens that a token sees, itself included; 0: all before it
  std::vector<std::int64_t> full_attention_layers;  ///< layers that the window does not apply to
  std::optional<MlaConfig> mla;
  std::optional<std::int64_t> bos_token_id, pad_token_id;
  std::vector<std::int64_t> eos_token_ids;  ///< any of them ends generation
  std::optional<MoeConfig> moe;             ///< absent: dense feed-forward layers
  std::optional<DagConfig> dag;             ///< only with moe
  double router_aux_loss_coef = 0.0;
  std::string dtype;            ///< of the weights, as config.json says: "float32", "bfloat16"; may be empty
  Json extra = Json::object();  ///< keys we do not know, written back unchanged

  bool is_moe_layer(std::int64_t layer) const;
  /// The window of one layer; 0: none.
  std::int64_t window_of(std::int64_t layer) const;
  bool operator==(const ModelConfig&) const = default;
};

/// Reads config.json of a folder, v4 and v5 spellings (contracts.md 1.3). Throws InputError with every problem, one a
/// line: missing keys, unknown model_type, quantization_config, hidden_act other than silu, rope kinds not supported. A
/// key that may be absent then has the value that transformers gives it. families/dagmoe.cpp says what a dagmoe adds.
ModelConfig read_model_config(const std::filesystem::path& folder);
ModelConfig parse_model_config(const Json& json, const std::string& where);
/// What read_model_config reads; a plain family's config opens in transformers 5.23.0 and older versions.
Json model_config_json(const ModelConfig& config);

/// The object "dag" of a dagmoe's config.json alone. Throws InputError with every problem.
DagConfig parse_dag_config(const Json& json, const std::string& where);
Json dag_config_json(const DagConfig& dag);

/// Name and shape of every parameter of a model, in the order of the forward pass. Llama's names for every family,
/// experts one by one as `mlp.experts.E`; families.h knows what a family calls them on disk.
std::vector<std::pair<std::string, std::vector<std::int64_t>>> parameter_shapes(const ModelConfig& config);

std::int64_t num_parameters(const ModelConfig& config);
/// Per token: of the experts only the K chosen.
std::int64_t num_active_parameters(const ModelConfig& config);
/// Of one layer's DAG aggregator: L (2 D G + 4 G^2 + D), arXiv:2606.01062.
std::int64_t num_dag_parameters(const DagConfig& dag, std::int64_t hidden_size);

}  // namespace dagmoe
