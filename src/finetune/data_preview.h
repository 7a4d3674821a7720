#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/json.h"
#include "data/example_stream.h"
#include "finetune/recipe.h"
#include "finetune/run_data.h"

namespace dagmoe {

struct PreviewSample {
  std::string place;  ///< "file:line"
  std::int64_t tokens = 0, supervised_tokens = 0;
  std::vector<DecodedPiece> pieces;
};

/// What looks wrong in the samples: how many, and where the first few are.
struct PreviewFinding {
  std::string what, advice;
  std::int64_t count = 0;
  std::vector<std::string> places;
};

struct PreviewSource {
  std::string path;
  std::int64_t records = 0;          ///< good ones
  std::int64_t draws_per_epoch = 0;  ///< as the mixture has it
  SourceCounts seen;
};

/// What a recipe's training data becomes, without a model: the first samples, and counts over more of them.
struct DataPreview {
  bool is_all = false;
  std::int64_t max_seq_len = 0, samples_seen = 0, tokens = 0, supervised_tokens = 0;
  std::vector<PreviewSample> samples;
  std::vector<PreviewSource> sources;
  StreamCounters counters;
  std::int64_t duplicates = 0;        ///< among the samples seen
  std::vector<std::int64_t> lengths;  ///< how many samples have so many tokens
  /// Over the first 10,000 samples: steps as training forms them, and their tokens over what they could hold.
  std::int64_t packed_samples = 0, packed_batches = 0;
  double packing_efficiency = 0.0;
  std::vector<PreviewFinding> findings;
};

struct PreviewOptions {
  std::int64_t num_samples = 4;
  bool all = false;  ///< count over every sample, in the order of the files; else over the first 10,000 of the run
};
/// Throws what opening the data throws.
DataPreview preview_data(const Recipe& recipe, const PreviewOptions& options);

/// For people. Supervised text is coloured, or stands in [[ ]].
std::string preview_text(const DataPreview& preview, bool color);
Json preview_json(const DataPreview& preview);

}  // namespace dagmoe
