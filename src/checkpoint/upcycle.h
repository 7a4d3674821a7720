#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "data/tokenizer.h"

namespace dagmoe {

/// How the experts of a layer are made from its dense feed-forward network (method.md 3).
enum class UpcycleMethod {
  kCopy,          ///< arXiv:2212.05055: each expert is the network; exact
  kCopyNoise,     ///< copies with N(0, noise_std^2) added to half of the hidden units of each matrix
  kDrop,          ///< arXiv:2502.19261: hidden units permuted per expert, a share of them drawn anew
  kVirtualGroup,  ///< arXiv:2410.07524: shards of copies that share a router row, W_down times the shards; exact
  kSpri           ///< arXiv:2606.16456: the network stays as shared expert, routed ones start near zero
};
/// Names as the command line and the manifest have them, in the order of the enumerators.
const std::vector<std::string>& upcycle_method_names();

struct UpcycleConfig {
  UpcycleMethod method = UpcycleMethod::kVirtualGroup;
  std::optional<std::int64_t> num_experts = {}, num_experts_per_tok = {};  ///< 8 and 4 when absent
  std::optional<std::int64_t> num_shards =
      {};                        ///< virtual_group; absent: experts per token, so that one copy is chosen
  double noise_std = 0.02;       ///< copy_noise
  double drop_fraction = 0.5;    ///< drop: the share of hidden units drawn anew
  bool drop_shared_set = false;  ///< drop: the same units in all three matrices, not a set for each
  DagConfig dag = {};            ///< zero-initialized: changes nothing at step 0
  std::uint64_t seed = 0;        ///< router rows, DAG weights, noise
  bool force = false;            ///< replace an existing output folder
};

/// Writes a dagmoe model folder (atomically) with upcycle.json, a manifest of what was done. A dense source gets
/// experts and the DAG; a source with experts keeps them and gets the DAG. Throws ConfigError for numbers that do not
/// fit together or have no effect, InputError for a source that no family with experts can express.
void upcycle(const std::filesystem::path& source, const std::filesystem::path& output, const UpcycleConfig& config);

/// Whether the result is to compute the source's function, up to rounding.
bool is_exact(const UpcycleConfig& config, bool source_has_experts);

/// Two models on the same packed text, fp32 (method.md 3.3). KL(source || result) in nats, mean over tokens.
struct Comparison {
  double max_logit_difference = 0.0, max_logit = 0.0, kl_per_token = 0.0;
  std::int64_t num_tokens = 0;
};
Comparison compare_models(const Decoder& source, const Decoder& result, const std::vector<TokenId>& tokens);

}  // namespace dagmoe
