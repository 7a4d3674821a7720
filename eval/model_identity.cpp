#include "eval/model_identity.h"

#include <algorithm>
#include <cstdint>

#include "base/error.h"
#include "base/mapped_file.h"
#include "base/text.h"
#include "data/tokenizer_config.h"

namespace dagmoe {
namespace {

constexpr std::size_t kSmallFile = std::size_t{1} << 20, kBlock = 4096, kBlocks = 256;

// All bytes of a small file; of a large one 256 blocks at even distances.
std::string sampled_hash(const std::filesystem::path& file) {
  const auto mapped = MappedFile::open(file);
  const std::string_view text = mapped->text();
  if (text.size() <= kSmallFile) return sha256_hex(text);
  std::string blocks;
  for (std::size_t b = 0; b < kBlocks; ++b) {
    const std::size_t begin = (text.size() - kBlock) / (kBlocks - 1) * b;
    blocks += text.substr(begin, kBlock);
  }
  return sha256_hex(blocks);
}

std::string folder_identity(const std::filesystem::path& folder) {
  std::error_code problem;
  std::vector<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::directory_iterator(folder, problem)) {
    if (entry.is_regular_file()) files.push_back(entry.path());
  }
  if (problem) throw InputError(str(folder.string(), ": cannot be read: ", problem.message()));
  std::sort(files.begin(), files.end());
  std::string text;
  for (const auto& file : files) {
    const std::string extension = file.extension().string();
    const bool counts = extension == ".json" || extension == ".safetensors" || extension == ".model" ||
                        extension == ".txt" || extension == ".jinja";
    if (!counts) continue;
    const auto size = std::filesystem::file_size(file);
    text += str(file.filename().string(), " ", size, " ", sampled_hash(file));
    if (size > kSmallFile) text += str(" ", std::filesystem::last_write_time(file).time_since_epoch().count());
    text += "\n";
  }
  return sha256_hex(text);
}

}  // namespace

std::string model_identity(const std::filesystem::path& folder, const std::vector<std::string>& adapters,
                           const std::string& dtype) {
  std::string text = str(dtype, " ", folder_identity(folder));
  for (const std::string& adapter : adapters) text += " " + folder_identity(adapter);
  return sha256_hex(text);
}

std::string chat_template_text(const std::filesystem::path& folder) {
  const std::filesystem::path file = folder / "chat_template.jinja";
  if (std::filesystem::exists(file)) return std::string(MappedFile::open(file)->text());
  return read_tokenizer_config(folder).chat_template;
}

}  // namespace dagmoe
