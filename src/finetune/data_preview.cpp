#include "finetune/data_preview.h"

#include <algorithm>
#include <array>

#include "base/progress.h"
#include "base/text.h"
#include "data/duplicate_counter.h"
#include "data/packed_batch.h"
#include "finetune/run_setup.h"

namespace dagmoe {
namespace {

constexpr std::int64_t kFirstSamples = 10000;
constexpr std::size_t kMaxPlaces = 5;

// Where a turn begins or ends under one of the templates; in an answer they are a leak.
constexpr std::array<std::string_view, 12> kMarkers = {
    "### Instruction:", "### Input:", "### Response:", "### User:", "<|im_start|>",        "<|im_end|>",
    "<|endoftext|>",    "[INST]",     "[/INST]",       "<<SYS>>",   "<|start_header_id|>", "<|eot_id|>"};

/// Looks at every sample for what is most often wrong with data.
class Inspector {
 public:
  Inspector(const ExampleStream& stream, const Tokenizer& tokenizer)
      : stream_(stream),
        tokenizer_(tokenizer),
        eos_(tokenizer.eos_id() ? tokenizer.token_bytes(*tokenizer.eos_id()) : "") {
    findings_ = {{"samples begin with BOS twice", "take the BOS text out of the records", 0, {}},
                 {"samples have no end token behind their last answer", "generation would not learn to stop", 0, {}},
                 {"samples have an empty answer", "white space alone teaches nothing", 0, {}},
                 {"answers hold a turn marker of a template", "was a prompt pasted into them?", 0, {}}};
    for (TokenId id = 0; id < static_cast<TokenId>(tokenizer.vocab_size()); ++id)
      is_control_.push_back(tokenizer.decode({&id, 1}).empty() && !tokenizer.decode({&id, 1}, true).empty());
  }

  void look_at(const StreamExample& example) {
    if (begins_with_bos_twice(example)) find(kDoubledBos, example);
    if (!example.truncated && !has_end(example)) find(kNoEnd, example);
    ids_.clear();
    for (std::size_t i = 0; i < example.tokens.size(); ++i) {
      if (example.loss_mask[i] != 0 && !is_control(example.tokens[i])) ids_.push_back(example.tokens[i]);
    }
    const std::string answer = tokenizer_.decode(ids_);
    if (trim(answer).empty()) find(kEmpty, example);
    const auto is_in = [&answer](std::string_view marker) { return answer.find(marker) != std::string::npos; };
    if ((!eos_.empty() && is_in(eos_)) || std::ranges::any_of(kMarkers, is_in)) find(kLeak, example);
  }

  std::vector<PreviewFinding> findings() const {
    std::vector<PreviewFinding> found;
    std::ranges::copy_if(findings_, std::back_inserter(found), [](const auto& each) { return each.count > 0; });
    return found;
  }

 private:
  enum Kind : std::size_t { kDoubledBos, kNoEnd, kEmpty, kLeak };

  void find(Kind kind, const StreamExample& example) {
    PreviewFinding& finding = findings_[kind];
    ++finding.count;
    if (finding.places.size() < kMaxPlaces) finding.places.push_back(stream_.place_of(example));
  }
  bool is_control(TokenId id) const { return is_control_[static_cast<std::size_t>(id)]; }
  // As a token or spelled out in the text.
  bool begins_with_bos_twice(const Example& example) const {
    if (!tokenizer_.bos_id() || example.tokens.front() != *tokenizer_.bos_id()) return false;
    const std::string bos = tokenizer_.token_bytes(*tokenizer_.bos_id());
    const std::size_t count = std::min<std::size_t>(example.tokens.size() - 1, bos.size() + 1);
    const std::string behind = tokenizer_.decode({example.tokens.data() + 1, count}, /*keep_special=*/true);
    return trim(behind).starts_with(bos);
  }
  // Some templates have white space behind the end token.
  bool has_end(const Example& example) const {
    for (std::size_t i = example.tokens.size(); i-- > 0;) {
      if (example.loss_mask[i] == 0) continue;
      if (is_control(example.tokens[i])) return true;
      if (!trim(tokenizer_.token_bytes(example.tokens[i])).empty()) return false;
    }
    return false;
  }

