#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "checkpoint/checkpoint.h"
#include "data/tokenizer.h"

namespace dagmoe {

/// Dense -> mixture of experts by virtual groups (arXiv:2410.07524, method.md 3): the feed-forward network is cut into
/// `num_shards` shards along its hidden units, `num_experts / num_shards` copies of each; all shards of a copy share
/// one router row; W_down is multiplied by num_shards. With a softmax over the chosen K = num_shards * n it computes
/// what the dense model does.
struct UpcycleConfig {
  std::int64_t num_experts = 8, num_experts_per_tok = 4;
  std::int64_t num_shards = 0;  ///< 0: as many as experts per token, so that the chosen ones are one whole copy
  DagConfig dag;                ///< zero-initialized: changes nothing at step 0
  std::uint64_t seed = 0;       ///< router rows and DAG weights
  bool force = false;           ///< replace an existing output folder
};

/// Writes a dagmoe model folder (atomically) with upcycle.json, a manifest of what was done. Throws ConfigError for
/// numbers that do not fit together, InputError when the source is not dense.
void upcycle(const std::filesystem::path& source, const std::filesystem::path& output, const UpcycleConfig& config);

/// Two models on the same packed text, fp32 (method.md 3.3). KL(source || result) in nats, mean over tokens.
struct Comparison {
  double max_logit_difference = 0.0, max_logit = 0.0, kl_per_token = 0.0;
  std::int64_t num_tokens = 0;
};
Comparison compare_models(const Decoder& source, const Decoder& result, const std::vector<TokenId>& tokens);

}  // namespace dagmoe
