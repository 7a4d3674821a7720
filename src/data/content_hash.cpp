#include "data/content_hash.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <iomanip>
#include <sstream>

namespace dagmoe {

struct ContentHasher::State {
  XXH3_state_t state;
};

ContentHasher::ContentHasher() : state_(new State) { XXH3_128bits_reset(&state_->state); }
ContentHasher::~ContentHasher() = default;
void ContentHasher::add(std::string_view bytes) { XXH3_128bits_update(&state_->state, bytes.data(), bytes.size()); }
ContentHash ContentHasher::digest() const {
  const XXH128_hash_t hash = XXH3_128bits_digest(&state_->state);
  return {hash.high64, hash.low64};
}

ContentHash hash_of(std::string_view bytes) {
  const XXH128_hash_t hash = XXH3_128bits(bytes.data(), bytes.size());
  return {hash.high64, hash.low64};
}

std::string to_hex(ContentHash hash) {
  std::ostringstream text;
  text << std::hex << std::setfill('0') << std::setw(16) << hash.high << std::setw(16) << hash.low;
  return text.str();
}

}  // namespace dagmoe
