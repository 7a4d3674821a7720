#pragma once

#include <string_view>

namespace dagmoe {

/// Shell-like match of a whole name: `*` any run of characters (dots too), `?` one, `[8-15]` a character set or, when
/// both ends are numbers, a range of whole decimal numbers. "model.layers.[8-15].mlp.*" matches layers 8 to 15.
bool glob_match(std::string_view pattern, std::string_view name);

}  // namespace dagmoe
