#include "kernels/dispatch.h"

#include <cstdlib>
#include <string_view>
#include <type_traits>

#include "base/error.h"
#include "base/text.h"
#include "kernels/reference.h"
#include "kernels/simd_tables.h"

namespace dagmoe {
namespace {

template <class T>
constexpr KernelTable<T> kReferenceTable = {reference::rms_norm_forward<T>,
                                            reference::rms_norm_backward<T>,
                                            reference::rope<T>,
                                            reference::swiglu_forward<T>,
                                            reference::swiglu_backward<T>,
                                            reference::dag_pairs_forward<T>,
                                            reference::dag_pairs_backward<T>,
                                            reference::dag_nodes_forward<T>,
                                            reference::dag_nodes_backward<T>,
                                            reference::layer_norm_forward<T>,
                                            reference::layer_norm_backward<T>,
                                            reference::cross_entropy<T>,
                                            reference::adamw_8bit,
                                            reference::log_sum_exp<T>,
                                            reference::attention_softmax,
                                            reference::few_row_scores<T>,
                                            reference::few_row_values<T>,
                                            reference::rows_to_floats<T>,
                                            reference::floats_to_rows<T>,
                                            reference::small_product,
                                            reference::transpose,
                                            reference::row_dots<T>,
                                            reference::attention_weights,
                                            reference::attention_slopes};

// gcc's check reads cpuid and, through xgetbv, whether the operating system saves the wide registers.
bool is_supported(Isa isa) {
  switch (isa) {
    case Isa::kReference:
      return true;
    case Isa::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case Isa::kAvx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  }
  return false;
}

Isa choose_isa() {
  Isa limit = Isa::kAvx512;
  if (const char* text = std::getenv("DAGMOE_ISA"); text != nullptr && *text != '\0') {
    const std::string_view wanted = text;
    if (wanted == "reference") {
      limit = Isa::kReference;
    } else if (wanted == "avx2") {
      limit = Isa::kAvx2;
    } else if (wanted != "avx512") {
      throw ConfigError(
          str("environment variable DAGMOE_ISA: found '", wanted, "', expected reference, avx2 or avx512"));
    }
  }
  for (const Isa isa : {Isa::kAvx512, Isa::kAvx2}) {
    if (isa <= limit && is_supported(isa)) return isa;
  }
  return Isa::kReference;
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kReference:
      return "reference";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
  }
  return "unknown";
}

Isa best_isa() {
  static const Isa isa = choose_isa();
  return isa;
}

template <class T>
const KernelTable<T>* kernels_for(Isa isa) {
  if (!is_supported(isa)) return nullptr;
  if (isa == Isa::kReference) return &kReferenceTable<T>;
  if constexpr (std::is_same_v<T, float>) return isa == Isa::kAvx2 ? &kAvx2Float : &kAvx512Float;
  if constexpr (std::is_same_v<T, Bf16>) return isa == Isa::kAvx2 ? &kAvx2Bf16 : &kAvx512Bf16;
  return nullptr;
}

template <class T>
const KernelTable<T>& kernels() {
  if constexpr (std::is_same_v<T, double>) return kReferenceTable<double>;
  return *kernels_for<T>(best_isa());
}

template const KernelTable<float>* kernels_for<float>(Isa);
template const KernelTable<Bf16>* kernels_for<Bf16>(Isa);
template const KernelTable<double>* kernels_for<double>(Isa);
template const KernelTable<float>& kernels<float>();
template const KernelTable<Bf16>& kernels<Bf16>();
template const KernelTable<double>& kernels<double>();

}  // namespace dagmoe
