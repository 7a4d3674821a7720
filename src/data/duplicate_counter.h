#pragma once

#include <cstdint>
#include <cstdio>
#include <memory>
#include <vector>

#include "data/content_hash.h"

namespace dagmoe {

/// Counts how many of many hashes were there before, in bounded memory: beyond a million they wait in an unnamed
/// temporary file and are sorted there in sixteen parts.
class DuplicateCounter {
 public:
  /// Throws InputError when the temporary folder is full.
  void add(ContentHash hash);
  std::int64_t count();

 private:
  void spill();
  struct CloseFile {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };
  std::vector<ContentHash> hashes_;
  std::unique_ptr<std::FILE, CloseFile> file_;
};

}  // namespace dagmoe
