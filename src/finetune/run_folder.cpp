#include "finetune/run_folder.h"

#include <ATen/Parallel.h>
#include <fcntl.h>
#include <torch/headeronly/version.h>
#include <unistd.h>

#include <map>
#include <utility>

#include "base/atomic_file.h"
#include "base/environment.h"
#include "base/error.h"
#include "base/log.h"
#include "base/mapped_file.h"
#include "base/text.h"
#include "data/data_files.h"
#include "kernels/dispatch.h"

namespace dagmoe {
namespace {

namespace fs = std::filesystem;

constexpr const char* kMetrics = "metrics.jsonl";
constexpr const char* kExperts = "experts.jsonl";

Json data_hashes(const Recipe& recipe) {
  Json data = Json::object();
  for (const auto* sources : {&recipe.data.train, &recipe.data.valid}) {
    for (const DataRecipe& source : *sources) {
      for (const fs::path& path : data_files(source.path)) {
        const auto file = MappedFile::open(path);
        data[path.string()] = sha256_hex(file->text());
      }
    }
  }
  // What trains is part of what a run begins with.
  if (recipe.esft) data[recipe.esft->experts] = sha256_hex(MappedFile::open(recipe.esft->experts)->text());
  return data;
}

Json environment_json(const Recipe& recipe, std::int64_t num_processes) {
  return {{"dagmoe", version_text()},
          {"commit", commit_text()},
          {"libtorch", TORCH_VERSION},
          {"device", "cpu"},
          {"instruction_set", isa_name(best_isa())},
          {"processes", num_processes},
          {"threads", at::get_num_threads()},
          {"data_sha256", data_hashes(recipe)}};
}

Json step_json(const StepMetrics& metrics, double gemm_share) {
  Json line = {{"step", metrics.step},
               {"epoch", metrics.epoch},
               {"loss", metrics.loss},
               {"aux_loss", metrics.aux_loss},
               {"z_loss", metrics.z_loss},
               {"grad_norm", metrics.grad_norm},
               {"grad_norm_by_group", metrics.grad_norm_by_group},
               {"lr", metrics.lr},
               {"supervised_tokens", metrics.supervised_tokens},
               {"tokens", metrics.tokens},
               {"computed_tokens", metrics.computed_tokens},
               {"padding_tokens", 0},
               {"sequences", metrics.sequences},
               {"tokens_per_second", static_cast<double>(metrics.tokens) / metrics.seconds},
               {"seconds", metrics.seconds},
               {"peak_rss_bytes", metrics.peak_rss_bytes}};
  if (metrics.label_smoothing_loss != 0) line["label_smoothing_loss"] = metrics.label_smoothing_loss;
  if (metrics.adapter_balance_loss) line["adapter_balance_loss"] = *metrics.adapter_balance_loss;
  for (const StepSource& source : metrics.sources) {
    if (metrics.sources.size() == 1) break;  // says nothing that the line does not
    line["sources"].push_back({{"path", source.path},
                               {"samples", source.counts.samples},
                               {"tokens", source.counts.tokens},
                               {"supervised_tokens", source.counts.supervised_tokens}});
  }
  if (gemm_share > 0) line["gemm_share"] = gemm_share;
  if (!metrics.expert_counts.counts_LE.empty()) {
    line["expert_load_max_over_mean"] = metrics.experts.max_over_mean;
    line["dead_expert_fraction"] = metrics.experts.dead_fraction;
    line["aux_loss_by_layer"] = metrics.aux_loss_by_layer;
  }
  if (!metrics.fault.empty()) {
    line["skipped"] = true;
    line["fault"] = metrics.fault;
  }
  return line;
}

// The whole lines of a JSONL file up to a step. A killed process may have left half a line at the end.
std::vector<Json> lines_until(const fs::path& path, std::int64_t step) {
  std::vector<Json> lines;
  if (!fs::exists(path)) return lines;
  const auto file = MappedFile::open(path);
  for (const auto& line : split(file->text(), '\n')) {
    if (line.empty()) continue;
    Json entry = Json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!entry.is_discarded() && entry.value("step", std::int64_t{0}) <= step) lines.push_back(std::move(entry));
  }
  return lines;
}

void rewrite_lines(const fs::path& path, const std::vector<Json>& lines) {
  std::string text;
  for (const Json& line : lines) text += line.dump() + "\n";
  write_file_atomically(path, text);
}

void warn_of_changes(const Recipe& recipe, const fs::path& folder) {
  const std::map<std::string, std::string> before = recipe_settings(MappedFile::open(folder / "recipe.yaml")->text()),
                                           now = recipe_settings(to_yaml(recipe));
  const auto value = [](const std::map<std::string, std::string>& settings, const std::string& key) {
    const auto found = settings.find(key);
    return found == settings.end() ? std::string("absent") : found->second;
  };
  std::map<std::string, std::string> keys = before;
  keys.insert(now.begin(), now.end());
  for (const auto& [key, unused] : keys) {
    if (value(before, key) == value(now, key)) continue;
    log_warning(str("resume: ", key, " was ", value(before, key), " and is ", value(now, key),
                    " from here on; an uninterrupted run would have kept it"));
  }
}

void check_data(const Recipe& recipe, const fs::path& folder) {
  const Json environment = read_json_file(folder / "environment.json");
  if (!environment.contains("data_sha256")) return;
  const Json& before = environment["data_sha256"];
  const Json now = data_hashes(recipe);
  for (const auto& [path, hash] : now.items()) {
    if (!before.contains(path) || before[path] == hash) continue;
    throw InputError(str(path, ": is not the file that this run began with (sha256 ", before[path].get<std::string>(),
                         "); put that back, or start a new run in another output_dir"));
  }
}

std::ofstream open_for_appending(const fs::path& path) {
  std::ofstream file(path, std::ios::app);
  if (!file) throw InputError(str(path.string(), ": cannot be opened for writing"));
  return file;
}

void append_line(std::ofstream& file, const fs::path& path, const Json& line) {
  file << line.dump() << '\n' << std::flush;
  if (!file) throw InputError(str(path.string(), ": cannot be written; is the disk full?"));
}

void sync_file(const fs::path& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) return;
  ::fsync(descriptor);
  ::close(descriptor);
}

}  // namespace

