#include "kernels/element_convert.h"
#include "kernels/reference.h"

namespace dagmoe::reference {
namespace {

template <class T>
Accumulate<T> value_or_zero(const T* values, std::int64_t index) {
  return values == nullptr ? Accumulate<T>(0) : to_accumulate(values[index]);
}

}  // namespace

template <class T>
void dag_nodes_forward(const DagNodesForward<T>& args) {
  using Real = Accumulate<T>;
  const std::int64_t K = args.K, D = args.D;
  for (std::int64_t n = 0; n < args.N; ++n) {
    for (std::int64_t i = 0; i < D; ++i) {
      const Real share = value_or_zero(args.residual_ND, n * D + i) / static_cast<Real>(K);
      Real sum = 0;
      for (std::int64_t k = 0; k < K; ++k) {
        const std::int64_t index = (n * K + k) * D + i;
        const Real weight = args.weight_NK == nullptr ? Real(1) : args.weight_NK[n * K + k];
        const Real part = weight * to_accumulate(args.expert_NKD[index]);
        sum += part;
        if (args.nodes_NKD != nullptr) args.nodes_NKD[index] = to_element<T>(part + share);
      }
      if (args.out_ND == nullptr) continue;
      const Real around = value_or_zero(args.outer_ND, n * D + i) + value_or_zero(args.extra_ND, n * D + i);
      args.out_ND[n * D + i] = to_element<T>(around + sum);
    }
  }
}

template <class T>
void dag_nodes_backward(const DagNodesBackward<T>& args) {
  using Real = Accumulate<T>;
  const std::int64_t K = args.K, D = args.D;
  for (std::int64_t n = 0; n < args.N; ++n) {
    for (std::int64_t k = 0; k < K; ++k) {
      double dot = 0;
      for (std::int64_t i = 0; i < D; ++i) {
        const std::int64_t index = (n * K + k) * D + i;
        const Real grad = to_accumulate(args.grad_out_ND[n * D + i]) + value_or_zero(args.grad_nodes_NKD, index);
        dot += static_cast<double>(grad) * static_cast<double>(to_accumulate(args.expert_NKD[index]));
        if (args.grad_expert_NKD != nullptr)
          args.grad_expert_NKD[index] = to_element<T>(args.weight_NK[n * K + k] * grad);
      }
      if (args.grad_weight_NK != nullptr) args.grad_weight_NK[n * K + k] = static_cast<Real>(dot);
    }
    if (args.grad_residual_ND == nullptr) continue;
    for (std::int64_t i = 0; i < D; ++i) {
      Real sum = 0;
      for (std::int64_t k = 0; k < K; ++k) sum += value_or_zero(args.grad_nodes_NKD, (n * K + k) * D + i);
      args.grad_residual_ND[n * D + i] =
          to_element<T>(to_accumulate(args.grad_out_ND[n * D + i]) + sum / static_cast<Real>(K));
    }
  }
}

template void dag_nodes_forward(const DagNodesForward<float>&);
template void dag_nodes_forward(const DagNodesForward<Bf16>&);
template void dag_nodes_forward(const DagNodesForward<double>&);
template void dag_nodes_backward(const DagNodesBackward<float>&);
template void dag_nodes_backward(const DagNodesBackward<Bf16>&);
template void dag_nodes_backward(const DagNodesBackward<double>&);

}  // namespace dagmoe::reference
