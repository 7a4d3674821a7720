#include "finetune/checkpoints.h"

#include <algorithm>
#include <charconv>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/json.h"
#include "base/log.h"
#include "base/text.h"

namespace dagmoe {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kPrefix = "checkpoint-";
constexpr const char* kManifest = "checkpoint.json";

Json file_sizes(const fs::path& folder) {
  Json sizes = Json::object();
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    if (entry.is_regular_file()) sizes[fs::relative(entry.path(), folder).string()] = entry.file_size();
  }
  return sizes;
}

}  // namespace

fs::path checkpoint_path(const fs::path& run_folder, std::int64_t step) { return run_folder / str(kPrefix, step); }

void save_checkpoint(const fs::path& path, const SaveWeights& save_weights, const Trainer& trainer) {
  write_folder_atomically(path, {.replace = true}, [&](const fs::path& folder) {
    save_weights(folder);
    trainer.save_state(folder);
    const Json manifest = {{"step", trainer.num_steps_done()}, {"files", file_sizes(folder)}};
    write_file_atomically(folder / kManifest, manifest.dump(2) + "\n");
  });
}

std::vector<FoundCheckpoint> list_checkpoints(const fs::path& run_folder) {
  std::vector<FoundCheckpoint> found;
  if (!fs::is_directory(run_folder)) return found;
  for (const auto& entry : fs::directory_iterator(run_folder)) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with(kPrefix)) continue;
    std::int64_t step = 0;
    const char* end = name.data() + name.size();
    const auto parsed = std::from_chars(name.data() + kPrefix.size(), end, step);
    if (parsed.ec == std::errc() && parsed.ptr == end) found.push_back({entry.path(), step});
  }
  std::ranges::sort(found, {}, &FoundCheckpoint::step);
  return found;
}

std::optional<std::string> checkpoint_damage(const fs::path& path) {
  try {
    const Json manifest = read_json_file(path / kManifest);
    if (!manifest.contains("files") || !manifest["files"].is_object()) return str(kManifest, " lists no files");
    for (const auto& [name, size] : manifest["files"].items()) {
      std::error_code error;
      const auto found = fs::file_size(path / name, error);
      if (error) return str(name, " is missing");
      if (found != size.get<std::uintmax_t>()) return str(name, " has ", found, " bytes, expected ", size.dump());
    }
  } catch (const InputError& error) {
    return error.what();
  } catch (const Json::exception&) {
    return str(kManifest, " is not of the expected form");
  }
  return std::nullopt;
}

std::optional<FoundCheckpoint> newest_checkpoint(const fs::path& run_folder) {
  auto found = list_checkpoints(run_folder);
  std::vector<std::string> damages;
  for (; !found.empty(); found.pop_back()) {
    const auto damage = checkpoint_damage(found.back().path);
    if (!damage) {
      for (const auto& line : damages) log_warning(line + "; the checkpoint before it is used");
      return found.back();
    }
    damages.push_back(str(found.back().path.string(), " is damaged: ", *damage));
  }
  if (damages.empty()) return std::nullopt;
  throw InputError(str(damages.front(), "; no other checkpoint of ", run_folder.string(),
                       " is whole; remove the folder to start over"));
}

void drop_old_checkpoints(const fs::path& run_folder, std::int64_t keep_last, std::optional<std::int64_t> best_step) {
  const auto found = list_checkpoints(run_folder);
  for (std::size_t i = 0; i + static_cast<std::size_t>(keep_last) < found.size(); ++i) {
    if (found[i].step != best_step) fs::remove_all(found[i].path);
  }
}

}  // namespace dagmoe
