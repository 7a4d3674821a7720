#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace dagmoe {

/// A hash of what a model answers with: configuration, tokenizer, the weights' files (size, time of change, and bytes
/// taken evenly from each), adapters, compute type. Two folders with one identity hold the same model; a copy of a
/// folder may have another.
std::string model_identity(const std::filesystem::path& folder, const std::vector<std::string>& adapters,
                           const std::string& dtype);
/// The text of a folder's chat template; "" when it has none.
std::string chat_template_text(const std::filesystem::path& folder);

}  // namespace dagmoe
