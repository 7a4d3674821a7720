#include <cmath>

#include "kernels/element_convert.h"
#include "kernels/reference.h"

namespace dagmoe::reference {

template <class T>
void layer_norm_forward(const LayerNormForward<T>& args) {
  using Real = Accumulate<T>;
  const auto width = static_cast<double>(args.D);
  for (std::int64_t n = 0; n < args.N; ++n) {
    const T* x_D = args.x_ND + n * args.D;
    double sum = 0, sum_of_squares = 0;
    for (std::int64_t i = 0; i < args.D && !args.has_statistics; ++i) sum += static_cast<double>(to_accumulate(x_D[i]));
    const double mean = args.subtract_mean ? sum / width : 0.0;
    for (std::int64_t i = 0; i < args.D && !args.has_statistics; ++i) {
      const double distance = static_cast<double>(to_accumulate(x_D[i])) - mean;
      sum_of_squares += distance * distance;
    }
    if (!args.has_statistics) {
      args.mean_N[n] = static_cast<Real>(mean);
      args.rstd_N[n] = static_cast<Real>(1 / std::sqrt(sum_of_squares / width + args.eps));
    }
    for (std::int64_t i = 0; i < args.D; ++i) {
      const Real normed = (to_accumulate(x_D[i]) - args.mean_N[n]) * args.rstd_N[n];
      args.y_ND[n * args.D + i] = to_element<T>(normed * args.weight_D[i]);
    }
  }
}

template <class T>
void layer_norm_backward(const LayerNormBackward<T>& args) {
  using Real = Accumulate<T>;
  const auto width = static_cast<double>(args.D);
  for (std::int64_t n = 0; n < args.N; ++n) {
    const T* x_D = args.x_ND + n * args.D;
    const T* dy_D = args.grad_y_ND + n * args.D;
    const auto normed = [&](std::int64_t i) { return (to_accumulate(x_D[i]) - args.mean_N[n]) * args.rstd_N[n]; };
    const auto weighted = [&](std::int64_t i) { return args.weight_D[i] * to_accumulate(dy_D[i]); };
    if (args.grad_x_ND != nullptr) {
      double sum = 0, dot = 0;
      for (std::int64_t i = 0; i < args.D; ++i) {
        sum += static_cast<double>(weighted(i));
        dot += static_cast<double>(weighted(i)) * static_cast<double>(normed(i));
      }
      const auto mean = static_cast<Real>(args.subtract_mean ? sum / width : 0.0);
      const auto mean_dot = static_cast<Real>(dot / width);
      for (std::int64_t i = 0; i < args.D; ++i) {
        const std::int64_t index = n * args.D + i;
        const Real before = args.grad_before_ND == nullptr ? Real(0) : to_accumulate(args.grad_before_ND[index]);
        args.grad_x_ND[index] = to_element<T>(before + args.rstd_N[n] * (weighted(i) - mean - normed(i) * mean_dot));
      }
    }
    if (args.grad_weight_D != nullptr) {
      for (std::int64_t i = 0; i < args.D; ++i) args.grad_weight_D[i] += to_accumulate(dy_D[i]) * normed(i);
    }
  }
}

template void layer_norm_forward(const LayerNormForward<float>&);
template void layer_norm_forward(const LayerNormForward<Bf16>&);
template void layer_norm_forward(const LayerNormForward<double>&);
template void layer_norm_backward(const LayerNormBackward<float>&);
template void layer_norm_backward(const LayerNormBackward<Bf16>&);
template void layer_norm_backward(const LayerNormBackward<double>&);

}  // namespace dagmoe::reference
