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
  for (const auto& report : counters.bad_record_reports) log_warning(report);
  if (counters.bad_records > 0)
    log_warning(str(label, ": ", counters.bad_records, " bad records were left out (data.max_bad_records allows it)"));
}

// Neighbouring tokens of one kind as one text.
Json pieces_of(const Example& example, const Tokenizer& tokenizer) {
  Json pieces = Json::array();
  for (std::size_t begin = 0; begin < example.tokens.size();) {
    std::size_t end = begin;
    while (end < example.tokens.size() && example.loss_mask[end] == example.loss_mask[begin]) ++end;
    const std::span<const TokenId> ids(example.tokens.data() + begin, end - begin);
    pieces.push_back(
        {{"text", tokenizer.decode(ids, /*keep_special=*/true)}, {"supervised", example.loss_mask[begin] != 0}});
    begin = end;
  }
  return pieces;
}

}  // namespace

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
                    " tokens), so they lost their end token"));
  }
  if (skipped > 0)
    log_warning(str("train: ", skipped, " samples were skipped: nothing to learn was left after the cut"));
}

RunData open_data(const Recipe& recipe) {
  auto tokenizer = load_tokenizer(recipe.model.path);
  ExampleStream train(data_sources(recipe, recipe.data.train), *tokenizer, train_stream_options(recipe));
  RunData data{.tokenizer = std::move(tokenizer), .train = std::move(train), .valid = {}};
  report_counters("train", data.train.counters());
  if (!recipe.data.valid.empty()) {
    data.valid.emplace(data_sources(recipe, recipe.data.valid), *data.tokenizer, valid_stream_options(recipe));
    report_counters("valid", data.valid->counters());
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
    samples.push_back({{"source", str("line ", example->line)},
                       {"tokens", example->tokens.size()},
                       {"pieces", pieces_of(*example, tokenizer)}});
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
