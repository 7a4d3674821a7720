#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "checkpoint/adapter.h"

namespace dagmoe {

/// A base with adapters on it, each checked against this base; with the DAG that they bring, if any.
struct AdaptedModel {
  Checkpoint checkpoint;
  Decoder model;
  std::vector<Adapter> adapters;
};
/// Throws InputError for what is no adapter folder, does not fit the base, or was trained on another one.
AdaptedModel open_adapted(const std::filesystem::path& base, at::ScalarType dtype,
                          const std::vector<std::string>& adapters);

struct MergeOptions {
  bool force = false;    ///< replace an existing output
  bool dry_run = false;  ///< fold and compare, write nothing
};

/// What merging changes in one group of parameters.
struct MergedGroup {
  std::string group;
  std::int64_t num_tensors = 0, num_parameters = 0;
  double relative_change = 0.0;  ///< |W' - W| / |W| over the group; 1 for what the base lacks
};

struct MergeReport {
  std::vector<MergedGroup> groups;
  double max_logit = 0.0;
  double max_logit_difference = 0.0;    ///< merged against unmerged, both in float
  double max_written_difference = 0.0;  ///< the written model against unmerged: what rounding to its dtype costs
  std::string dtype;                    ///< of the base's weights
  bool is_written = false;
};

/// Folds adapters into a base, in float, and writes the result in the base's dtypes. Before that the folded model must
/// give the unfolded one's logits (1e-4 of the largest), on a fixed batch of token ids, and the written one those of
/// its own rounded weights; else NumericsError, and nothing is written.
MergeReport merge_adapters(const std::filesystem::path& base, const std::vector<std::string>& adapters,
                           const std::filesystem::path& output, const MergeOptions& options);

}  // namespace dagmoe
