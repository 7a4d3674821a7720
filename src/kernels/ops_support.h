#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <string_view>

#include "base/error.h"
#include "base/text.h"
#include "kernels/element.h"
#ifdef DAGMOE_WITH_CUDA
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

// What the ops*.cpp files share; nobody else includes it.

namespace dagmoe::ops {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// Shapes and types that reach ops are our own doing, so a violation is an InternalError.
template <class... Parts>
void require(bool condition, const Parts&... parts) {
  if (!condition) throw InternalError(str("kernels: ", parts...));
}

/// Queries [T, H, d] beside keys and values [T, Hk, d], where H is a multiple of Hk.
inline void require_attention_shapes(std::string_view op, const at::Tensor& q_THd, const at::Tensor& k_THkd,
                                     const at::Tensor& v_THkd) {
  require(q_THd.dim() == 3 && k_THkd.dim() == 3 && k_THkd.sizes() == v_THkd.sizes() &&
              q_THd.size(0) == k_THkd.size(0) && q_THd.size(2) == k_THkd.size(2) && k_THkd.size(1) > 0 &&
              q_THd.size(1) % k_THkd.size(1) == 0,
          op, ": found q ", shape_text(q_THd.sizes()), ", k ", shape_text(k_THkd.sizes()), ", v ",
          shape_text(v_THkd.sizes()));
}

/// Carries an element type into a generic lambda.
template <class T>
struct Element {
  using type = T;
};

/// f(Element<T>) for the element type that a tensor of `dtype` holds.
template <class F>
void with_element(at::ScalarType dtype, F f) {
  switch (dtype) {
    case at::kFloat:
      return f(Element<float>{});
    case at::kBFloat16:
      return f(Element<Bf16>{});
    case at::kDouble:
      return f(Element<double>{});
    default:
      throw InternalError(str("kernels: found dtype ", at::toString(dtype), ", expected float, bfloat16 or double"));
  }
}

/// The same for what has kernels in float and bfloat16 alone.
template <class F>
void with_cpu_element(at::ScalarType dtype, F f) {
  if (dtype == at::kFloat) return f(Element<float>{});
  require(dtype == at::kBFloat16, "found dtype ", at::toString(dtype), ", expected float or bfloat16");
  f(Element<Bf16>{});
}

/// The dtype of norm weights, cos/sin tables and statistics beside activations of `dtype`.
inline at::ScalarType accumulate_dtype(at::ScalarType dtype) { return dtype == at::kDouble ? at::kDouble : at::kFloat; }

template <class T>
const T* input(const at::Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}
/// Null for an undefined tensor: a result nobody wants.
template <class T>
T* output(const at::Tensor& tensor) {
  return tensor.defined() ? static_cast<T*>(tensor.mutable_data_ptr()) : nullptr;
}

/// True when autograd would record an operation on these tensors.
inline bool needs_gradient(at::TensorList tensors) {
  return at::GradMode::is_enabled() &&
         std::any_of(tensors.begin(), tensors.end(), [](const at::Tensor& tensor) { return tensor.requires_grad(); });
}

/// f(begin, end) over [0, num_rows) on all threads; a task is at least about `kElementsPerTask` elements.
template <class F>
void parallel_rows(std::int64_t num_rows, std::int64_t elements_per_row, F f) {
  constexpr std::int64_t kElementsPerTask = 16384;
  at::parallel_for(0, num_rows,
                   std::max<std::int64_t>(1, kElementsPerTask / std::max<std::int64_t>(1, elements_per_row)), f);
}

/// f(memory, index) for indices [0, count) on all threads, each of which takes the next one when it is free and calls
/// make_memory() once for what it works in, if it gets any. All threads are started even for one task: inside, a
/// product runs on one thread and sums in the same order whatever their number.
template <class MakeMemory, class F>
void for_each_task(std::size_t count, MakeMemory make_memory, F f) {
  std::atomic<std::size_t> next{0};
  at::parallel_for(0, at::get_num_threads(), 1, [&](std::int64_t, std::int64_t) {
    const at::AutoDispatchBelowADInplaceOrView no_autograd;  // other threads do not know that nothing is to be recorded
    std::size_t index = next++;
    if (index >= count) return;
    auto memory = make_memory();
    for (; index < count; index = next++) f(memory, index);
  });
}

/// The same without memory: f(index).
template <class F>
void for_each_task(std::size_t count, F f) {
  struct None {};
  for_each_task(
      count, [] { return None{}; }, [&](None&, std::size_t index) { f(index); });
}

/// Calls launch(stream) when `tensor` is on a GPU, and says whether it was. In a program built without CUDA, `launch`
/// is never instantiated, so it may name kernels that are not there.
template <class Launch>
bool launched_on_cuda(const at::Tensor& tensor, Launch launch) {
#ifdef DAGMOE_WITH_CUDA
  if (!tensor.is_cuda()) return false;
  const c10::cuda::CUDAGuard guard(tensor.device());
  launch(c10::cuda::getCurrentCUDAStream().stream());
  return true;
#else
  static_cast<void>(launch);
  require(tensor.is_cpu(), "this program was built without CUDA");
  return false;
#endif
}

}  // namespace dagmoe::ops
