#include "finetune/run_folder.h"

#include <ATen/Parallel.h>
#include <torch/headeronly/version.h>

#include <algorithm>
#include <charconv>
#include <vector>

#include "base/atomic_file.h"
#include "base/environment.h"
#include "base/error.h"
#include "base/json.h"
#include "base/mapped_file.h"
#include "base/text.h"
#include "kernels/dispatch.h"

namespace dagmoe {
namespace {

constexpr std::string_view kCheckpointPrefix = "checkpoint-";

std::vector<FoundCheckpoint> checkpoints(const std::filesystem::path& run_folder) {
  std::vector<FoundCheckpoint> found;
  if (!std::filesystem::is_directory(run_folder)) return found;
  for (const auto& entry : std::filesystem::directory_iterator(run_folder)) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with(kCheckpointPrefix)) continue;
    std::int64_t step = 0;
    const char* end = name.data() + name.size();
    const auto parsed = std::from_chars(name.data() + kCheckpointPrefix.size(), end, step);
    if (parsed.ec == std::errc() && parsed.ptr == end) found.push_back({entry.path(), step});
  }
  std::ranges::sort(found, {}, &FoundCheckpoint::step);
  return found;
}

Json environment_json(const Recipe& recipe) {
  Json data = Json::object();
  for (const auto* sources : {&recipe.data.train, &recipe.data.valid}) {
    for (const DataRecipe& source : *sources) data[source.path] = sha256_hex(MappedFile::open(source.path)->text());
  }
  return {{"dagmoe", version_text()},
          {"commit", commit_text()},
          {"libtorch", TORCH_VERSION},
          {"device", "cpu"},
          {"instruction_set", isa_name(best_isa())},
          {"threads", at::get_num_threads()},
          {"data_sha256", data}};
}

std::string step_json(const StepMetrics& metrics) {
  Json line = {{"step", metrics.step},
               {"epoch", metrics.epoch},
               {"loss", metrics.loss},
               {"aux_loss", metrics.aux_loss},
               {"z_loss", metrics.z_loss},
               {"grad_norm", metrics.grad_norm},
               {"lr", metrics.lr},
               {"supervised_tokens", metrics.supervised_tokens},
               {"tokens", metrics.tokens},
               {"padding_tokens", 0},
               {"sequences", metrics.sequences},
               {"tokens_per_second", static_cast<double>(metrics.tokens) / metrics.seconds},
               {"seconds", metrics.seconds},
               {"peak_rss_bytes", peak_rss_bytes()},
               {"expert_load_max_over_mean", metrics.experts.max_over_mean},
               {"dead_expert_fraction", metrics.experts.dead_fraction}};
  return line.dump();
}

}  // namespace

std::optional<FoundCheckpoint> newest_checkpoint(const std::filesystem::path& run_folder) {
  const auto found = checkpoints(run_folder);
  if (found.empty()) return std::nullopt;
  return found.back();
}

RunFolder::RunFolder(std::filesystem::path folder) : folder_(std::move(folder)) {
  const auto path = folder_ / "metrics.jsonl";
  metrics_.open(path, std::ios::app);
  if (!metrics_) throw InputError(str(path.string(), ": cannot be opened for writing"));
}

RunFolder RunFolder::create(const Recipe& recipe) {
  const std::filesystem::path folder = recipe.output_dir;
  if (std::filesystem::exists(folder / "metrics.jsonl") || std::filesystem::exists(folder / "final")) {
    throw ConfigError(str("output_dir: ", folder.string(),
                          " holds a run already; add --resume to go on with it, or choose another folder"));
  }
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) throw InputError(str(folder.string(), ": cannot be created: ", error.message()));
  write_file_atomically(folder / "recipe.yaml", to_yaml(recipe));
  write_file_atomically(folder / "environment.json", environment_json(recipe).dump(2) + "\n");
  return RunFolder(folder);
}

RunFolder RunFolder::reopen(const Recipe& recipe, std::int64_t resume_step) {
  const std::filesystem::path folder = recipe.output_dir;
  const std::filesystem::path path = folder / "metrics.jsonl";
  std::string kept;
  if (std::filesystem::exists(path)) {
    const auto file = MappedFile::open(path);
    for (const auto& line : split(file->text(), '\n')) {
      if (line.empty()) continue;
      const Json entry = Json::parse(line, nullptr, /*allow_exceptions=*/false);  // a killed run may end in half a line
      if (!entry.is_discarded() && entry.value("step", std::int64_t{0}) <= resume_step) kept += line + "\n";
    }
  }
  write_file_atomically(path, kept);
  return RunFolder(folder);
}

void RunFolder::write_line(const std::string& line) {
  metrics_ << line << '\n' << std::flush;
  if (!metrics_) throw InputError(str((folder_ / "metrics.jsonl").string(), ": cannot be written; is the disk full?"));
}

void RunFolder::write_step(const StepMetrics& metrics) { write_line(step_json(metrics)); }

void RunFolder::write_validation(std::int64_t step, const ValidLoss& loss) {
  write_line(
      Json{{"step", step}, {"valid_loss", loss.loss}, {"valid_supervised_tokens", loss.supervised_tokens}}.dump());
}

std::filesystem::path RunFolder::checkpoint_path(std::int64_t step) const {
  return folder_ / str(kCheckpointPrefix, step);
}

void RunFolder::drop_old_checkpoints(std::int64_t keep_last) const {
  const auto found = checkpoints(folder_);
  for (std::size_t i = 0; i + static_cast<std::size_t>(keep_last) < found.size(); ++i)
    std::filesystem::remove_all(found[i].path);
}

}  // namespace dagmoe