RunFolder::RunFolder(fs::path folder, std::vector<Json> earlier_lines, TensorBoardWriter events)
    : folder_(std::move(folder)),
      earlier_lines_(std::move(earlier_lines)),
      metrics_(open_for_appending(folder_ / kMetrics)),
      experts_(open_for_appending(folder_ / kExperts)),
      events_(std::move(events)) {}

RunFolder RunFolder::create(const Recipe& recipe, std::int64_t num_processes) {
  const fs::path folder = recipe.output_dir;
  if (fs::exists(folder / kMetrics) || fs::exists(folder / "final")) {
    throw ConfigError(str("output_dir: ", folder.string(),
                          " holds a run already; add --resume to go on with it, or choose another folder"));
  }
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) throw InputError(str(folder.string(), ": cannot be created: ", error.message()));
  write_file_atomically(folder / "recipe.yaml", to_yaml(recipe));
  write_file_atomically(folder / "environment.json", environment_json(recipe, num_processes).dump(2) + "\n");
  return RunFolder(folder, {}, TensorBoardWriter::create(folder));
}

RunFolder RunFolder::reopen(const Recipe& recipe, std::int64_t resume_step) {
  const fs::path folder = recipe.output_dir;
  check_data(recipe, folder);
  warn_of_changes(recipe, folder);
  std::vector<Json> lines = lines_until(folder / kMetrics, resume_step);
  rewrite_lines(folder / kMetrics, lines);
  rewrite_lines(folder / kExperts, lines_until(folder / kExperts, resume_step));
  return RunFolder(folder, std::move(lines), TensorBoardWriter::reopen(folder, resume_step));
}

bool RunFolder::is_of(const Recipe& recipe) {
  const fs::path file = fs::path(recipe.output_dir) / "recipe.yaml";
  return fs::exists(file) && recipe_settings(MappedFile::open(file)->text()) == recipe_settings(to_yaml(recipe));
}

void RunFolder::write_line(const Json& line) {
  append_line(metrics_, folder_ / kMetrics, line);
  events_.metrics_line(line, seconds_since_1970());
  events_.flush();
}

Json RunFolder::write_step(const StepMetrics& metrics, double gemm_share) {
  Json line = step_json(metrics, gemm_share);
  write_line(line);
  const ExpertCounts& counts = metrics.expert_counts;
  if (counts.counts_LE.empty()) return line;
  append_line(experts_, folder_ / kExperts,
              {{"step", metrics.step}, {"layers", metrics.moe_layers}, {"counts", counts.counts_LE}});
  return line;
}

Json RunFolder::write_validation(std::int64_t step, const ValidLoss& loss) {
  Json line = {{"step", step}, {"valid_loss", loss.loss}, {"valid_supervised_tokens", loss.supervised_tokens}};
  write_line(line);
  return line;
}

void RunFolder::write_scores(std::int64_t step, const Json& scores) {
  write_line({{"step", step}, {"scores", scores}});
}

void RunFolder::write_analysis(const std::string& name, const Json& content) const {
  const fs::path folder = folder_ / "analysis";
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) throw InputError(str(folder.string(), ": cannot be created: ", error.message()));
  write_file_atomically(folder / (name + ".json"), content.dump() + "\n");
}

Json RunFolder::read_analysis(const std::string& name) const {
  const fs::path file = folder_ / "analysis" / (name + ".json");
  return fs::exists(file) ? read_json_file(file) : Json();
}

void RunFolder::sync() const {
  sync_file(folder_ / kMetrics);
  sync_file(folder_ / kExperts);
}

}  // namespace dagmoe
