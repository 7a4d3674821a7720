#include "finetune/expert_profile.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <cmath>
#include <numeric>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/progress.h"
#include "base/text.h"
#include "finetune/run_data.h"
#include "finetune/trainer.h"

namespace dagmoe {
namespace {

constexpr std::size_t kMaxIdsShown = 16;

std::vector<std::int64_t> moe_layers(const ModelConfig& config) {
  std::vector<std::int64_t> layers;
  for (std::int64_t n = 0; n < config.num_hidden_layers; ++n) {
    if (config.is_moe_layer(n)) layers.push_back(n);
  }
  return layers;
}

// Sums in double: of 131,072 tokens a float loses the last digits.
std::vector<double> gate_sums(const Routing& routing, const MoeConfig& moe, std::int64_t layer) {
  const at::Tensor sums_E =
      at::zeros({moe.num_experts}, at::kDouble)
          .index_add_(0, routing.expert_ids_TK.flatten(), routing.weights_TK.flatten().to(at::kDouble))
          .div_(moe.routed_scaling_factor);
  if (!at::isfinite(sums_E).all().item<bool>()) {
    throw NumericsError(str("model.layers.", layer,
                            ".mlp.gate: the weights of the chosen experts are not finite; look at the model's weights, "
                            "or profile with --dtype float32"));
  }
  const double* sums = sums_E.const_data_ptr<double>();
  return {sums, sums + moe.num_experts};
}

RoutingTotals totals_of(const std::vector<Routing>& routing, const ModelConfig& config) {
  const MoeConfig& moe = *config.moe;
  RoutingTotals totals{.experts_per_token = moe.num_experts_per_tok, .layers = moe_layers(config)};
  ExpertCounts counts = expert_counts(routing, moe.num_experts);
  totals.num_tokens = counts.num_tokens;
  totals.counts_LE = std::move(counts.counts_LE);
  for (std::size_t row = 0; row < routing.size(); ++row)
    totals.gate_sums_LE.push_back(gate_sums(routing[row], moe, totals.layers[row]));
  return totals;
}

// The sum of the selected experts' scores in each row.
std::vector<double> selected_sums(const ExpertProfile& profile) {
  const auto scores_LE = esft_scores(profile.totals, profile.score);
  std::vector<double> sums;
  for (std::size_t row = 0; row < scores_LE.size(); ++row) {
    double sum = 0.0;
    for (const std::int64_t e : profile.selection.experts.at(profile.totals.layers[row]))
      sum += scores_LE[row][static_cast<std::size_t>(e)];
    sums.push_back(sum);
  }
  return sums;
}

std::string ids_text(const std::vector<std::int64_t>& ids) {
  std::string text;
  for (std::size_t i = 0; i < std::min(ids.size(), kMaxIdsShown); ++i) text += str(i == 0 ? "" : " ", ids[i]);
  if (ids.size() > kMaxIdsShown) text += str(" and ", ids.size() - kMaxIdsShown, " more");
  return text;
}

Json scores_json(const RoutingTotals& totals, EsftScore score) {
  const auto scores_LE = esft_scores(totals, score);
  Json json = Json::object();
  for (std::size_t row = 0; row < scores_LE.size(); ++row) {
    Json layer = Json::object();
    for (std::size_t e = 0; e < scores_LE[row].size(); ++e) layer[std::to_string(e)] = scores_LE[row][e];
    json[std::to_string(totals.layers[row])] = std::move(layer);
  }
  return json;
}

}  // namespace

RoutingTotals profile_experts(const Decoder& model, ExampleStream& stream, const ProfileOptions& options) {
  if (!model.config.moe || moe_layers(model.config).empty())
    throw ConfigError("profile-experts: the model is dense, it has no experts to choose from");
  const at::NoGradGuard no_grad;
  const std::vector<PackedBatch> batches = analysis_batches(stream, options.micro_batch_tokens, options.max_tokens);
  Progress progress("profiling", static_cast<std::int64_t>(batches.size()));
  RoutingTotals totals;
  std::int64_t done = 0;
  for (const PackedBatch& batch : batches) {
    totals += totals_of(model.forward(model_input(batch)).routing, model.config);
    progress.update(++done, str(with_commas(totals.num_tokens), " tokens"));
  }
  progress.finish(str(with_commas(totals.num_tokens), " tokens"));
  return totals;
}

std::string profile_table(const ExpertProfile& profile) {
  const std::vector<double> sums = selected_sums(profile);
  std::vector<std::vector<std::string>> cells{{"layer", "experts", "selected", "share", "which"}};
  std::size_t num_experts = 0, num_selected = 0;
  for (std::size_t row = 0; row < sums.size(); ++row) {
    const auto& ids = profile.selection.experts.at(profile.totals.layers[row]);
    const std::size_t count = profile.totals.counts_LE[row].size();
    cells.push_back({std::to_string(profile.totals.layers[row]), std::to_string(count), std::to_string(ids.size()),
                     fixed(sums[row], 4), ids_text(ids)});
    num_experts += count, num_selected += ids.size();
  }
  const double mean = std::accumulate(sums.begin(), sums.end(), 0.0) / static_cast<double>(sums.size());
  cells.push_back({"all", std::to_string(num_experts), std::to_string(num_selected), fixed(mean, 4), ""});
  return table_text(cells);
}

Json profile_json(const ExpertProfile& profile) {
  const std::vector<double> sums = selected_sums(profile);
  Json share = Json::object();
  for (std::size_t row = 0; row < sums.size(); ++row) share[std::to_string(profile.totals.layers[row])] = sums[row];
  return {{"model", profile.model},
          {"data", profile.data},
          {"tokens", profile.totals.num_tokens},
          {"experts_per_token", profile.totals.experts_per_token},
          {"score", name_of(profile.score)},
          {"top_p", profile.top_p},
          {"token_scores_are", describe(EsftScore::kToken)},
          {"gate_scores_are", describe(EsftScore::kGate)},
          {"selection", Json::parse(esft_config_text(profile.selection))},
          {"selected_share", std::move(share)},
          {"token_scores", scores_json(profile.totals, EsftScore::kToken)},
          {"gate_scores", scores_json(profile.totals, EsftScore::kGate)}};
}

std::vector<std::string> profile_warnings(const ExpertProfile& profile) {
  std::vector<std::string> lines;
  const std::vector<double> sums = selected_sums(profile);
  for (std::size_t row = 0; row < sums.size(); ++row) {
    if (sums[row] >= profile.top_p - 1e-6) continue;
    lines.push_back(str("layer ", profile.totals.layers[row], ": all ", name_of(profile.score), " scores sum to ",
                        fixed(sums[row], 4), ", less than --top-p ", profile.top_p, "; every expert is selected"));
  }
  return lines;
}

std::filesystem::path profile_path(const std::filesystem::path& selection) {
  std::filesystem::path path = selection;
  return path.replace_extension(".profile.json");
}

void write_profile(const ExpertProfile& profile, const std::filesystem::path& selection) {
  write_file_atomically(profile_path(selection), profile_json(profile).dump(1) + "\n");
  write_file_atomically(selection, esft_config_text(profile.selection));
}

}  // namespace dagmoe
