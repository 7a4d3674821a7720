#include "kernels/dispatch.h"

#include <array>
#include <cstdio>
#include <string>

#include "tests/support/catch.h"

using namespace dagmoe;

namespace {

// What this program, started anew with that DAGMOE_ISA, says in the hidden test below.
std::string answer_with(const std::string& isa) {
  const std::string command = "DAGMOE_ISA=" + isa + " '" DAGMOE_BINARY_DIR "/kernels_tests' '[print-isa]' 2>&1";
  FILE* pipe = popen(command.c_str(), "r");
  REQUIRE(pipe != nullptr);
  std::string text;
  std::array<char, 4096> buffer;
  while (const std::size_t size = std::fread(buffer.data(), 1, buffer.size(), pipe)) text.append(buffer.data(), size);
  pclose(pipe);
  return text;
}

}  // namespace

TEST_CASE("dispatch: the reference table exists for every element type", "[kernels]") {
  REQUIRE(kernels_for<float>(Isa::kReference) != nullptr);
  REQUIRE(kernels_for<Bf16>(Isa::kReference) != nullptr);
  REQUIRE(kernels_for<double>(Isa::kReference) != nullptr);
}

TEST_CASE("dispatch: double has only the reference table", "[kernels]") {
  REQUIRE(kernels_for<double>(Isa::kAvx2) == nullptr);
  REQUIRE(kernels_for<double>(Isa::kAvx512) == nullptr);
  REQUIRE(&kernels<double>() == kernels_for<double>(Isa::kReference));
}

TEST_CASE("dispatch: the table in use is the one of the best instruction set", "[kernels]") {
  REQUIRE(&kernels<float>() == kernels_for<float>(best_isa()));
  REQUIRE(&kernels<Bf16>() == kernels_for<Bf16>(best_isa()));
}

TEST_CASE("dispatch: every table is complete", "[kernels]") {
  const auto check = [](const auto* table) {
    if (table == nullptr) return;
    REQUIRE(table->rms_norm_forward != nullptr);
    REQUIRE(table->rms_norm_backward != nullptr);
    REQUIRE(table->rope != nullptr);
    REQUIRE(table->swiglu_forward != nullptr);
    REQUIRE(table->swiglu_backward != nullptr);
    REQUIRE(table->dag_pairs_forward != nullptr);
    REQUIRE(table->dag_pairs_backward != nullptr);
    REQUIRE(table->dag_nodes_forward != nullptr);
    REQUIRE(table->dag_nodes_backward != nullptr);
    REQUIRE(table->layer_norm_forward != nullptr);
    REQUIRE(table->layer_norm_backward != nullptr);
    REQUIRE(table->cross_entropy != nullptr);
  };
  for (const Isa isa : {Isa::kReference, Isa::kAvx2, Isa::kAvx512}) {
    check(kernels_for<float>(isa));
    check(kernels_for<Bf16>(isa));
    check(kernels_for<double>(isa));
  }
}

TEST_CASE("dispatch: instruction sets have the names DAGMOE_ISA takes", "[kernels]") {
  REQUIRE(std::string(isa_name(Isa::kReference)) == "reference");
  REQUIRE(std::string(isa_name(Isa::kAvx2)) == "avx2");
  REQUIRE(std::string(isa_name(Isa::kAvx512)) == "avx512");
}

TEST_CASE("dispatch: prints the best instruction set, for the test below", "[.][print-isa]") {
  std::cout << "best table: " << isa_name(best_isa()) << std::endl;
}

TEST_CASE("dispatch: DAGMOE_ISA lowers the table and never raises it", "[kernels]") {
  REQUIRE_THAT(answer_with("reference"), Catch::Contains("best table: reference"));
  if (kernels_for<float>(Isa::kAvx2) != nullptr) REQUIRE_THAT(answer_with("avx2"), Catch::Contains("best table: avx2"));
  if (kernels_for<float>(Isa::kAvx512) == nullptr) {
    REQUIRE_THAT(answer_with("avx512"), !Catch::Contains("best table: avx512"));
  }
}

TEST_CASE("dispatch: an unknown DAGMOE_ISA is an error that names the choices", "[kernels]") {
  REQUIRE_THAT(answer_with("sse"), Catch::Contains("DAGMOE_ISA: found 'sse', expected reference"));
}
