#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "base/json.h"
#include "data/example_stream.h"
#include "model/decoder.h"
#include "peft/esft.h"

namespace dagmoe {

/// What the routers of a model decide for a task's data: forward passes over real tokens, prompts and answers, without
/// padding. About `max_tokens` of the stream's first samples are used, whole ones (at least one). Throws ConfigError
/// for a model without experts, NumericsError when a router's weights are not finite.
struct ProfileOptions {
  std::int64_t max_tokens = 131072;        ///< the paper's 32 sequences of 4,096
  std::int64_t micro_batch_tokens = 4096;  ///< of a forward pass
};
RoutingTotals profile_experts(const Decoder& model, ExampleStream& stream, const ProfileOptions& options);

/// A finished profile: what was measured, how, and what was selected.
struct ExpertProfile {
  std::string model;              ///< its folder
  std::vector<std::string> data;  ///< files
  RoutingTotals totals;
  EsftScore score = EsftScore::kToken;
  double top_p = 0.2;
  EsftConfig selection;
};
/// A layer a row: experts, how many were selected, what their scores sum to, which they are.
std::string profile_table(const ExpertProfile& profile);
/// The same with both scores of every expert, as "token_scores" and "gate_scores": {"LAYER": {"EXPERT": score}}, the
/// keys of the reference's summary.json, but token scores normalized per layer and gate scores not at all.
Json profile_json(const ExpertProfile& profile);
/// Layers whose scores never reach top_p, so that all their experts are selected, a line each.
std::vector<std::string> profile_warnings(const ExpertProfile& profile);
/// "a/law.json" -> "a/law.profile.json": beside the selection, because a recipe reads that one strictly.
std::filesystem::path profile_path(const std::filesystem::path& selection);
/// Both files, each appearing whole. Throws InputError when one cannot be written.
void write_profile(const ExpertProfile& profile, const std::filesystem::path& selection);

}  // namespace dagmoe
