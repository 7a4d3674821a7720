#include "checkpoint/upcycle.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include <algorithm>
#include <cmath>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/text.h"
#include "checkpoint/upcycle_experts.h"

namespace dagmoe {
namespace {

constexpr std::int64_t kDefaultExperts = 8, kDefaultTopK = 4;

UpcycleCounts upcycle_counts(const UpcycleConfig& config) {
  UpcycleCounts counts;
  counts.num_experts = config.num_experts.value_or(kDefaultExperts);
  counts.num_experts_per_tok = config.num_experts_per_tok.value_or(std::min(kDefaultTopK, counts.num_experts));
  const bool has_shards = config.method == UpcycleMethod::kVirtualGroup;
  counts.num_shards = has_shards ? config.num_shards.value_or(counts.num_experts_per_tok) : 1;
  return counts;
}

const std::string& method_name(UpcycleMethod method) {
  return upcycle_method_names()[static_cast<std::size_t>(method)];
}

void check_counts(const UpcycleConfig& config, const ModelConfig& source) {
  std::vector<std::string> issues;
  const UpcycleCounts counts = upcycle_counts(config);
  const std::int64_t E = counts.num_experts, K = counts.num_experts_per_tok, S = counts.num_shards;
  if (K < 1 || K > E) issues.push_back(str("--top-k: found ", K, ", expected between 1 and --experts (", E, ")"));
  if (config.method == UpcycleMethod::kVirtualGroup) {
    if (S < 1 || E % std::max<std::int64_t>(S, 1) != 0) {
      issues.push_back(str("--experts: found ", E, ", expected a multiple of the number of shards (", S, ")"));
    }
    if (S >= 1 && K % S != 0) {
      issues.push_back(str("--top-k: found ", K, ", expected a multiple of the number of shards (", S,
                           "), so that whole copies are chosen"));
    }
    if (S >= 1 && source.intermediate_size % S != 0) {
      issues.push_back(str("--shards: ", S, " does not divide intermediate_size (", source.intermediate_size, ")"));
    }
  } else if (config.num_shards) {
    issues.push_back(str("--shards: has no effect with --method ", method_name(config.method), "; remove it"));
  }
  if (config.method == UpcycleMethod::kSpri && K >= 1 && E % K != 0) {
    issues.push_back(str("--experts: found ", E, ", expected a multiple of --top-k (", K, "), one group a multiple"));
  }
  if (!(config.drop_fraction >= 0.0 && config.drop_fraction <= 1.0)) {
    issues.push_back(str("--drop-fraction: found ", config.drop_fraction, ", expected between 0 and 1"));
  }
  if (!issues.empty()) throw ConfigError(std::move(issues), "");
}

void check_source_with_experts(const UpcycleConfig& config, const ModelConfig& source,
                               const std::filesystem::path& folder) {
  if (source.dag) throw InputError(str(folder.string(), ": has a DAG aggregator already"));
  if (!config.num_experts && !config.num_experts_per_tok && !config.num_shards) return;
  throw ConfigError({str("--experts, --top-k and --shards: have no effect, ", folder.string(),
                         " has experts already and only gets the DAG; remove them")},
                    "");
}

// The family with experts whose keys can say all that a dense family's can.
std::string base_with_experts(const ModelConfig& source, const std::filesystem::path& folder) {
  const auto refuse = [&](const char* what) {
    return InputError(str(folder.string(), ": ", what, " cannot be expressed by a family with experts"));
  };
  if (source.mlp_bias) throw refuse("biases in the feed-forward layers ('mlp_bias')");
  if (source.qk_norm == QkNorm::kPerHead) {
    if (!source.full_attention_layers.empty()) throw refuse("a sliding window in some layers only");
    return "qwen3_moe";
  }
  if (source.o_bias) throw refuse("a bias on the output of attention ('attention_bias')");
  if (source.qkv_bias) {
    if (source.sliding_window > 0) throw refuse("a sliding window beside biases on q, k and v");
    return "qwen2_moe";
  }
  return "mixtral";
}

ModelConfig config_with_experts(const ModelConfig& source, const UpcycleConfig& config,
                                const std::filesystem::path& folder) {
  const UpcycleCounts counts = upcycle_counts(config);
  ModelConfig result = source;
  result.model_type = "dagmoe";
  result.dag = config.dag;
  result.base_model_type = base_with_experts(source, folder);
  MoeConfig moe;
  moe.num_experts = counts.num_experts;
  moe.num_experts_per_tok = counts.num_experts_per_tok;
  moe.moe_intermediate_size = source.intermediate_size / counts.num_shards;
  moe.router_score = RouterScore::kSoftmax;
  moe.norm_topk_prob = true;
  if (config.method == UpcycleMethod::kSpri) moe.shared_expert_intermediate_size = source.intermediate_size;
  result.moe = moe;
  // Mixtral's key for the width of one expert; Qwen's families have a key of their own for it.
  if (result.base_model_type == "mixtral") result.intermediate_size = moe.moe_intermediate_size;
  return result;
}

Json manifest_of(const UpcycleConfig& config, const ModelConfig& source, const std::filesystem::path& folder) {
  Json manifest = {{"source", folder.filename().string()}, {"seed", config.seed}, {"layers", source.num_hidden_layers}};
  if (source.moe) {
    manifest["method"] = "dag_only";
    return manifest;
  }
  const UpcycleCounts counts = upcycle_counts(config);
  manifest["method"] = method_name(config.method);
  manifest["num_experts"] = counts.num_experts;
  manifest["num_experts_per_tok"] = counts.num_experts_per_tok;
  if (config.method == UpcycleMethod::kVirtualGroup) {
    manifest["num_copies"] = counts.num_experts / counts.num_shards;
    manifest["num_shards"] = counts.num_shards;
    manifest["down_proj_factor"] = counts.num_shards;
    manifest["router_rows"] = "shared by the shards of a copy";
  }
  if (config.method == UpcycleMethod::kCopyNoise) manifest["noise_std"] = config.noise_std;
  if (config.method == UpcycleMethod::kDrop) {
    manifest["drop_fraction"] = config.drop_fraction;
    manifest["drop_shared_set"] = config.drop_shared_set;
  }
  return manifest;
}

// Everything but the feed-forward layers stays what it is.
Decoder with_experts(const Decoder& source, const ModelConfig& model_config, const UpcycleConfig& config) {
  Decoder result(model_config);
  initialize_dag(result, config.seed);
  at::Generator generator = at::detail::createCPUGenerator(config.seed + 1);
  result.embed_tokens_VD = source.embed_tokens_VD;
  result.norm_D = source.norm_D;
  result.lm_head = source.lm_head;
  UpcycleCounts counts = upcycle_counts(config);
  counts.router_std = model_config.initializer_range;
  for (std::size_t n = 0; n < source.layers.size(); ++n) {
    const DecoderLayer& from = source.layers[n];
    DecoderLayer& to = result.layers[n];
    std::tie(to.input_norm_D, to.post_attention_norm_D) = std::tie(from.input_norm_D, from.post_attention_norm_D);
    to.attention = from.attention;
    make_experts(config, counts, from, generator, to);
  }
  return result;
}

}  // namespace

const std::vector<std::string>& upcycle_method_names() {
  static const std::vector<std::string> names = {"copy", "copy_noise", "drop", "virtual_group", "spri"};
  return names;
}

bool is_exact(const UpcycleConfig& config, bool source_has_experts) {
  if (config.dag.node_residual == NodeResidual::kNormedInput) return false;
  return source_has_experts || config.method == UpcycleMethod::kCopy || config.method == UpcycleMethod::kVirtualGroup;
}

void upcycle(const std::filesystem::path& source_folder, const std::filesystem::path& output,
             const UpcycleConfig& config) {
  const at::NoGradGuard no_grad;
  const Checkpoint checkpoint = Checkpoint::open(source_folder);
  const ModelConfig& source_config = checkpoint.config();
  if (source_config.moe) {
    check_source_with_experts(config, source_config, source_folder);
  } else {
    check_counts(config, source_config);
  }
  Decoder result = source_config.moe ? load_decoder(checkpoint, {.add_dag = config.dag, .seed = config.seed})
                                     : with_experts(load_decoder(checkpoint, {}),
                                                    config_with_experts(source_config, config, source_folder), config);
  write_folder_atomically(output, {.replace = config.force}, [&](const std::filesystem::path& folder) {
    save_model(folder, result, checkpoint);
    const Json manifest = manifest_of(config, source_config, source_folder);
    write_file_atomically(folder / "upcycle.json", manifest.dump(2) + "\n");
  });
}

Comparison compare_models(const Decoder& source, const Decoder& result, const std::vector<TokenId>& tokens) {
  const at::NoGradGuard no_grad;
  constexpr std::int64_t kSequenceLength = 256;  // logits of one sequence at a time stay small
  Comparison comparison;
  double kl_sum = 0.0;
  const auto total = static_cast<std::int64_t>(tokens.size());
  for (std::int64_t begin = 0; begin < total; begin += kSequenceLength) {
    const std::int64_t length = std::min(kSequenceLength, total - begin);
    const at::Tensor ids = at::empty({length}, at::kLong);
    std::copy_n(tokens.begin() + begin, length, ids.mutable_data_ptr<std::int64_t>());
    const ModelInput input{ids, at::arange(length), {0, length}};
    const at::Tensor expected = source.logits(source.forward(input).hidden_TD),
                     found = result.logits(result.forward(input).hidden_TD);
    comparison.max_logit_difference =
        std::max(comparison.max_logit_difference, (expected - found).abs().max().item<double>());
    comparison.max_logit = std::max(comparison.max_logit, expected.abs().max().item<double>());
    const at::Tensor log_p = at::log_softmax(expected.to(at::kDouble), 1),
                     log_q = at::log_softmax(found.to(at::kDouble), 1);
    kl_sum += (log_p.exp() * (log_p - log_q)).sum().item<double>();
  }
  comparison.num_tokens = total;
  comparison.kl_per_token = total == 0 ? 0.0 : kl_sum / static_cast<double>(total);
  return comparison;
}

}  // namespace dagmoe
