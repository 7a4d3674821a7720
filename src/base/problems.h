#pragma once

#include <string>
#include <vector>

namespace dagmoe {

/// One InputError of many problems of a file or folder, a line `where: problem` each; of more than 20 the rest are
/// counted. Returns when there is none.
void throw_problems(const std::string& where, const std::vector<std::string>& problems);

}  // namespace dagmoe
