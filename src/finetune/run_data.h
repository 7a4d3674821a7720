#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/json.h"
#include "data/example_stream.h"
#include "data/packed_batch.h"
#include "data/tokenizer.h"
#include "finetune/recipe.h"
#include "finetune/run_setup.h"

namespace dagmoe {

/// The data of a run, scanned and counted.
struct RunData {
  std::unique_ptr<Tokenizer> tokenizer;
  ExampleStream train;
  std::optional<ExampleStream> valid;
  std::int64_t num_steps = 0;  ///< optimizer steps of the whole run
};
/// Reports on stderr what was read, left out and cut. `bad_records`: a folder into which bad_records.jsonl goes, and
/// bad_records_valid.jsonl; empty: nowhere. `num_steps`: how many the run has, when a checkpoint says so; else those of
/// a run of epochs are counted by packing all of them once.
RunData open_data(const Recipe& recipe, const std::filesystem::path& bad_records = {},
                  std::optional<std::int64_t> num_steps = std::nullopt);

/// Warns of training samples that lost their end, and tells of texts that were split, by the counters of a stream at
/// two moments. `num_passes`: how often it went over its samples between them.
void report_cuts(const StreamCounters& before, const StreamCounters& after, std::int64_t num_passes,
                 std::int64_t max_seq_len);

/// Neighbouring tokens of an example of which all are learnt or none, as text with its control tokens.
struct DecodedPiece {
  std::string text;
  bool is_supervised = false;
};
std::vector<DecodedPiece> decoded_pieces(const Example& example, const Tokenizer& tokenizer);

/// The first training samples as they are learnt: [{"source": "file:line", "tokens": n, "pieces": [{"text",
/// "supervised"}]}]. The stream stands afterwards where it stood before.
Json sample_json(ExampleStream& stream, const Tokenizer& tokenizer, std::int64_t count);

/// The first samples of a stream, about `max_tokens` of them, as batches for an analysis. The stream stands afterwards
/// where it stood before.
std::vector<PackedBatch> analysis_batches(ExampleStream& stream, std::int64_t micro_batch_tokens,
                                          std::int64_t max_tokens);

}  // namespace dagmoe
