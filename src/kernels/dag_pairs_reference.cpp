#include <cmath>

#include "kernels/element_convert.h"
#include "kernels/reference.h"

namespace dagmoe::reference {
namespace {

/// SiLU(t) and its derivative.
template <class Real>
struct Silu {
  explicit Silu(Real t) {
    const Real sigmoid = 1 / (1 + std::exp(-t));
    value = t * sigmoid;
    slope = sigmoid * (1 + t * (1 - sigmoid));
  }
  Real value, slope;
};

}  // namespace

template <class T>
void dag_pairs_forward(const DagPairsForward<T>& args) {
  using Real = Accumulate<T>;
  const std::int64_t K = args.K, G = args.G;
  for (std::int64_t n = 0; n < args.N; ++n) {
    // The projections a, b, c, e of node i, element g.
    const auto abce = [&](std::int64_t i, std::int64_t which, std::int64_t g) {
      return to_accumulate(args.abce_NK4G[((n * K + i) * 4 + which) * G + g]);
    };
    for (std::int64_t i = 0; i < K; ++i) {
      for (std::int64_t g = 0; g < G; ++g) {
        Real sum = 0;
        for (std::int64_t j = 0; j < K; ++j) {
          sum += Silu<Real>(abce(i, 0, g) + abce(j, 1, g)).value * (abce(i, 2, g) + abce(j, 3, g));
        }
        args.s_NKG[(n * K + i) * G + g] = to_element<T>(sum);
      }
    }
  }
}

template <class T>
void dag_pairs_backward(const DagPairsBackward<T>& args) {
  using Real = Accumulate<T>;
  const std::int64_t K = args.K, G = args.G;
  for (std::int64_t n = 0; n < args.N; ++n) {
    const auto index = [&](std::int64_t i, std::int64_t which, std::int64_t g) {
      return ((n * K + i) * 4 + which) * G + g;
    };
    const auto abce = [&](std::int64_t i, std::int64_t which, std::int64_t g) {
      return to_accumulate(args.abce_NK4G[index(i, which, g)]);
    };
    const auto grad_s = [&](std::int64_t i, std::int64_t g) {
      return to_accumulate(args.grad_s_NKG[(n * K + i) * G + g]);
    };
    for (std::int64_t i = 0; i < K; ++i) {
      for (std::int64_t g = 0; g < G; ++g) {
        Real grad_a = 0, grad_b = 0, grad_c = 0, grad_e = 0;
        for (std::int64_t j = 0; j < K; ++j) {
          // Node i as the target of the pair (i, j).
          const Silu<Real> in(abce(i, 0, g) + abce(j, 1, g));
          grad_a += grad_s(i, g) * in.slope * (abce(i, 2, g) + abce(j, 3, g));
          grad_c += grad_s(i, g) * in.value;
          // Node i as the source of the pair (j, i).
          const Silu<Real> out(abce(j, 0, g) + abce(i, 1, g));
          grad_b += grad_s(j, g) * out.slope * (abce(j, 2, g) + abce(i, 3, g));
          grad_e += grad_s(j, g) * out.value;
        }
        args.grad_abce_NK4G[index(i, 0, g)] = to_element<T>(grad_a);
        args.grad_abce_NK4G[index(i, 1, g)] = to_element<T>(grad_b);
        args.grad_abce_NK4G[index(i, 2, g)] = to_element<T>(grad_c);
        args.grad_abce_NK4G[index(i, 3, g)] = to_element<T>(grad_e);
      }
    }
  }
}

template void dag_pairs_forward(const DagPairsForward<float>&);
template void dag_pairs_forward(const DagPairsForward<Bf16>&);
template void dag_pairs_forward(const DagPairsForward<double>&);
template void dag_pairs_backward(const DagPairsBackward<float>&);
template void dag_pairs_backward(const DagPairsBackward<Bf16>&);
template void dag_pairs_backward(const DagPairsBackward<double>&);

}  // namespace dagmoe::reference
