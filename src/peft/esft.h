#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace dagmoe {

/// Expert-specialized fine-tuning (arXiv:2407.01906): measure which experts a task's data uses, train those alone. Here
/// are functions of counts and names; finetune/expert_profile.h runs the model.

/// What routers decided for tokens of a task, summed; a row for each MoE layer.
struct RoutingTotals {
  std::int64_t num_tokens = 0, experts_per_token = 0;
  std::vector<std::int64_t> layers;                  ///< the model's layer of each row, ascending
  std::vector<std::vector<std::int64_t>> counts_LE;  ///< tokens that chose the expert
  std::vector<std::vector<double>> gate_sums_LE;     ///< sums of g_e, before MoeConfig::routed_scaling_factor

  RoutingTotals& operator+=(const RoutingTotals& other);  ///< of the same layers; adding to an empty one copies
};

/// How the use of an expert is measured. kToken: mean over tokens of 1[e chosen] / K, which sums to 1 over the experts
/// of a layer. kGate: mean over tokens of g_e, which sums to the mean mass of the K chosen scores: 1 where they are
/// normalized (norm_topk_prob), about 0.38 in DeepSeek-V2-Lite, and left as it is.
enum class EsftScore { kToken, kGate };
std::optional<EsftScore> esft_score_named(std::string_view name);
std::string_view name_of(EsftScore score);
/// The paper's: 0.2 for tokens, 0.1 for gates.
double default_top_p(EsftScore score);
/// One sentence on the score and what it sums to over a layer, for reports.
std::string_view describe(EsftScore score);

/// Row by row the score of each expert. Throws InternalError without tokens.
std::vector<std::vector<double>> esft_scores(const RoutingTotals& totals, EsftScore score);

/// Experts by descending score (equal ones: the lower index first) until their sum reaches `top_p`; all of them when it
/// never does.
std::vector<std::int64_t> select_experts(std::span<const double> scores_E, double top_p);

/// The file of deepseek-ai/ESFT: {"experts": {"LAYER": [ids]}, "shared_experts": bool, "non_expert_modules": bool}.
struct EsftConfig {
  std::map<std::int64_t, std::vector<std::int64_t>> experts;  ///< by layer, in the order of selection
  bool shared_experts = false;                                ///< they train too
  bool non_expert_modules = false;  ///< all that is no expert trains too, router and DAG included
  bool operator==(const EsftConfig&) const = default;
};
/// select_experts for every row.
EsftConfig select_experts(const RoutingTotals& totals, EsftScore score, double top_p);

/// Throws InputError with every problem, a line each: unknown keys, keys of layers that are no numbers, ids that are
/// none or occur twice, values of another type. Without the two last keys they are false, as the reference has it.
EsftConfig read_esft_config(const std::filesystem::path& path);
EsftConfig parse_esft_config(std::string_view text, const std::string& where);
std::string esft_config_text(const EsftConfig& config);

/// Which of a model's parameters the file is about. `where`: the file, for messages. Throws InputError with every
/// problem, a line each: a layer or an expert that the model does not have, a dense layer, a layer with experts that is
/// not listed (the reference needs them all), shared experts that are not there; and when nothing is selected.
std::set<std::string> esft_parameters(const EsftConfig& config, const std::vector<std::string>& names,
                                      const std::string& where);

}  // namespace dagmoe
