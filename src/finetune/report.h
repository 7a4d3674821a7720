#pragma once

#include <filesystem>
#include <span>

namespace dagmoe {

/// One self-contained HTML page (no script, no request, legible in black and white) about what a run folder holds: of
/// one run everything, of several a comparison with the first. Only metrics.jsonl must be there; the page names what
/// else is missing. `output` appears whole or not at all. Throws InputError for a folder without metrics.jsonl and for
/// a file that is damaged (with file and line), apart from a last line that a killed process did not finish.
void write_report(const std::filesystem::path& output, std::span<const std::filesystem::path> run_folders);

}  // namespace dagmoe
