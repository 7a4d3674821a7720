#pragma once

#include <string>
#include <string_view>

namespace dagmoe {

/// One spelling for Jinja templates that print the same, so that two can be compared as texts; nothing is evaluated.
///   {{ '<|im_start|>' + message['role'] + '\n' }}   becomes   <|im_start|>{{message.role}}, line feed
/// Literals that are printed become text, spaces inside tags go, attributes are written with a dot, strings with single
/// quotes, comments disappear. White space around tags follows Hugging Face's settings (trim_blocks, lstrip_blocks) and
/// '-'.
std::string canonical_jinja(std::string_view jinja);

}  // namespace dagmoe
