#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace dagmoe {

/// The files that a `path` of a recipe's data means, sorted by name: the file itself, those that a glob matches
/// ("data/*/train-*.jsonl.zst": `*`, `?` and `[..]` within one part of the path), or those of a folder whose names end
/// in .json, .jsonl, .json.gz, .jsonl.gz, .json.zst or .jsonl.zst. Throws InputError when there is none.
std::vector<std::filesystem::path> data_files(const std::filesystem::path& path);

}  // namespace dagmoe
