#include <cmath>
#include <limits>

#include "kernels/element_convert.h"
#include "kernels/reference.h"

namespace dagmoe::reference {

template <class T>
void cross_entropy(const CrossEntropy<T>& args) {
  using Real = Accumulate<T>;
  for (std::int64_t n = 0; n < args.N; ++n) {
    T* logits_V = args.logits_NV + n * args.V;
    const std::int64_t target = args.target_N[n];
    double largest = -std::numeric_limits<double>::infinity();
    for (std::int64_t v = 0; v < args.V; ++v) {
      const double logit = to_accumulate(logits_V[v]);
      if (logit > largest) largest = logit;
    }
    double sum = 0;
    for (std::int64_t v = 0; v < args.V; ++v) sum += std::exp(to_accumulate(logits_V[v]) - largest);
    args.loss_N[n] = largest + std::log(sum) - to_accumulate(logits_V[target]);
    if (args.uniform_N != nullptr) {
      double sum_of_logs = 0;
      for (std::int64_t v = 0; v < args.V; ++v) sum_of_logs += to_accumulate(logits_V[v]) - largest - std::log(sum);
      args.uniform_N[n] = -sum_of_logs / static_cast<double>(args.V);
    }
    if (args.keep_logits) continue;
    const double eps = args.label_smoothing;
    for (std::int64_t v = 0; v < args.V; ++v) {
      const double probability = std::exp(to_accumulate(logits_V[v]) - largest) / sum;
      const double wanted = (v == target ? 1 - eps : 0) + eps / static_cast<double>(args.V);
      logits_V[v] = to_element<T>(static_cast<Real>((probability - wanted) * args.scale));
    }
  }
}

template void cross_entropy(const CrossEntropy<float>&);
template void cross_entropy(const CrossEntropy<Bf16>&);
template void cross_entropy(const CrossEntropy<double>&);

}  // namespace dagmoe::reference
