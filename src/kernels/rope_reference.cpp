#include "kernels/element_convert.h"
#include "kernels/reference.h"

namespace dagmoe::reference {

template <class T>
void rope(const Rope<T>& args) {
  using Real = Accumulate<T>;
  const std::int64_t half = args.d / 2;
  const auto sign = static_cast<Real>(args.sign);
  for (std::int64_t n = 0; n < args.N; ++n) {
    const Real* cos_d2 = args.cos_Nd2 + n * half;
    const Real* sin_d2 = args.sin_Nd2 + n * half;
    for (std::int64_t head = 0; head < args.H; ++head) {
      const T* x_d = args.x_NHd + n * args.x_stride + head * args.d;
      T* y_d = args.y_NHd + n * args.y_stride + head * args.d;
      for (std::int64_t i = 0; i < half; ++i) {
        const Real first = to_accumulate(x_d[i]), second = to_accumulate(x_d[i + half]);
        const Real sine = sign * sin_d2[i];
        y_d[i] = to_element<T>(first * cos_d2[i] - second * sine);
        y_d[i + half] = to_element<T>(second * cos_d2[i] + first * sine);
      }
    }
  }
}

template void rope(const Rope<float>&);
template void rope(const Rope<Bf16>&);
template void rope(const Rope<double>&);

}  // namespace dagmoe::reference
