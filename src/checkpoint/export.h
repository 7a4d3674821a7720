#pragma once

#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace dagmoe {

/// A file that an exported DAG-MoE carries, so that transformers can run it (`trust_remote_code=True`): the Python
/// files of remote_code/, compiled in.
struct RemoteCodeFile {
  std::string_view name, text;
};
std::span<const RemoteCodeFile> remote_code_files();

/// Writes a folder that transformers 5.23.0 loads (atomically): the weights bit for bit, tokenizer files as they are. A
/// plain family needs stock classes only, and keeps its config.json and the layout of its experts. A dagmoe gets
/// `auto_map` and the remote code, and its experts one by one. Returns the names of the files written. Throws
/// InputError for a folder that is damaged, and for an existing `output` unless `force`.
std::vector<std::string> export_model(const std::filesystem::path& model, const std::filesystem::path& output,
                                      bool force);

}  // namespace dagmoe
