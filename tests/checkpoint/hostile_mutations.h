// Breaks files in ways that damage, truncation and attackers do. All choices come from one generator, so that a seed
// repeats a file exactly.
#pragma once
#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/json.h"
#include "tests/checkpoint/gguf_builder.h"

namespace dagmoe::testing {

/// mt19937_64 without the standard distributions, whose results differ between libraries.
class Chance {
 public:
  explicit Chance(std::uint64_t seed) : engine_(seed) {}
  std::uint64_t bits() { return engine_(); }
  std::size_t below(std::size_t end) { return end == 0 ? 0 : engine_() % end; }
  bool one_in(std::size_t n) { return below(n) == 0; }
  template <class Container>
  auto& pick(Container& items) {
    return items[below(items.size())];
  }

 private:
  std::mt19937_64 engine_;
};

inline constexpr std::array<std::uint64_t, 15> kBoundaries = {0,
                                                              1,
                                                              2,
                                                              255,
                                                              65535,
                                                              0x7FFFFFFF,
                                                              0x80000000,
                                                              0xFFFFFFFF,
                                                              0x100000000,
                                                              std::uint64_t{1} << 40,
                                                              std::uint64_t{1} << 62,
                                                              0x7FFFFFFFFFFFFFFF,
                                                              0x8000000000000000,
                                                              0xFFFFFFFFFFFFFFFE,
                                                              0xFFFFFFFFFFFFFFFF};

/// Overwrites 1, 2, 4 or 8 bytes with a boundary value; half of the time in the first bytes, where lengths stand.
inline void set_number(std::string& text, Chance& chance) {
  const std::uint64_t value = chance.pick(kBoundaries);
  const std::size_t size = std::min<std::size_t>(std::size_t{1} << chance.below(4), text.size());
  const std::size_t area = chance.one_in(2) ? std::min<std::size_t>(text.size(), 64) : text.size();
  const std::size_t at = std::min(chance.below(area), text.size() - size);
  std::memcpy(text.data() + at, &value, size);
}

/// One change to bytes that nobody understands.
inline void mutate_bytes_once(std::string& text, Chance& chance) {
  const std::size_t at = chance.below(text.size());
  const std::size_t size = std::min(chance.below(64) + 1, text.size() - at);
  switch (chance.below(9)) {
    case 0:
      if (!text.empty()) text[at] = static_cast<char>(text[at] ^ (1 << chance.below(8)));
      return;
    case 1:  // a run of one byte
      return std::fill_n(text.begin() + static_cast<std::ptrdiff_t>(at), size, static_cast<char>(chance.bits())),
             void();
    case 2:
      return text.resize(at);
    case 3:
      return text.append(chance.below(4096) + 1, static_cast<char>(chance.bits())), void();
    case 4:  // inserted
      return text.insert(at, std::string(size, static_cast<char>(chance.bits()))), void();
    case 5:  // doubled
      return text.insert(at, text.substr(at, size)), void();
    case 6:  // taken out
      return text.erase(at, size), void();
    case 7: {  // moved over other bytes
      const std::string chunk = text.substr(chance.below(text.size()), size);
      return text.replace(at, std::min(chunk.size(), text.size() - at), chunk), void();
    }
    default:
      return set_number(text, chance);
  }
}

inline void mutate_bytes(std::string& text, Chance& chance) {
  const std::size_t count = chance.one_in(3) ? 1 + chance.below(3) : 1;
  for (std::size_t i = 0; i < count; ++i) mutate_bytes_once(text, chance);
}

// Values that a Json cannot hold are put into its text in place of these.
inline constexpr std::string_view kDeepMark = "@deep@", kBytesMark = "@bytes@", kNumberMark = "@number@";

inline Json hostile_value(Chance& chance) {
  const auto repeated = [&](const Json& item, std::size_t count) { return Json(std::vector<Json>(count, item)); };
  switch (chance.below(18)) {
    case 0:
      return nullptr;
    case 1:
      return chance.one_in(2);
    case 2:
      return "";
    case 3:
      return Json::array();
    case 4:
      return Json::object();
    case 5:
      return -1;
    case 6:
      return std::numeric_limits<std::int64_t>::min();
    case 7:
      return 0.5;
    case 8:
      return 1e308;
    case 9:
      return kDeepMark;
    case 10:
      return kBytesMark;
    case 11:
      return kNumberMark;
    case 12:
      return std::string(chance.below(100000), 'x');
    case 13:
      return "line\nbreak \x1b[31m \u0085 \u009b2J \u202e ../../etc";
    case 14:
      return repeated(chance.one_in(2) ? Json(-7) : Json("y"), chance.below(20000));
    case 15: {
      Json object = Json::object();
      auto& members = static_cast<Json::object_t::Container&>(object.get_ref<Json::object_t&>());
      const std::size_t count = chance.below(20000);
      for (std::size_t i = 0; i < count; ++i) members.emplace_back(std::to_string(i), i);
      return object;
    }
    default:
      return chance.pick(kBoundaries);
  }
}

inline std::string hostile_key(const std::string& key, Chance& chance) {
  switch (chance.below(6)) {
    case 0:
      return "";
    case 1:
      return std::string(chance.below(100000), 'k');
    case 2:
      return key + "\n\x1b[2J";
    case 3:
      return std::string(kBytesMark);
    case 4:
      return key + key;
    default:
      return key.substr(0, key.size() / 2);
  }
}

/// A value anywhere in a document. Walks down from the top, so that a vocabulary of thousands does not hide the rest.
inline Json& random_value(Json& document, Chance& chance) {
  Json* value = &document;
  while (value->is_structured() && !value->empty() && !chance.one_in(4)) {
    value = &*std::next(value->begin(), static_cast<std::ptrdiff_t>(chance.below(value->size())));
  }
  return *value;
}

inline void mutate_members(Json& object, Chance& chance) {
  auto& members = static_cast<Json::object_t::Container&>(object.get_ref<Json::object_t&>());
  const std::size_t at = chance.below(members.size());
  switch (chance.below(4)) {
    case 0:
      // A member's key is const, so that the members behind the one taken out are built again.
      return object.erase(std::string(members[at].first)), void();
    case 1: {
      Json renamed = Json::object();
      auto& copies = static_cast<Json::object_t::Container&>(renamed.get_ref<Json::object_t&>());
      for (std::size_t i = 0; i < members.size(); ++i) {
        copies.emplace_back(i == at ? hostile_key(members[i].first, chance) : members[i].first, members[i].second);
      }
      object = std::move(renamed);
      return;
    }
    case 2:  // the same key twice
      return members.emplace_back(std::string(members[at].first), Json(members[at].second)), void();
    default:
      members.emplace_back(hostile_key(members[at].first, chance), hostile_value(chance));
  }
}

inline void mutate_items(Json& list, Chance& chance) {
  const std::size_t at = chance.below(list.size());
  switch (chance.below(3)) {
    case 0:
      return list.erase(at);
    case 1:
      return list.push_back(Json(list[at]));
    default: {
      const Json item = list[at];
      const std::size_t count = chance.below(20000);
      for (std::size_t i = 0; i < count; ++i) list.push_back(item);
    }
  }
}

/// One change to the tree of a document.
inline void mutate_json(Json& document, Chance& chance) {
  Json& value = random_value(document, chance);
  const bool has_parts = value.is_structured() && !value.empty();
  if (has_parts && !chance.one_in(6)) {
    return value.is_object() ? mutate_members(value, chance) : mutate_items(value, chance);
  }
  value = chance.one_in(4) ? Json(random_value(document, chance)) : hostile_value(chance);
}

inline std::string hostile_text(const Json& document, Chance& chance) {
  std::string text = document.dump(chance.one_in(2) ? -1 : 1);
  const auto replace = [&text](const std::string& mark, const std::string& with) {
    if (const std::size_t at = text.find(mark); at != std::string::npos) text.replace(at, mark.size(), with);
  };
  const std::size_t depth = chance.below(3000);
  const bool is_closed = !chance.one_in(4);
  replace("\"" + std::string(kDeepMark) + "\"", std::string(depth, '[') + std::string(is_closed ? depth : 0, ']'));
  static constexpr std::array<const char*, 5> kBroken = {"\xFF", "\xC0\xAF", "\xED\xA0\x80", "\xF4\x90\x80\x80",
                                                         "\xE2\x82"};
  replace(std::string(kBytesMark), chance.pick(kBroken));
  static const std::array<std::string, 6> kNumbers = {"1e999",
                                                      "-1e999",
                                                      "99999999999999999999999",
                                                      std::string(50000, '9'),
                                                      "-0",
                                                      "1" + std::string(5000, '0') + ".0e5"};
  replace("\"" + std::string(kNumberMark) + "\"", chance.pick(kNumbers));
  return text;
}

/// A JSON file with up to three changes to its tree, and now and then to its bytes.
inline std::string mutate_json_text(const std::string& text, Chance& chance) {
  std::string result = text;
  if (!chance.one_in(8)) {
    Json document = Json::parse(text);
    const std::size_t count = chance.one_in(4) ? 1 + chance.below(3) : 1;
    for (std::size_t i = 0; i < count; ++i) mutate_json(document, chance);
    result = hostile_text(document, chance);
    if (!chance.one_in(16)) return result;
  }
  mutate_bytes(result, chance);
  return result;
}

/// Another dtype, shape or place for one tensor of a safetensors header.
inline void mutate_tensor_entry(Json& header, Chance& chance) {
  Json* entry =
      &header[header.size() == 0
                  ? "x"
                  : std::next(header.begin(), static_cast<std::ptrdiff_t>(chance.below(header.size()))).key()];
  if (!entry->is_object() || !entry->contains("shape")) return;
  static constexpr std::array<const char*, 8> kDTypes = {"F32", "BF16", "F64", "U8", "BOOL", "I64", "F8_E4M3", "F16"};
  const auto boundary = [&] { return chance.pick(kBoundaries); };
  Json& shape = (*entry)["shape"];
  Json& offsets = (*entry)["data_offsets"];
  switch (chance.below(7)) {
    case 0:
      (*entry)["dtype"] = chance.pick(kDTypes);
      break;
    case 1:
      if (!shape.empty()) shape[chance.below(shape.size())] = boundary();
      break;
    case 2:  // no elements, but sizes whose product overflows
      shape = {std::uint64_t{1} << 62, 2, 0};
      offsets[1] = offsets[0];
      break;
    case 3:  // the same number of elements in many dimensions
      for (std::size_t i = chance.below(2000); i > 0; --i) shape.push_back(1);
      break;
    case 4:
      offsets[chance.below(2)] = boundary();
      break;
    case 5:
      offsets = {offsets[1], offsets[0]};
      break;
    default:
      offsets[1] = offsets[1].get<std::uint64_t>() + chance.below(16) - 8;
  }
}

/// A safetensors file whose header or bytes are broken. The header's length is right more often than not, so that what
/// lies behind the first check is reached.
inline std::string mutate_safetensors(const std::string& text, Chance& chance) {
  std::string result = text;
  if (chance.one_in(4)) {
    mutate_bytes(result, chance);
    return result;
  }
  std::uint64_t length = 0;
  std::memcpy(&length, text.data(), sizeof(length));
  std::string header = text.substr(sizeof(length), length);
  if (chance.one_in(4)) {
    mutate_bytes(header, chance);
  } else {
    Json document = Json::parse(header);
    chance.one_in(2) ? mutate_tensor_entry(document, chance) : mutate_json(document, chance);
    header = hostile_text(document, chance);
  }
  const std::uint64_t new_length = chance.one_in(10) ? chance.pick(kBoundaries) : header.size();
  result = raw(new_length) + header + text.substr(sizeof(length) + length);
  if (chance.one_in(10)) mutate_bytes(result, chance);
  return result;
}

/// One text of a GGUF file, a key, a value or a tensor's name, replaced with a length that fits it.
inline void mutate_gguf_text(std::string& file, const std::string& text, Chance& chance) {
  const std::size_t at = file.find(gguf_string(text));
  if (at == std::string::npos) return;
  static constexpr std::array<const char*, 4> kTexts = {"", "a\n\x1b[2J", "\xC2\x9B 2J", "\xFF\xFE"};
  const std::string other = chance.one_in(3) ? std::string(chance.below(100000), 'n') : chance.pick(kTexts);
  file.replace(at, gguf_string(text).size(), gguf_string(chance.one_in(3) ? text + other : other));
}

/// One number behind a text: the value of a key (its type lies between) or a size of a tensor.
inline void mutate_gguf_number(std::string& file, const std::string& text, Chance& chance) {
  static constexpr std::array<std::uint64_t, 8> kLarge = {3, 16, 64, 1 << 12, 1 << 14, 1 << 16, 1 << 17, 1 << 18};
  const std::size_t at = file.find(gguf_string(text));
  if (at == std::string::npos) return;
  const std::size_t number = at + gguf_string(text).size() + 4;
  const std::uint64_t value = chance.one_in(3) ? chance.pick(kBoundaries) : chance.pick(kLarge);
  const std::size_t size = text.ends_with(".weight") ? 8 : 4;
  if (number + size <= file.size()) std::memcpy(file.data() + number, &value, size);
}

}  // namespace dagmoe::testing
