// For tests of the kernel tables: inputs that end at a forbidden page, and a loop over the tables of this processor.
#pragma once
#include <ATen/ATen.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <limits>
#include <type_traits>
#include <vector>

#include "kernels/dispatch.h"
#include "tests/support/catch.h"
#include "tests/support/compare.h"

namespace dagmoe::testing {

inline constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
/// Around the vector widths.
inline const std::vector<std::int64_t> kSizes = {1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 127, 129, 257};

template <class T>
inline constexpr at::ScalarType kDtype = std::is_same_v<T, float> ? at::kFloat : at::kBFloat16;
template <class T>
inline constexpr double kRelative = std::is_same_v<T, float> ? kFloatTolerance : kBf16Tolerance;

/// A copy that ends where a page begins that nobody may touch: a kernel that reads or writes past its end dies.
inline at::Tensor guarded(const at::Tensor& tensor) {
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  const std::size_t bytes = tensor.nbytes(), data_bytes = (bytes + page - 1) / page * page;
  void* memory = mmap(nullptr, data_bytes + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  REQUIRE(memory != MAP_FAILED);
  char* end = static_cast<char*>(memory) + data_bytes;
  REQUIRE(mprotect(end, page, PROT_NONE) == 0);
  const auto release = [memory, size = data_bytes + page](void*) { munmap(memory, size); };
  at::Tensor copy = at::from_blob(end - bytes, tensor.sizes(), release, tensor.options());
  return copy.copy_(tensor);
}

template <class T>
at::Tensor random_values(at::IntArrayRef shape, double scale, std::uint64_t seed, double shift = 0) {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(seed);
  return guarded((at::randn(shape, generator, at::kFloat) * scale + shift).to(kDtype<T>));
}
/// Full of NaN, so that a value nobody wrote shows.
template <class T>
at::Tensor empty_values(at::IntArrayRef shape) {
  return guarded(at::full(shape, kNan, at::TensorOptions(kDtype<T>)));
}
template <class T>
T* data(const at::Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}
template <class T>
void require_as_reference(const at::Tensor& actual, const at::Tensor& expected) {
  require_close(actual, expected, kFloatTolerance, kRelative<T>);
}

/// Runs `check(table, reference)` for every vector table that this processor has.
template <class T, class Check>
void for_each_table(Check check) {
  for (const Isa isa : {Isa::kAvx2, Isa::kAvx512}) {
    const KernelTable<T>* table = kernels_for<T>(isa);
    if (table == nullptr) continue;
    INFO("table " << isa_name(isa));
    check(*table, *kernels_for<T>(Isa::kReference));
  }
}

}  // namespace dagmoe::testing
