#include <cmath>

#include "kernels/element_convert.h"
#include "kernels/reference.h"

namespace dagmoe::reference {

template <class T>
void swiglu_forward(const SwiGluForward<T>& args) {
  using Real = Accumulate<T>;
  for (std::int64_t n = 0; n < args.N; ++n) {
    const Real gate = to_accumulate(args.gate_N[n]);
    const Real sigmoid = 1 / (1 + std::exp(-gate));
    args.y_N[n] = to_element<T>(gate * sigmoid * to_accumulate(args.up_N[n]));
  }
}

template <class T>
void swiglu_backward(const SwiGluBackward<T>& args) {
  using Real = Accumulate<T>;
  for (std::int64_t n = 0; n < args.N; ++n) {
    const Real gate = to_accumulate(args.gate_N[n]), up = to_accumulate(args.up_N[n]);
    const Real dy = to_accumulate(args.grad_y_N[n]);
    const Real sigmoid = 1 / (1 + std::exp(-gate));
    args.grad_up_N[n] = to_element<T>(dy * (gate * sigmoid));
    args.grad_gate_N[n] = to_element<T>(dy * up * (sigmoid * (1 + gate * (1 - sigmoid))));
  }
}

template void swiglu_forward(const SwiGluForward<float>&);
template void swiglu_forward(const SwiGluForward<Bf16>&);
template void swiglu_forward(const SwiGluForward<double>&);
template void swiglu_backward(const SwiGluBackward<float>&);
template void swiglu_backward(const SwiGluBackward<Bf16>&);
template void swiglu_backward(const SwiGluBackward<double>&);

}  // namespace dagmoe::reference
