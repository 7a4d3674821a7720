#include <array>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>
#include <string>

#include "tests/support/catch.h"

namespace {

std::string output_of(const std::string& command) {
  std::string text;
  FILE* pipe = popen(command.c_str(), "r");
  REQUIRE(pipe != nullptr);
  std::array<char, 4096> buffer;
  while (const std::size_t size = std::fread(buffer.data(), 1, buffer.size(), pipe)) text.append(buffer.data(), size);
  pclose(pipe);
  return text;
}

}  // namespace

TEST_CASE("simd: no object built for one instruction set gives code to the rest of the program", "[kernels]") {
  const std::filesystem::path folder =
      std::filesystem::path(DAGMOE_BINARY_DIR) / "CMakeFiles/dagmoe_kernels.dir/src/kernels";
  if (output_of("nm --version 2>/dev/null").empty()) DAGMOE_SKIP("nm is not installed");
  for (const char* name : {"kernels_avx2.cpp.o", "kernels_avx512.cpp.o"}) {
    const std::filesystem::path object = folder / name;
    INFO(object);
    REQUIRE(std::filesystem::exists(object));
    std::istringstream lines(output_of("nm '" + object.string() + "'"));
    int num_tables = 0;
    for (std::string line; std::getline(lines, line);) {
      INFO(line);
      // "address kind name", or "kind name" for what is taken from elsewhere.
      std::istringstream words(line);
      std::string kind, word;
      while (words >> word) {
        if (word.size() == 1) kind = word;
      }
      REQUIRE(kind.size() == 1);
      // Weak definitions, of which the linker keeps any one, and code under a public name.
      REQUIRE(std::string("WVwvuT").find(kind) == std::string::npos);
      if (kind == "D" || kind == "R") ++num_tables;
    }
    // Sanitizers add tables of their own.
    REQUIRE(num_tables >= 2);
  }
}

TEST_CASE("simd: files for one instruction set include nothing with code in it", "[kernels]") {
  const std::filesystem::path folder = std::filesystem::path(DAGMOE_SOURCE_DIR) / "src/kernels";
  for (const char* name :
       {"kernels_avx2.cpp", "kernels_avx512.cpp", "vec_avx2.h", "vec_avx512.h", "simd_kernels.h", "simd_attention.h"}) {
    std::ifstream file(folder / name);
    REQUIRE(file.good());
    for (std::string line; std::getline(file, line);) {
      if (!line.starts_with("#include <")) continue;
      INFO(name << ": " << line);
      REQUIRE((line == "#include <cstdint>" || line == "#include <immintrin.h>"));
    }
  }
}
