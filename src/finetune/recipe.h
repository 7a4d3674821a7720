#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "data/example.h"
#include "finetune/optimizer.h"
#include "finetune/schedule.h"
#include "model/config.h"

namespace dagmoe {

enum class ComputeType { kFloat32, kBFloat16 };
enum class Device { kAuto, kCpu, kCuda };

/// Template "auto" takes the model's own chat template.
struct DataRecipe {
  std::string path;
  RecordFormat format = RecordFormat::kAlpaca;
  std::string prompt_template = "auto";
  double weight = 1.0;
};

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
  std::vector<std::string> trainable;
  struct Data {
    std::vector<DataRecipe> train, valid;
    std::int64_t max_seq_len = 512, max_bad_records = 0, limit = 0;
    bool packing = true;
  } data;
  struct Batch {
    std::optional<std::int64_t> tokens, sequences;
    std::int64_t micro_batch_tokens = 4096;
  } batch;
  std::optional<std::int64_t> epochs, steps;
  struct Optimizer {
    std::string name = "adamw";
    double lr = 2e-5, eps = 1e-8, weight_decay = 0.0;
    std::vector<double> betas{0.9, 0.999};
  } optimizer;
  ScheduleConfig schedule;
  double max_grad_norm = 1.0;
  double router_aux_loss_coef = 0.0, router_z_loss_coef = 0.0;
  struct Eval {
    std::int64_t every_steps = 0;
    std::vector<std::string> tasks;
  } eval;
  struct Checkpoints {
    std::int64_t every_steps = 0, keep_last = 2;
  } checkpoint;

  std::string file;                           ///< where it was read from, for messages
  std::vector<std::string> trainable_places;  ///< "file:line:column" of each rule
};

/// Throws ConfigError with every problem of the file: unknown keys, types, ranges, contradictions (epochs and steps).
Recipe load_recipe(const std::filesystem::path& path, std::span<const std::string> overrides = {});
/// Every field, defaults too; load_recipe reads it back to an equal recipe.
std::string to_yaml(Recipe recipe);
/// Settings of this recipe that change nothing, a line each ("schedule.decay_fraction has no effect with kind
/// 'cosine'").
std::vector<std::string> settings_without_effect(const Recipe& recipe, const ModelConfig& model);

}  // namespace dagmoe
