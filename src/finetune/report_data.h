#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/json.h"

namespace dagmoe {

/// Values by step, in the order of the file. What was null or absent (a skipped step's loss) has no entry.
struct Series {
  std::vector<double> step, value;
  bool empty() const { return value.empty(); }
};

/// A task's metric each time it was measured; `error` is its standard error where one was written.
struct ScoreSeries {
  std::string task, metric;
  struct At {
    std::int64_t step = 0;
    double value = 0;
    std::optional<double> error;
  };
  std::vector<At> at;
};

/// Assignments of tokens to experts, summed over steps [first_step, last_step].
struct ExpertHistory {
  std::vector<std::int64_t> layers;
  std::vector<std::vector<std::int64_t>> counts_LE;
  std::int64_t first_step = 0, last_step = 0;
};

struct GroupLine {
  std::string group;
  std::int64_t tensors = 0, parameters = 0, trainable = 0, bytes = 0;
  std::string lr, weight_decay;  ///< a number, or two with dots between; empty: frozen
};

struct SamplePiece {
  std::string text;
  bool supervised = false;
};
struct SampleText {
  std::string source;
  std::int64_t tokens = 0;
  std::vector<SamplePiece> pieces;
};

/// edge_strength_json (model/edge_strength.h) read back.
struct EdgeIterationData {
  std::vector<std::vector<double>> mean_EE;
  double symmetric_share = 0, self_edge_share = 0;
};
struct EdgeLayerData {
  std::int64_t layer = 0;
  std::vector<std::vector<std::int64_t>> count_EE;
  std::vector<EdgeIterationData> iterations;
};
struct EdgeData {
  std::int64_t tokens = 0;
  std::vector<EdgeLayerData> layers;
};

/// What a run folder says about its run. `series` has every number of the step lines by its key, nested ones as
/// "grad_norm_by_group/dag", and valid_loss.
struct RunRecord {
  std::filesystem::path folder;
  std::string name;
  std::map<std::string, Series> series;
  std::vector<ScoreSeries> scores;
  std::int64_t num_steps = 0, num_skipped = 0;
  bool last_line_torn = false;

  std::optional<std::string> recipe_text;
  std::vector<std::pair<std::string, std::string>> recipe;  ///< dotted key and value
  std::optional<Json> environment;
  std::optional<ExpertHistory> experts;
  std::optional<std::vector<GroupLine>> groups;
  std::optional<std::vector<SampleText>> samples;
  std::optional<EdgeData> edges_before, edges_after;

  /// An empty series where nothing was written under that key.
  const Series& of(const std::string& key) const;
  /// The value of a recipe key; "" where there is none.
  std::string recipe_value(const std::string& key) const;
};

/// Throws as write_report does.
RunRecord read_run(const std::filesystem::path& folder);

}  // namespace dagmoe
