#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <vector>

#include "finetune/trainer.h"

namespace dagmoe {

/// A folder checkpoint-N of a run: a loadable model or adapter, the trainer's state, and checkpoint.json, which is
/// written last and lists the size of every file.
struct FoundCheckpoint {
  std::filesystem::path path;
  std::int64_t step = 0;
};

std::filesystem::path checkpoint_path(const std::filesystem::path& run_folder, std::int64_t step);
/// Writes what a run leaves behind, a model or an adapter, into a folder that exists.
using SaveWeights = std::function<void(const std::filesystem::path& folder)>;
/// Appears whole or not at all. Throws InputError (disk full); earlier checkpoints stay as they are.
void save_checkpoint(const std::filesystem::path& path, const SaveWeights& save_weights, const Trainer& trainer);
/// All of a run by step, whole or not.
std::vector<FoundCheckpoint> list_checkpoints(const std::filesystem::path& run_folder);
/// What is wrong with a checkpoint: "model.safetensors has 12 bytes, expected 40"; nullopt when it is whole.
std::optional<std::string> checkpoint_damage(const std::filesystem::path& path);
/// The newest whole checkpoint; newer damaged ones are named in warnings. nullopt when there is none at all. Throws
/// InputError when every one is damaged: starting over would look like going on.
std::optional<FoundCheckpoint> newest_checkpoint(const std::filesystem::path& run_folder);
/// Deletes all but the newest `keep_last` checkpoints and that of `best_step`.
void drop_old_checkpoints(const std::filesystem::path& run_folder, std::int64_t keep_last,
                          std::optional<std::int64_t> best_step);

}  // namespace dagmoe
