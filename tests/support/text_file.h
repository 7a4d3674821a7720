// A file with given bytes in a temporary folder of its own, gone at the end of the test.
#pragma once
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <string_view>

namespace dagmoe {

class TextFile {
 public:
  TextFile(const std::string& name, std::string_view text) {
    std::string folder = (std::filesystem::temp_directory_path() / "dagmoe_test_XXXXXX").string();
    if (mkdtemp(folder.data()) == nullptr) throw std::runtime_error("cannot make " + folder);
    folder_ = folder;
    path_ = folder_ / name;
    std::ofstream(path_, std::ios::binary) << text;
  }
  ~TextFile() {
    std::error_code ignored;
    std::filesystem::remove_all(folder_, ignored);
  }
  TextFile(const TextFile&) = delete;
  TextFile& operator=(const TextFile&) = delete;
  const std::filesystem::path& path() const { return path_; }
  std::string name() const { return path_.string(); }

 private:
  std::filesystem::path folder_, path_;
};

}  // namespace dagmoe
