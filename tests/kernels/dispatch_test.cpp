#include "kernels/dispatch.h"

#include <string>

#include "tests/support/catch.h"

using namespace dagmoe;

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
