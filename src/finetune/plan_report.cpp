// The plan as text and as JSON.
#include "base/text.h"
#include "finetune/plan.h"

namespace dagmoe {
namespace {

struct MemoryRow {
  const char* name;
  std::int64_t bytes;
  const char* what;
};

std::vector<MemoryRow> memory_rows(const MemoryPlan& memory) {
  return {{"weights", memory.weights, "copies in the compute type"},
          {"master", memory.master, "fp32 weights that train"},
          {"gradients", memory.gradients, "fp32"},
          {"optimizer", memory.optimizer, "its state"},
          {"activations", memory.activations, "kept for the backward pass"},
          {"logits", memory.logits, "of 512 tokens at a time, and what is summed with them"},
          {"program", memory.program, "code, tokenizer, data"},
          {"mapped", memory.mapped, "pages of the model's files; the system takes them back at need"}};
}

std::string section(const std::string& title, const std::string& body) { return str("\n", title, "\n", body); }

std::string indented(const std::string& text) {
  std::string result;
  for (const auto& line : split(text, '\n')) {
    if (!line.empty()) result += str("  ", line, "\n");
  }
  return result;
}

std::string memory_text(const MemoryPlan& memory) {
  std::vector<std::vector<std::string>> cells{{"", "bytes", ""}};
  for (const MemoryRow& row : memory_rows(memory)) cells.push_back({row.name, human_bytes(row.bytes), row.what});
  cells.push_back({"total", human_bytes(memory.total()), ""});
  return table_text(cells);
}

std::string rounded(double value) { return with_commas(static_cast<std::int64_t>(value + 0.5)); }

std::string data_text(const DataPlan& data) {
  const BatchShape& largest = data.micro_batches.largest;
  std::string text =
      str(with_commas(data.records), " records", data.bad_records > 0 ? str(", ", data.bad_records, " bad") : "", "; ",
          with_commas(data.num_steps), data.num_steps == 1 ? " step\n" : " steps\n");
  text +=
      str("a step: ", rounded(data.tokens_per_step), " tokens, ", rounded(data.supervised_per_step), " supervised, ",
          rounded(data.sequences_per_step), " samples, ", fixed(data.micro_batches_per_step, 1), " micro batches",
          data.packed_steps < data.num_steps ? str(" (mean of the first ", data.packed_steps, ")") : "", "\n");
  if (const double shared = data.tokens_per_step - data.computed_per_step; shared > 0)
    text += str("of these tokens ", fixed(100 * shared / data.tokens_per_step, 1),
                " % are beginnings that samples share, and are not computed again\n");
  text += str("largest micro batch: ", with_commas(largest.tokens),
              " tokens; longest sample: ", with_commas(largest.longest_sequence), "\n");
  if (data.truncated > 0) text += str(data.truncated, " samples lose their end at max_seq_len\n");
  if (data.split > 0) text += str(data.split, " texts are longer than max_seq_len and are learnt in parts\n");
  if (data.skipped > 0) text += str(data.skipped, " samples are skipped: nothing to learn is left of them\n");
  return text;
}

std::string seconds_text(double seconds) { return seconds < 10 ? fixed(seconds, 1) + " s" : human_seconds(seconds); }

std::string time_text(const RunPlan& plan) {
  const TimePlan& time = plan.time;
  const auto steps = static_cast<double>(plan.data.num_steps);
  if (time.is_measured) {
    return str("measured on one micro batch: ", seconds_text(time.step_seconds_low), " a step, ",
               rounded(plan.data.tokens_per_step / time.step_seconds_low), " tokens a second, ",
               seconds_text(time.step_seconds_low * steps), " for all steps\n");
  }
  if (time.gemm_peak == 0) return str(fixed(time.flops_per_step / 1e9, 1), " GFLOP a step in matrix products\n");
  return str("estimated, not measured (--measure does): ", seconds_text(time.step_seconds_low), " to ",
             seconds_text(time.step_seconds_high), " a step, ", seconds_text(time.step_seconds_low * steps), " to ",
             seconds_text(time.step_seconds_high * steps), " for all steps\n", "from ",
             fixed(time.flops_per_step / 1e9, 1), " GFLOP a step in matrix products and this machine's ",
             fixed(time.gemm_peak / 1e9, 0), " GFLOP/s, of which a step reaches ", fixed(100 * kLeastGemmShare, 0),
             " to ", fixed(100 * kMostGemmShare, 0), " %\n");
}

// What running layers again adds to the operations of a step.
double added_share(const TimePlan& time) {
  const double without = time.flops_per_step - time.recompute_flops_per_step;
  return without > 0 ? time.recompute_flops_per_step / without : 0.0;
}

std::string sample_text(const Json& sample, bool color) {
  std::string text;
  for (const Json& piece : sample.at("pieces")) {
    const auto words = piece.at("text").get<std::string>();
    if (!piece.at("supervised").get<bool>()) {
      text += words;
    } else {
      text += color ? str("\x1b[32m", words, "\x1b[0m") : str("[[", words, "]]");
    }
  }
  return text;
}

std::string samples_text(const Json& samples, bool color) {
  std::string text;
  for (const Json& sample : samples) {
    text += str(sample.at("source").get<std::string>(), ", ", sample.at("tokens").dump(), " tokens\n",
                indented(sample_text(sample, color)));
  }
  return text;
}

}  // namespace

std::string plan_text(const RunPlan& plan, bool color) {
  std::string text = str("Plan of ", plan.recipe_file, "; nothing was written\n");
  text += section("Model", indented(str(plan.model_path, "\n", plan.model_summary)));
  text += section("Trains", indented(group_table(plan.groups)));
  text += section("Data", indented(data_text(plan.data)));
  text += section(str("Memory at its fullest (", plan.memory.moment, ")"), indented(memory_text(plan.memory)));
  if (!plan.recompute_text.empty()) {
    text += indented(str(plan.recompute_text, ", whatever the data; ", fixed(100 * added_share(plan.time), 1),
                         " % more operations a step\n"));
  }
  text += section("Time of the steps", indented(time_text(plan)));
  std::string output = plan.output.folder.string() + "\n";
  for (const auto& line : plan.output.consequences) output += line + "\n";
  for (const auto& line : plan.output.damaged) output += str("damaged: ", line, "\n");
  text += section("Output", indented(output));
  std::string warnings;
  for (const auto& line : plan.warnings) warnings += line + "\n";
  if (!warnings.empty()) text += section("Without effect, or doubtful", indented(warnings));
  text += section(str("First samples, what is learnt ", color ? "in green" : "in [[ ]]"),
                  indented(samples_text(plan.samples, color)));
  return text;
}

Json plan_json(const RunPlan& plan) {
  Json memory = Json::object();
  for (const MemoryRow& row : memory_rows(plan.memory)) memory[row.name] = row.bytes;
  memory["total"] = plan.memory.total();
  memory["moment"] = plan.memory.moment;
  const DataPlan& data = plan.data;
  const BatchShape& largest = data.micro_batches.largest;
  Json checkpoints = Json::array();
  for (const FoundCheckpoint& found : plan.output.checkpoints) checkpoints.push_back(found.step);
  const TimePlan& time = plan.time;
  const auto steps = static_cast<double>(data.num_steps);
  const bool has_time = time.is_measured || time.gemm_peak > 0;
  const auto seconds = [has_time](double value) { return has_time ? Json(value) : Json(nullptr); };
  return {{"recipe", plan.recipe_file},
          {"model", {{"path", plan.model_path}, {"summary", plan.model_summary}}},
          {"groups", group_json(plan.groups)},
          {"data",
           {{"records", data.records},
            {"bad_records", data.bad_records},
            {"steps", data.num_steps},
            {"packed_steps", data.packed_steps},
            {"tokens_per_step", data.tokens_per_step},
            {"computed_tokens_per_step", data.computed_per_step},
            {"supervised_tokens_per_step", data.supervised_per_step},
            {"sequences_per_step", data.sequences_per_step},
            {"micro_batches_per_step", data.micro_batches_per_step},
            {"largest_micro_batch_tokens", largest.tokens},
            {"longest_sequence", largest.longest_sequence},
            {"truncated", data.truncated},
            {"split", data.split},
            {"skipped", data.skipped}}},
          {"memory", std::move(memory)},
          {"recompute",
           {{"layers", plan.recompute.layers},
            {"layers_reached", plan.recompute.num_reached},
            {"most_bytes", plan.recompute.most_bytes},
            {"added_flops_share", added_share(time)}}},
          {"time",
           {{"measured", time.is_measured},
            {"flops_per_step", time.flops_per_step},
            {"gemm_peak", time.gemm_peak > 0 ? Json(time.gemm_peak) : Json(nullptr)},
            {"step_seconds", {seconds(time.step_seconds_low), seconds(time.step_seconds_high)}},
            {"total_seconds", {seconds(time.step_seconds_low * steps), seconds(time.step_seconds_high * steps)}}}},
          {"output",
           {{"path", plan.output.folder.string()},
            {"exists", plan.output.exists},
            {"holds_run", plan.output.holds_run},
            {"has_final", plan.output.has_final},
            {"checkpoints", std::move(checkpoints)},
            {"damaged", plan.output.damaged},
            {"consequences", plan.output.consequences}}},
          {"warnings", plan.warnings},
          {"samples", plan.samples}};
}

}  // namespace dagmoe
