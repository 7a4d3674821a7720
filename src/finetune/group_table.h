#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/json.h"
#include "finetune/run_setup.h"

namespace dagmoe {

/// One row of the table that is printed before the first step: what trains, how, and what it costs.
struct GroupRow {
  std::string group;
  std::int64_t num_tensors = 0, num_parameters = 0, num_trainable = 0;
  double min_lr = 0.0, max_lr = 0.0;                      ///< peak, of what trains
  double min_weight_decay = 0.0, max_weight_decay = 0.0;  ///< of what trains
  MemoryParts memory;
};
/// In the order of parameter_groups(); groups that the model lacks are left out.
std::vector<GroupRow> group_rows(const RunSetup& setup);
std::string group_table(const std::vector<GroupRow>& rows);
/// What a model consists of, without a run: group, tensors, parameters.
std::string parameter_table(const ModelConfig& config);
/// For the report: [{"group", "tensors", "parameters", "trainable", "lr", "weight_decay", "bytes"}].
Json group_json(const std::vector<GroupRow>& rows);

}  // namespace dagmoe
