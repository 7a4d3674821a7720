#include <cmath>

#include "kernels/element_convert.h"
#include "kernels/reference.h"

namespace dagmoe::reference {

template <class T>
void rms_norm_forward(const RmsNormForward<T>& args) {
  for (std::int64_t n = 0; n < args.N; ++n) {
    const T* x_D = args.x_ND + n * args.D;
    T* y_D = args.y_ND + n * args.D;
    double sum_of_squares = 0;
    for (std::int64_t i = 0; i < args.D; ++i) {
      const double x = to_accumulate(x_D[i]);
      sum_of_squares += x * x;
    }
    const double mean_square = sum_of_squares / static_cast<double>(args.D);
    const auto rstd = static_cast<Accumulate<T>>(1 / std::sqrt(mean_square + args.eps));
    args.rstd_N[n] = rstd;
    for (std::int64_t i = 0; i < args.D; ++i) y_D[i] = to_element<T>(to_accumulate(x_D[i]) * rstd * args.weight_D[i]);
  }
}

template <class T>
void rms_norm_backward(const RmsNormBackward<T>& args) {
  using Real = Accumulate<T>;
  for (std::int64_t n = 0; n < args.N; ++n) {
    const T* x_D = args.x_ND + n * args.D;
    const T* dy_D = args.grad_y_ND + n * args.D;
    const Real rstd = args.rstd_N[n];
    if (args.grad_x_ND != nullptr) {
      double sum = 0;  // of w * dy * n
      for (std::int64_t i = 0; i < args.D; ++i) {
        sum += static_cast<double>(args.weight_D[i]) * to_accumulate(dy_D[i]) * to_accumulate(x_D[i]) * rstd;
      }
      const auto mean = static_cast<Real>(sum / static_cast<double>(args.D));
      T* dx_D = args.grad_x_ND + n * args.D;
      for (std::int64_t i = 0; i < args.D; ++i) {
        const Real normed = to_accumulate(x_D[i]) * rstd;
        dx_D[i] = to_element<T>(rstd * (args.weight_D[i] * to_accumulate(dy_D[i]) - normed * mean));
      }
    }
    if (args.grad_weight_D != nullptr) {
      for (std::int64_t i = 0; i < args.D; ++i) {
        args.grad_weight_D[i] += to_accumulate(dy_D[i]) * (to_accumulate(x_D[i]) * rstd);
      }
    }
  }
}

template void rms_norm_forward(const RmsNormForward<float>&);
template void rms_norm_forward(const RmsNormForward<Bf16>&);
template void rms_norm_forward(const RmsNormForward<double>&);
template void rms_norm_backward(const RmsNormBackward<float>&);
template void rms_norm_backward(const RmsNormBackward<Bf16>&);
template void rms_norm_backward(const RmsNormBackward<double>&);

}  // namespace dagmoe::reference
