#pragma once

#include <algorithm>
#include <string_view>

#include "base/json.h"

namespace dagmoe {

/// The member `key` of a part of a tokenizer.json; nullptr when it is absent or null.
inline const Json* find_part(const Json& object, std::string_view key) {
  const auto found = object.find(key);
  return found == object.end() || found->is_null() ? nullptr : &*found;
}

/// True when the part is of this type, or a sequence that holds one.
inline bool has_type(const Json* part, std::string_view type, std::string_view list_key) {
  if (part == nullptr || !part->is_object()) return false;
  if (const Json* found = find_part(*part, "type"); found != nullptr && *found == type) return true;
  const Json* list = find_part(*part, list_key);
  return list != nullptr &&
         std::any_of(list->begin(), list->end(), [&](const Json& inner) { return has_type(&inner, type, list_key); });
}

/// Calls `visit` for a part, or for every member when it is a sequence, in order; not at all for nullptr.
template <class Visit>
void for_each_part(const Json* part, std::string_view list_key, Visit visit) {
  if (part == nullptr) return;
  const Json* list = find_part(*part, list_key);
  if (list == nullptr) return visit(*part);
  for (const Json& inner : *list) for_each_part(&inner, list_key, visit);
}

}  // namespace dagmoe