  const ExampleStream& stream_;
  const Tokenizer& tokenizer_;
  std::string eos_;
  std::vector<TokenId> ids_;
  std::vector<bool> is_control_;
  std::vector<PreviewFinding> findings_;
};

ContentHash token_hash(const Example& example) {
  return hash_of({reinterpret_cast<const char*>(example.tokens.data()), example.tokens.size() * sizeof(TokenId)});
}

void count_samples(DataPreview& preview, ExampleStream& stream, const Tokenizer& tokenizer,
                   const PreviewOptions& options) {
  Inspector inspector(stream, tokenizer);
  DuplicateCounter duplicates;
  const std::int64_t most = options.all ? stream.size() : std::min(kFirstSamples, stream.size());
  Progress progress("samples", most);
  while (options.all || preview.samples_seen < most) {
    const auto example = stream.next();
    if (!example) break;
    const auto size = static_cast<std::int64_t>(example->tokens.size());
    if (preview.samples_seen < options.num_samples)
      preview.samples.push_back(
          {stream.place_of(*example), size, example->num_targets(), decoded_pieces(*example, tokenizer)});
    ++preview.samples_seen;
    preview.tokens += size;
    preview.supervised_tokens += example->num_targets();
    if (size >= std::ssize(preview.lengths)) preview.lengths.resize(static_cast<std::size_t>(size) + 1);
    ++preview.lengths[static_cast<std::size_t>(size)];
    SourceCounts& seen = preview.sources[example->source].seen;
    seen.samples += 1, seen.tokens += size, seen.supervised_tokens += example->num_targets();
    inspector.look_at(*example);
    duplicates.add(token_hash(*example));
    if (preview.samples_seen % 1024 == 0) progress.update(preview.samples_seen, "");
  }
  progress.finish("");
  preview.duplicates = duplicates.count();
  preview.findings = inspector.findings();
  preview.counters = stream.counters();
}

void pack_samples(DataPreview& preview, ExampleStream& stream, const StepBatchConfig& config) {
  stream.seek({});
  std::int64_t num_tokens = 0, capacity = 0;
  while (preview.packed_samples < kFirstSamples) {
    const auto step = next_step_batch(stream, config);
    if (!step) break;
    preview.packed_samples += step->num_examples;
    preview.packed_batches += std::ssize(step->micro_batches);
    num_tokens += step->num_tokens;
    // A step of so many samples is as long as they are.
    capacity += config.step_sequences > 0 ? step->num_tokens : std::max(config.step_tokens, step->num_tokens);
  }
  preview.packing_efficiency = capacity == 0 ? 0.0 : static_cast<double>(num_tokens) / static_cast<double>(capacity);
}

// The length that a share of the samples do not exceed.
std::int64_t length_at(const DataPreview& preview, double share) {
  std::int64_t count = 0;
  for (std::size_t length = 0; length < preview.lengths.size(); ++length) {
    count += preview.lengths[length];
    if (static_cast<double>(count) >= share * static_cast<double>(preview.samples_seen))
      return static_cast<std::int64_t>(length);
  }
  return 0;
}

struct LengthRange {
  std::int64_t first, last, count;
};
// 1 to 31 tokens, 32 to 63, and so on, each twice as wide.
std::vector<LengthRange> length_ranges(const DataPreview& preview) {
  std::vector<LengthRange> ranges;
  for (std::int64_t first = 1, next = 32; first < std::ssize(preview.lengths); first = next, next *= 2) {
    const std::int64_t end = std::min<std::int64_t>(next, std::ssize(preview.lengths));
    std::int64_t count = 0;
    for (std::int64_t length = first; length < end; ++length)
      count += preview.lengths[static_cast<std::size_t>(length)];
    ranges.push_back({first, next - 1, count});
  }
  return ranges;
}

std::string sample_lines(const PreviewSample& sample, bool color) {
  std::string text = str(sample.place, ": ", sample.tokens, " tokens, ", sample.supervised_tokens, " learnt\n");
  for (const DecodedPiece& piece : sample.pieces) {
    // Text of a file must not steer the terminal.
    std::string shown;
    for (const std::string& line : split(piece.text, '\n')) shown += (shown.empty() ? "" : "\n") + one_line(line);
    if (piece.text.starts_with('\n') && !shown.starts_with('\n')) shown = "\n" + shown;
    if (piece.is_supervised) shown = color ? "\x1b[32m" + shown + "\x1b[0m" : "[[" + shown + "]]";
    text += shown;
  }
  return text + "\n\n";
}

std::string histogram(const DataPreview& preview) {
  constexpr std::int64_t kBarWidth = 40;
  std::string text;
  std::int64_t largest = 1;
  for (const LengthRange& range : length_ranges(preview)) largest = std::max(largest, range.count);
  for (const LengthRange& range : length_ranges(preview)) {
    const std::string label = str(range.first, "-", range.last);
    text += str("  ", std::string(12 - std::min<std::size_t>(12, label.size()), ' '), label, " ",
                std::string(static_cast<std::size_t>((range.count * kBarWidth + largest - 1) / largest), '#'), " ",
                with_commas(range.count), "\n");
  }
  return text;
}

std::string packing_line(const DataPreview& preview) {
  if (preview.packed_batches == 0) return "packing: off\n";
  return str("packing: steps are filled to ", fixed(100 * preview.packing_efficiency, 2), "%, in ",
             with_commas(preview.packed_batches), " micro batches (first ", with_commas(preview.packed_samples),
             " samples); there is no padding\n");
}

}  // namespace

DataPreview preview_data(const Recipe& recipe, const PreviewOptions& options) {
  const auto tokenizer = load_tokenizer(recipe.model.path);
  ExampleStreamOptions stream_options = train_stream_options(recipe);
  // Counts do not depend on the order, and a file read from front to back is read fastest.
  if (options.all) stream_options.shuffle = false;
  ExampleStream stream(data_sources(recipe, recipe.data.train), *tokenizer, stream_options);
  DataPreview preview;
  preview.is_all = options.all;
  preview.max_seq_len = recipe.data.max_seq_len;
  for (std::size_t i = 0; i < static_cast<std::size_t>(stream.num_sources()); ++i)
    preview.sources.push_back({stream.source_name(i), stream.source_share(i).size, stream.draws(i), {}});
  count_samples(preview, stream, *tokenizer, options);
  if (recipe.data.packing) pack_samples(preview, stream, batch_config(recipe));
  return preview;
}

std::string preview_text(const DataPreview& preview, bool color) {
  std::string text;
  for (const PreviewSample& sample : preview.samples) text += sample_lines(sample, color);
  std::vector<std::vector<std::string>> rows = {{"source", "records", "an epoch", "samples", "tokens", "learnt"}};
  for (const PreviewSource& source : preview.sources) {
    rows.push_back({source.path, with_commas(source.records), with_commas(source.draws_per_epoch),
                    with_commas(source.seen.samples), with_commas(source.seen.tokens),
                    with_commas(source.seen.supervised_tokens)});
  }
  text += table_text(rows) + "\n";
  const double count = static_cast<double>(std::max<std::int64_t>(preview.samples_seen, 1));
  text += str(preview.is_all ? "all " : "the first ", with_commas(preview.samples_seen),
              " samples: ", with_commas(preview.tokens), " tokens, ", with_commas(preview.supervised_tokens),
              " learnt; a sample has ", fixed(static_cast<double>(preview.tokens) / count, 1), " (median ",
              length_at(preview, 0.5), ", 90% ", length_at(preview, 0.9), ", 99% ", length_at(preview, 0.99),
              ", longest ", std::max<std::int64_t>(std::ssize(preview.lengths) - 1, 0), ")\n");
  text += histogram(preview);
  text += packing_line(preview);
  const StreamCounters& counters = preview.counters;
  text += str("longer than data.max_seq_len (", preview.max_seq_len, "): ", counters.truncated, " lost their end, ",
              counters.prompts_cut, " the beginning of their prompt, ", counters.dropped, " were dropped, ",
              counters.split, " texts were split; ", counters.without_target, " have nothing to learn\n");
  text += str("bad records: ", counters.bad_records, " of ", with_commas(counters.records), "\n");
  for (const std::string& report : counters.bad_record_reports) text += "  " + one_line(report) + "\n";
  text += str("duplicates: ", with_commas(preview.duplicates), " of the samples seen",
              counters.duplicates > 0 ? str("; ", with_commas(counters.duplicates), " left out before") : "", "\n");
  for (const PreviewFinding& finding : preview.findings)
    text += str("warning: ", with_commas(finding.count), " ", finding.what, ": ", finding.advice, " (",
                join(finding.places, ", "), finding.count > std::ssize(finding.places) ? ", ..." : "", ")\n");
  return text;
}

Json preview_json(const DataPreview& preview) {
  Json samples = Json::array(), sources = Json::array(), lengths = Json::array(), findings = Json::array();
  for (const PreviewSample& sample : preview.samples) {
    Json pieces = Json::array();
    for (const DecodedPiece& piece : sample.pieces)
      pieces.push_back({{"text", piece.text}, {"supervised", piece.is_supervised}});
    samples.push_back({{"source", sample.place},
                       {"tokens", sample.tokens},
                       {"supervised_tokens", sample.supervised_tokens},
                       {"pieces", pieces}});
  }
  for (const PreviewSource& source : preview.sources) {
    sources.push_back({{"path", source.path},
                       {"records", source.records},
                       {"draws_per_epoch", source.draws_per_epoch},
                       {"samples", source.seen.samples},
                       {"tokens", source.seen.tokens},
                       {"supervised_tokens", source.seen.supervised_tokens}});
  }
  for (const LengthRange& range : length_ranges(preview))
    lengths.push_back({{"from", range.first}, {"to", range.last}, {"samples", range.count}});
  for (const PreviewFinding& finding : preview.findings)
    findings.push_back({{"what", finding.what}, {"count", finding.count}, {"places", finding.places}});
  const StreamCounters& counters = preview.counters;
  return {{"samples", samples},
          {"sources", sources},
          {"samples_seen", preview.samples_seen},
          {"all", preview.is_all},
          {"tokens", preview.tokens},
          {"supervised_tokens", preview.supervised_tokens},
          {"length",
           {{"median", length_at(preview, 0.5)},
            {"p90", length_at(preview, 0.9)},
            {"p99", length_at(preview, 0.99)},
            {"max", std::max<std::int64_t>(std::ssize(preview.lengths) - 1, 0)},
            {"histogram", lengths}}},
          {"packing",
           {{"efficiency", preview.packing_efficiency},
            {"micro_batches", preview.packed_batches},
            {"samples", preview.packed_samples}}},
          {"truncated", counters.truncated},
          {"prompts_cut", counters.prompts_cut},
          {"dropped", counters.dropped},
          {"split", counters.split},
          {"without_target", counters.without_target},
          {"records", counters.records},
          {"bad_records", counters.bad_records},
          {"bad_record_reports", counters.bad_record_reports},
          {"duplicates", preview.duplicates},
          {"duplicates_left_out", counters.duplicates},
          {"findings", findings}};
}

}  // namespace dagmoe
