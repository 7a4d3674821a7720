#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "data/example_stream.h"
#include "finetune/train_config.h"
#include "model/config.h"
#include "peft/adapter_spec.h"

namespace dagmoe {

enum class ComputeType { kFloat32, kBFloat16 };
enum class Device { kAuto, kCpu, kCuda };

/// Which answers of a conversation are learnt.
enum class LossTurns { kAll, kLast };

/// The file's own names of the fields that a format reads.
struct DataColumns {
  ColumnMap names;
};

/// Template "auto" takes the model's own chat template.
struct DataRecipe {
  std::string path;
  RecordFormat format = RecordFormat::kAlpaca;
  std::string prompt_template = "auto";
  std::optional<double> weight, epochs;  ///< see SourceShare
  bool mask_prompt = true;
  LossTurns loss_turns = LossTurns::kAll;
  std::optional<DataColumns> columns;
};

/// One item of `trainable`: a group, "full", "esft" or a glob (a leading '!' freezes), in all layers or some, with its
/// own learning rate and weight decay where these are given.
struct TrainableEntry {
  bool is_esft() const { return group == "esft" || group == "!esft"; }
  std::string group;
  std::vector<std::string> layers;  ///< "8" or "8..15"
  std::optional<double> lr, weight_decay;
  std::string where;  ///< "file:line:column"
};

/// Other factors for some of the targets of `lora`.
struct LoraPattern {
  std::string target;
  std::optional<std::int64_t> rank;
  std::optional<double> alpha;
  std::string where;
};

/// Of kind smore, beside lora.alpha.
struct SmoreRecipe {
  SmoreConfig config;
  double balance_coef = 0.01;  ///< of the mean over the adapted layers of smore_balance_loss
};

/// Of kind smora, beside lora.rank and lora.alpha.
struct SmoraRecipe {
  std::int64_t num_active = SmoraConfig().num_active;
  double bias_update_rate = kSmoraBiasRate;
};

/// An adapter that trains on a frozen base.
struct LoraRecipe {
  AdapterKind kind = AdapterKind::kLora;
  LoraInit init = LoraInit::kDefault;
  std::int64_t rank = 8;
  double alpha = 16.0, dropout = 0.0;
  bool rslora = false;
  double lr_ratio = 1.0;             ///< LoRA+ (arXiv:2402.12354): B's learning rate over A's
  std::vector<std::string> targets;  ///< groups, module names or their ends, globs
  std::vector<LoraPattern> patterns;
  std::optional<SmoreRecipe> smore;  ///< there with kind smore, and only then
  std::optional<SmoraRecipe> smora;  ///< likewise
  std::string where;                 ///< of `targets`
};

/// What a run leaves behind: whole models, or adapter folders with what trained alone.
enum class SaveAs { kAuto, kModel, kAdapter };

/// All of one run; the keys of a recipe file are the field names (interface.md). Defaults stand here and nowhere else.
struct Recipe {
  std::int64_t version = 1, seed = 17;
  std::string output_dir;
  Device device = Device::kAuto;
  ComputeType dtype = ComputeType::kBFloat16;
  struct Model {
    std::string path;
    std::optional<DagConfig> dag;
  } model;
  std::vector<TrainableEntry> trainable;
  struct Esft {
    std::string experts;  ///< the file that says what `trainable: [esft]` means (peft/esft.h)
  };
  std::optional<Esft> esft;
  std::optional<LoraRecipe> lora;
  SaveAs save_as = SaveAs::kAuto;  ///< auto: an adapter with `lora`, else a model
  struct Data {
    std::vector<DataRecipe> train, valid;
    double valid_fraction = 0.0;  ///< of the records of `train`, by their content
    std::int64_t max_seq_len = 512, max_bad_records = 0, limit = 0;
    bool packing = true, shuffle = true, deduplicate = false;
    std::int64_t packing_lookahead = 64;  ///< examples among which the one that fits best is looked for
    Tokenization tokenization = Tokenization::kSeparate;
    LongSamples long_samples = LongSamples::kTruncate;
    bool ends_cut_with_eos = false;
    std::int64_t shuffle_buffer = 10000, tokenizer_threads = 0;  ///< see ExampleStreamOptions
  } data;
  struct Batch {
    std::optional<std::int64_t> tokens, sequences;
    std::int64_t micro_batch_tokens = 4096;
    bool share_prefixes = true;  ///< see SharedBatch; where something is drawn for each sample alone it has no effect
  } batch;
  std::optional<std::int64_t> epochs, steps;
  struct Optimizer {
    OptimizerKind name = OptimizerKind::kAdamW;
    double lr = 2e-5, eps = 1e-8, weight_decay = 0.0, momentum = 0.95;
    bool nesterov = true;
    std::vector<double> betas{0.9, 0.999};
  } optimizer;
  ScheduleConfig schedule;
  double max_grad_norm = 1.0;
  double label_smoothing = 0.0, neftune_alpha = 0.0;
  double router_aux_loss_coef = 0.0, router_z_loss_coef = 0.0, router_bias_update_rate = 0.0;
  BalanceScope router_aux_loss_scope = BalanceScope::kGlobal;
  bool recompute = false;  ///< keep only each layer's input; the backward pass runs the layers again
  struct Memory {
    double budget_gb = 0.0;  ///< of 1e9 resident bytes; as few layers run again as stay within it (plan_recompute.h)
  };
  std::optional<Memory> memory;
  std::int64_t max_skipped_steps = 0;
  struct Eval {
    std::int64_t every_steps = 0;
    std::vector<std::string> tasks;
    std::int64_t limit = 0;                    ///< documents a task; 0: all
    std::string data_dir = "datasets";         ///< what the tasks' paths are resolved against
    std::vector<std::string> datasets;         ///< "TASK=FILE[,LABELS]", as dagmoe eval --dataset takes it
    std::int64_t early_stopping_patience = 0;  ///< validations without improvement; 0: never stop early
    double early_stopping_min_delta = 0.0;     ///< nats per token that count as improvement
  } eval;
  struct Checkpoints {
    std::int64_t every_steps = 0, keep_last = 2;
    bool keep_best = false;  ///< of the validations
  } checkpoint;

  std::string file;  ///< where it was read from, for messages
};

bool saves_adapter(const Recipe& recipe);
/// Why beginnings that samples have in common cannot be computed once, as "because ..."; empty: they can.
std::string why_prefixes_stay_apart(const Recipe& recipe);
bool shares_prefixes(const Recipe& recipe);

/// Throws ConfigError with every problem of the file: unknown keys, types, ranges, contradictions (epochs and steps).
Recipe load_recipe(const std::filesystem::path& path, std::span<const std::string> overrides = {});
/// Every field, defaults too; load_recipe reads it back to an equal recipe.
std::string to_yaml(Recipe recipe);
/// Every setting of a recipe's text by its dotted path ("optimizer.lr" -> "2e-05"), to compare two of them.
std::map<std::string, std::string> recipe_settings(std::string_view yaml);
/// Settings of this recipe that differ from their default and change nothing, a line each ("schedule.decay_fraction has
/// no effect unless schedule.kind is wsd"). `router_gets_gradient`: something that trains lies before a router or in
/// one. Keys that have no effect because data is missing are among them.
std::vector<std::string> settings_without_effect(const Recipe& recipe, const ModelConfig& model,
                                                 bool router_gets_gradient);

}  // namespace dagmoe
