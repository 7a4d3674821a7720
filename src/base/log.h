#pragma once

#include <string_view>

namespace dagmoe {

/// One line to stderr. Results never go through here: commands print them to stdout.
void log_info(std::string_view line);
/// As log_info, with "warning: " in front. A setting without effect, a file that was repaired by ignoring part of it.
void log_warning(std::string_view line);
/// Infos and warnings are dropped from here on: of several processes that do the same, one speaks.
void silence_log();
/// True when stderr is a terminal, so that progress bars and colour make sense.
bool stderr_is_terminal();

}  // namespace dagmoe
