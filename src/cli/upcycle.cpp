#include "checkpoint/upcycle.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <cstdio>
#include <iostream>
#include <memory>
#include <random>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/json.h"
#include "base/log.h"
#include "base/mapped_file.h"
#include "base/text.h"
#include "cli/commands.h"
#include "data/tokenizer.h"

namespace dagmoe {
namespace {

struct UpcycleFlags {
  std::string source, output, method = "virtual_group", text_file;
  std::int64_t compare_tokens = 2000;
  UpcycleConfig config;
};

// What the two models are compared on when no file is given.
constexpr std::string_view kSampleText =
    "Rain falls when the small drops of a cloud join and grow too heavy to float. Rivers carry the water back to the "
    "sea, and the "
    "sun lifts it again. A seed needs water, air and warmth before it wakes; light comes later, when the first leaves "
    "open. To find "
    "the area of a triangle, multiply its base by its height and halve the result: a base of 6 and a height of 4 give "
    "12. A good "
    "summary keeps the main point, drops the examples, and says nothing that the text does not say. Bread rises "
    "because yeast eats "
    "sugar and breathes out gas, which the dough holds in many small rooms. When two colours of light meet on a wall "
    "they add up; when "
    "two paints meet in a pot they take away. If every cat is a mammal and no mammal lays eggs in the sea, then no cat "
    "does either.";

// Exact constructions differ by rounding only; more than this share of the largest logit means a wrong construction.
constexpr double kExactTolerance = 1e-4;

std::string comparison_text_name(const UpcycleFlags& flags) {
  if (!flags.text_file.empty()) return flags.text_file;
  return has_tokenizer(flags.source) ? "the built-in sample" : "random ids (the source has no tokenizer)";
}

std::vector<TokenId> comparison_tokens(const UpcycleFlags& flags, const ModelConfig& config) {
  const auto limit = static_cast<std::size_t>(flags.compare_tokens);
  std::vector<TokenId> tokens;
  if (flags.text_file.empty() && !has_tokenizer(flags.source)) {
    std::mt19937_64 generator(flags.config.seed);
    for (std::size_t i = 0; i < std::min<std::size_t>(limit, 512); ++i) {
      tokens.push_back(static_cast<TokenId>(generator() % static_cast<std::uint64_t>(config.vocab_size)));
    }
    return tokens;
  }
  const std::string text =
      flags.text_file.empty() ? std::string(kSampleText) : std::string(MappedFile::open(flags.text_file)->text());
  if (!is_valid_utf8(text)) throw InputError(str(flags.text_file, ": is no UTF-8 text; --text takes a text file"));
  tokens = load_tokenizer(flags.source)->encode(text);
  if (tokens.size() > limit) tokens.resize(limit);
  if (tokens.empty()) throw InputError(str(flags.text_file, ": gives no tokens; --text takes a file with text"));
  return tokens;
}

int upcycle_command(const UpcycleFlags& flags) {
  const auto& methods = upcycle_method_names();
  const auto method = std::find(methods.begin(), methods.end(), flags.method);
  if (method == methods.end()) {
    throw ConfigError(str("--method: found '", flags.method, "'", did_you_mean(flags.method, methods)));
  }
  UpcycleConfig upcycle_config = flags.config;
  upcycle_config.method = static_cast<UpcycleMethod>(method - methods.begin());
  upcycle(flags.source, flags.output, upcycle_config);
  const Checkpoint dense = Checkpoint::open(flags.source), sparse = Checkpoint::open(flags.output);
  const std::vector<TokenId> tokens = comparison_tokens(flags, dense.config());
  const Comparison comparison = compare_models(load_decoder(dense, {}), load_decoder(sparse, {}), tokens);

  const auto scientific = [](double value) {
    std::array<char, 32> buffer{};
    std::snprintf(buffer.data(), buffer.size(), "%.2e", value);
    return std::string(buffer.data());
  };
  const ModelConfig& config = sparse.config();
  std::cout << table_text(
                   {{"model", "parameters", "active"},
                    {flags.source, with_commas(num_parameters(dense.config())),
                     with_commas(num_active_parameters(dense.config()))},
                    {flags.output, with_commas(num_parameters(config)), with_commas(num_active_parameters(config))}})
            << "\nstep 0 against the source, fp32, " << with_commas(comparison.num_tokens) << " tokens of "
            << comparison_text_name(flags) << "\n  max |logit difference|  "
            << scientific(comparison.max_logit_difference) << "  (largest logit " << fixed(comparison.max_logit, 1)
            << ")\n  KL per token            " << scientific(comparison.kl_per_token) << " nats" << std::endl;

  const auto manifest_path = std::filesystem::path(flags.output) / "upcycle.json";
  Json manifest = read_json_file(manifest_path);
  manifest["comparison"] = {{"max_logit_difference", comparison.max_logit_difference},
                            {"kl_per_token", comparison.kl_per_token},
                            {"num_tokens", comparison.num_tokens},
                            {"dtype", "float32"}};
  write_file_atomically(manifest_path, manifest.dump(2) + "\n");

  const bool exact = is_exact(upcycle_config, dense.config().moe.has_value());
  if (!exact) log_warning("step 0 differs from the source by design");
  if (exact && !(comparison.max_logit_difference <= kExactTolerance * comparison.max_logit)) {
    throw NumericsError(str(flags.output, ": differs from its source by ", scientific(comparison.max_logit_difference),
                            ", expected at most ", scientific(kExactTolerance * comparison.max_logit),
                            "; do not train from it"));
  }
  return 0;
}

}  // namespace

void register_upcycle(CLI::App& app, RunCommand& run) {
  auto flags = std::make_shared<UpcycleFlags>();
  CLI::App* command = app.add_subcommand(
      "upcycle",
      "dense model, or one with experts -> DAG-MoE, with a step-0 comparison; exact methods compute the "
      "source's function");
  command->add_option("--source", flags->source, "model folder")->required();
  command->add_option("--output", flags->output, "folder to write")->required();
  command->add_option("--method", flags->method, "how experts are made: " + join(upcycle_method_names(), ", "))
      ->capture_default_str();
  command->add_option("--experts", flags->config.num_experts, "number of experts, copies x shards (default: 8)")
      ->check(CLI::Range(1, 16384));
  command->add_option("--top-k", flags->config.num_experts_per_tok, "experts per token (default: 4)")
      ->check(CLI::Range(1, 16384));
  command
      ->add_option("--shards", flags->config.num_shards,
                   "virtual_group: shards of the feed-forward network (default: --top-k)")
      ->check(CLI::Range(1, 16384));
  command->add_option("--noise-std", flags->config.noise_std, "copy_noise: of what is added")
      ->capture_default_str()
      ->check(CLI::Range(0.0, 1e3));
  command->add_option("--drop-fraction", flags->config.drop_fraction, "drop: share of hidden units drawn anew")
      ->capture_default_str();
  command->add_flag("--drop-shared-set", flags->config.drop_shared_set,
                    "drop: the same hidden units in gate, up and down");
  command->add_option("--dag-iterations", flags->config.dag.num_iterations, "L, iterations of the aggregator")
      ->capture_default_str()
      ->check(CLI::Range(1, 64));
  command->add_option("--dag-node-size", flags->config.dag.node_size, "G, width of a node")
      ->capture_default_str()
      ->check(CLI::Range(1, 65536));
  command->add_option("--dag-node-residual", flags->config.dag.node_residual, "hidden_state, normed_input or none")
      ->transform(
          CLI::CheckedTransformer(std::map<std::string, NodeResidual>{{"hidden_state", NodeResidual::kHiddenState},
                                                                      {"normed_input", NodeResidual::kNormedInput},
                                                                      {"none", NodeResidual::kNone}}));
  command->add_option("--dag-norm", flags->config.dag.norm, "layer_norm or rms_norm")
      ->transform(CLI::CheckedTransformer(
          std::map<std::string, DagNorm>{{"layer_norm", DagNorm::kLayerNorm}, {"rms_norm", DagNorm::kRmsNorm}}));
  command->add_option("--seed", flags->config.seed, "of router rows and DAG weights")->capture_default_str();
  command->add_option("--text", flags->text_file, "text file for the comparison (default: a built-in paragraph)");
  command->add_option("--compare-tokens", flags->compare_tokens, "tokens of that text at most")
      ->capture_default_str()
      ->check(CLI::Range(1, 1000000));
  command->add_flag("--force", flags->config.force, "replace an existing output folder");
  command->callback([flags, &run] { run = [flags] { return upcycle_command(*flags); }; });
}

}  // namespace dagmoe
