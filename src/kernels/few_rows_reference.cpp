#include "kernels/element_convert.h"
#include "kernels/reference.h"

namespace dagmoe::reference {

template <class T>
void few_row_scores(const FewRows<T>& args) {
  for (std::int64_t r = 0; r < args.R; ++r) {
    for (std::int64_t c = 0; c < args.C; ++c) {
      const T* row_d = args.rows_Cd + c * args.row_stride;
      double sum = 0;
      for (std::int64_t i = 0; i < args.d; ++i)
        sum += static_cast<double>(args.queries_Rd[r * args.d + i]) * to_accumulate(row_d[i]);
      args.scores_RC[r * args.score_stride + c] = static_cast<float>(sum);
    }
  }
}

template <class T>
void few_row_values(const FewRows<T>& args) {
  for (std::int64_t r = 0; r < args.R; ++r) {
    for (std::int64_t i = 0; i < args.d; ++i) {
      double sum = 0;
      for (std::int64_t c = 0; c < args.C; ++c) {
        sum += static_cast<double>(args.scores_RC[r * args.score_stride + c]) *
               to_accumulate(args.rows_Cd[c * args.row_stride + i]);
      }
      args.out_Rd[r * args.d + i] += static_cast<float>(sum);
    }
  }
}

template <class T>
void rows_to_floats(const FloatRows<T>& args) {
  for (std::int64_t n = 0; n < args.N; ++n) {
    for (std::int64_t i = 0; i < args.d; ++i) {
      const double value = to_accumulate(args.rows_Nd[n * args.row_stride + i]);
      args.floats_Nd[n * float_stride(args) + i] = static_cast<float>(value * static_cast<double>(args.scale));
    }
  }
}

template <class T>
void floats_to_rows(const FloatRows<T>& args) {
  for (std::int64_t n = 0; n < args.N; ++n) {
    for (std::int64_t i = 0; i < args.d; ++i) {
      const double divisor = args.divisor_N == nullptr ? 1.0 : static_cast<double>(args.divisor_N[n]);
      const double value =
          static_cast<double>(args.floats_Nd[n * float_stride(args) + i]) * static_cast<double>(args.scale) / divisor;
      args.rows_Nd[n * args.row_stride + i] = to_element<T>(static_cast<Accumulate<T>>(value));
    }
  }
}

template void few_row_scores(const FewRows<float>&);
template void few_row_scores(const FewRows<Bf16>&);
template void few_row_scores(const FewRows<double>&);
template void few_row_values(const FewRows<float>&);
template void few_row_values(const FewRows<Bf16>&);
template void few_row_values(const FewRows<double>&);
template void rows_to_floats(const FloatRows<float>&);
template void rows_to_floats(const FloatRows<Bf16>&);
template void rows_to_floats(const FloatRows<double>&);
template void floats_to_rows(const FloatRows<float>&);
template void floats_to_rows(const FloatRows<Bf16>&);
template void floats_to_rows(const FloatRows<double>&);

}  // namespace dagmoe::reference
