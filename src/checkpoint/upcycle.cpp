#include "checkpoint/upcycle.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include <algorithm>
#include <cmath>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/text.h"

namespace dagmoe {
namespace {

std::int64_t num_shards(const UpcycleConfig& config) {
  return config.num_shards == 0 ? config.num_experts_per_tok : config.num_shards;
}

void check(const UpcycleConfig& config, const ModelConfig& source, const std::filesystem::path& folder) {
  if (source.moe) {
    throw InputError(str(
        folder.string(), ": model_type '", source.model_type,
        "' has experts already; upcycling starts from a dense model; add a DAG with model.dag in the recipe instead"));
  }
  std::vector<std::string> issues;
  const std::int64_t E = config.num_experts, K = config.num_experts_per_tok, S = num_shards(config);
  if (K < 1 || K > E) issues.push_back(str("--top-k: found ", K, ", expected between 1 and --experts (", E, ")"));
  if (S < 1 || E % std::max<std::int64_t>(S, 1) != 0) {
    issues.push_back(str("--experts: found ", E, ", expected a multiple of the number of shards (", S, ")"));
  }
  if (S >= 1 && K % S != 0)
    issues.push_back(str("--top-k: found ", K, ", expected a multiple of the number of shards (", S,
                         "), so that whole copies are chosen"));
  if (S >= 1 && source.intermediate_size % S != 0) {
    issues.push_back(str("--shards: ", S, " does not divide intermediate_size (", source.intermediate_size, ")"));
  }
  if (!issues.empty()) throw ConfigError(std::move(issues), "");
}

ModelConfig upcycled_config(const ModelConfig& source, const UpcycleConfig& config) {
  ModelConfig result = source;
  result.model_type = "dagmoe";
  result.base_model_type = "mixtral";
  MoeConfig moe;
  moe.num_experts = config.num_experts;
  moe.num_experts_per_tok = config.num_experts_per_tok;
  moe.moe_intermediate_size = source.intermediate_size / num_shards(config);
  moe.router_score = RouterScore::kSoftmax;
  moe.norm_topk_prob = true;
  result.moe = moe;
  result.intermediate_size = moe.moe_intermediate_size;  // Mixtral's key for the width of one expert
  result.dag = config.dag;
  return result;
}

// The rows of one copy's shards are the same row, so their logits tie and the top K picks whole copies.
at::Tensor shared_router_rows(const ModelConfig& config, std::int64_t shards, at::Generator& generator) {
  const std::int64_t copies = config.moe->num_experts / shards;
  const at::Tensor rows =
      at::empty({copies, config.hidden_size}, at::kFloat).normal_(0.0, config.initializer_range, generator);
  return rows.repeat_interleave(shards, 0).contiguous();
}

}  // namespace

void upcycle(const std::filesystem::path& source_folder, const std::filesystem::path& output,
             const UpcycleConfig& config) {
  const Checkpoint checkpoint = Checkpoint::open(source_folder);
  check(config, checkpoint.config(), source_folder);
  const Decoder source = load_decoder(checkpoint, {});
  const std::int64_t S = num_shards(config);

  Decoder result(upcycled_config(checkpoint.config(), config));
  initialize_dag(result, config.seed);
  at::Generator generator = at::detail::createCPUGenerator(config.seed + 1);
  result.embed_tokens_VD = source.embed_tokens_VD;
  result.norm_D = source.norm_D;
  result.lm_head_VD = source.lm_head_VD;
  for (std::size_t n = 0; n < source.layers.size(); ++n) {
    const DecoderLayer& from = source.layers[n];
    DecoderLayer& to = result.layers[n];
    std::tie(to.input_norm_D, to.post_attention_norm_D) = std::tie(from.input_norm_D, from.post_attention_norm_D);
    to.attention = from.attention;
    to.router_ED = shared_router_rows(result.config, S, generator);
    const std::int64_t F = result.config.moe->moe_intermediate_size;
    for (std::int64_t e = 0; e < config.num_experts; ++e) {
      const auto index = static_cast<std::size_t>(e);
      const std::int64_t begin = (e % S) * F;  // expert c * S + s holds shard s of copy c
      to.experts.gate_FD[index] = from.experts.gate_FD[0].narrow(0, begin, F);
      to.experts.up_FD[index] = from.experts.up_FD[0].narrow(0, begin, F);
      to.experts.down_DF[index] = from.experts.down_DF[0].narrow(1, begin, F) * static_cast<double>(S);
    }
  }

  const Json manifest = {{"method", "virtual_group"},
                         {"source", source_folder.filename().string()},
                         {"num_experts", config.num_experts},
                         {"num_experts_per_tok", config.num_experts_per_tok},
                         {"num_copies", config.num_experts / S},
                         {"num_shards", S},
                         {"down_proj_factor", S},
                         {"router_rows", "shared by the shards of a copy"},
                         {"seed", config.seed},
                         {"layers", checkpoint.config().num_hidden_layers}};
  write_folder_atomically(output, {.replace = config.force}, [&](const std::filesystem::path& folder) {
    save_model(folder, result, checkpoint);
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
