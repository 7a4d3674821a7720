#include "finetune/run_data.h"

#include "base/log.h"
#include "base/text.h"

namespace dagmoe {
namespace {

// Steps depend on how examples pack, so they are counted by packing once.
std::int64_t count_steps(ExampleStream& stream, const StepBatchConfig& config, std::int64_t epochs) {
  const StreamPosition start = stream.position();
  std::int64_t steps = 0;
  for (std::int64_t epoch = 0; epoch < epochs; ++epoch) {
    while (next_step_batch(stream, config)) ++steps;
  }
  stream.seek(start);
  return steps;
}

void report_counters(const std::string& label, const StreamCounters& counters) {
  log_info(str(label, ": ", with_commas(counters.records), " records"));
  if (counters.duplicates > 0)
    log_info(str(label, ": ", with_commas(counters.duplicates), " records were there before and are left out"));
  for (const auto& report : counters.bad_record_reports) log_warning(report);
  if (counters.bad_records > 0)
    log_warning(str(label, ": ", counters.bad_records, " bad records were left out (data.max_bad_records allows it)"));
}

}  // namespace

std::vector<DecodedPiece> decoded_pieces(const Example& example, const Tokenizer& tokenizer) {
  std::vector<DecodedPiece> pieces;
  for (std::size_t begin = 0; begin < example.tokens.size();) {
    std::size_t end = begin;
    while (end < example.tokens.size() && example.loss_mask[end] == example.loss_mask[begin]) ++end;
    const std::span<const TokenId> ids(example.tokens.data() + begin, end - begin);
    pieces.push_back({tokenizer.decode(ids, /*keep_special=*/true), example.loss_mask[begin] != 0});
    begin = end;
  }
  return pieces;
}

void report_cuts(const StreamCounters& before, const StreamCounters& after, std::int64_t num_passes,
                 std::int64_t max_seq_len) {
  const std::int64_t truncated = (after.truncated - before.truncated) / num_passes,
                     skipped = (after.without_target - before.without_target) / num_passes,
                     split = (after.split - before.split) / num_passes;
  if (split > 0) {
    log_info(str("train: ", split, " texts are longer than data.max_seq_len (", max_seq_len,
                 " tokens) and are learnt in parts"));
  }
  if (truncated > 0) {
    log_warning(str("train: ", truncated, " samples were cut at data.max_seq_len (", max_seq_len,
                    " tokens), so they lost their end"));
  }
  const std::int64_t prompts_cut = (after.prompts_cut - before.prompts_cut) / num_passes,
                     dropped = (after.dropped - before.dropped) / num_passes;
  if (prompts_cut > 0) {
    log_warning(str("train: ", prompts_cut, " samples lost the beginning of their prompt to fit data.max_seq_len (",
                    max_seq_len, " tokens)"));
  }
  if (dropped > 0) {
    log_warning(str("train: ", dropped, " samples were dropped: they are longer than data.max_seq_len (", max_seq_len,
                    " tokens)"));
  }
  if (skipped > 0)
    log_warning(str("train: ", skipped, " samples were skipped: nothing to learn was left after the cut"));
}

RunData open_data(const Recipe& recipe, const std::filesystem::path& bad_records,
                  std::optional<std::int64_t> num_steps) {
  auto tokenizer = load_tokenizer(recipe.model.path);
  ExampleStreamOptions options = train_stream_options(recipe);
  if (!bad_records.empty()) options.bad_records_file = bad_records / "bad_records.jsonl";
  ExampleStream train(data_sources(recipe, recipe.data.train), *tokenizer, options);
  RunData data{.tokenizer = std::move(tokenizer), .train = std::move(train), .valid = {}};
  report_counters("train", data.train.counters());
  const bool is_split = recipe.data.valid_fraction > 0;
  if (is_split || !recipe.data.valid.empty()) {
    ExampleStreamOptions valid_options = valid_stream_options(recipe);
    // The bad records of a split file were reported with its other part.
    if (!bad_records.empty() && !is_split) valid_options.bad_records_file = bad_records / "bad_records_valid.jsonl";
    std::vector<SourceConfig> sources = data_sources(recipe, is_split ? recipe.data.train : recipe.data.valid);
    for (SourceConfig& source : sources) source.weight = source.epochs = std::nullopt;  // all of it, once
    data.valid.emplace(std::move(sources), *data.tokenizer, valid_options);
    if (is_split) {
      log_info(str("valid: ", with_commas(data.valid->size()), " of these records (data.valid_fraction)"));
    } else {
      report_counters("valid", data.valid->counters());
    }
  }
  if (num_steps) {
    data.num_steps = *num_steps;
    return data;
  }
  data.num_steps = recipe.steps ? *recipe.steps : count_steps(data.train, batch_config(recipe), *recipe.epochs);
  if (recipe.epochs) report_cuts({}, data.train.counters(), *recipe.epochs, recipe.data.max_seq_len);
  return data;
}

Json sample_json(ExampleStream& stream, const Tokenizer& tokenizer, std::int64_t count) {
  const StreamPosition start = stream.position();
  Json samples = Json::array();
  while (static_cast<std::int64_t>(samples.size()) < count) {
    const auto example = stream.next();
    if (!example) break;
    Json pieces = Json::array();
    for (const DecodedPiece& piece : decoded_pieces(*example, tokenizer))
      pieces.push_back({{"text", piece.text}, {"supervised", piece.is_supervised}});
    samples.push_back({{"source", std::filesystem::path(stream.place_of(*example)).filename().string()},
                       {"tokens", example->tokens.size()},
                       {"pieces", std::move(pieces)}});
  }
  stream.seek(start);
  return samples;
}

std::vector<PackedBatch> analysis_batches(ExampleStream& stream, std::int64_t micro_batch_tokens,
                                          std::int64_t max_tokens) {
  const StreamPosition start = stream.position();
  stream.seek({});
  auto step = next_step_batch(
      stream, {.step_tokens = max_tokens, .step_sequences = 0, .micro_batch_tokens = micro_batch_tokens});
  stream.seek(start);
  return step ? std::move(step->micro_batches) : std::vector<PackedBatch>();
}

}  // namespace dagmoe
