#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace dagmoe {

/// XXH3-128, in which no two texts of a data set meet by chance.
struct ContentHash {
  std::uint64_t high = 0, low = 0;
  bool operator==(const ContentHash&) const = default;
};
std::string to_hex(ContentHash hash);

/// The hash of bytes that come piece by piece.
class ContentHasher {
 public:
  ContentHasher();
  ~ContentHasher();
  void add(std::string_view bytes);
  ContentHash digest() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};
ContentHash hash_of(std::string_view bytes);

}  // namespace dagmoe
