#include "cli/cpu_allocator.h"

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>

#include <cstdint>
#include <cstdlib>
#include <new>

namespace dagmoe {
namespace {

constexpr std::size_t kAlignment = 64;  // LibTorch's own

// The address of the block stands before the data.
void release(void* data) {
  if (data != nullptr) std::free(static_cast<void**>(data)[-1]);
}

class CompactAllocator : public c10::Allocator {
 public:
  c10::DataPtr allocate(std::size_t size) override {
    const c10::Device cpu(c10::DeviceType::CPU);
    if (size == 0) return {nullptr, nullptr, &release, cpu};
    void* const block = std::malloc(size + kAlignment + sizeof(void*));
    if (block == nullptr) throw std::bad_alloc();
    const auto first = reinterpret_cast<std::uintptr_t>(block) + sizeof(void*);
    void* const data = reinterpret_cast<void*>((first + kAlignment - 1) / kAlignment * kAlignment);
    static_cast<void**>(data)[-1] = block;
    return {data, data, &release, cpu};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, std::size_t size) const override { default_copy_data(to, from, size); }
};

}  // namespace

void use_compact_cpu_allocator() {
  static CompactAllocator allocator;
  c10::SetCPUAllocator(&allocator, /*priority=*/1);
}

}  // namespace dagmoe
