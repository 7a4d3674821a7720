#include "peft/mixture_support.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/error.h"
#include "base/text.h"

namespace dagmoe {
namespace {

// Insertion into the k best so far: a few times faster than sorting, as most scores are compared once.
template <class T>
void select_largest(const at::Tensor& scores, const at::Tensor& ids) {
  const std::int64_t n = scores.size(-1), k = ids.size(-1);
  const T* all_scores = scores.const_data_ptr<T>();
  std::int64_t* all_ids = ids.mutable_data_ptr<std::int64_t>();
  at::parallel_for(0, ids.numel() / k, 256, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
      const T* score = all_scores + row * n;
      std::int64_t* chosen = all_ids + row * k;
      for (std::int64_t i = 0; i < n; ++i) {
        if (i >= k && !(score[i] > score[chosen[k - 1]])) continue;
        std::int64_t place = std::min(i, k - 1);
        for (; place > 0 && score[i] > score[chosen[place - 1]]; --place) chosen[place] = chosen[place - 1];
        chosen[place] = i;
      }
    }
  });
}

}  // namespace

void throw_config_problems(std::string_view where, const std::vector<std::string>& problems) {
  std::vector<std::string> issues;
  for (const std::string& problem : problems) issues.push_back(str(where, ".", problem));
  if (!issues.empty()) throw ConfigError(std::move(issues), "");
}

void expect_shapes(std::string_view adapter, const std::vector<NamedShape>& shapes,
                   const std::vector<at::Tensor>& tensors) {
  if (tensors.size() != shapes.size()) {
    throw InternalError(str(adapter, ": ", tensors.size(), " tensors, expected ", shapes.size()));
  }
  for (std::size_t i = 0; i < shapes.size(); ++i) {
    const auto& [name, shape] = shapes[i];
    if (tensors[i].sizes() == at::IntArrayRef(shape)) continue;
    throw InternalError(
        str(adapter, ": ", name, ": found shape ", shape_text(tensors[i].sizes()), ", expected ", shape_text(shape)));
  }
}

at::ScalarType routing_dtype(const at::Tensor& x) { return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat; }

at::Tensor stable_top_k(const at::Tensor& scores, std::int64_t k) {
  const at::Tensor values = scores.detach().contiguous();
  if (!values.is_cpu()) {
    const at::Tensor order = std::get<1>(at::sort(values, /*stable=*/true, /*dim=*/-1, /*descending=*/true));
    return order.narrow(-1, 0, k).contiguous();
  }
  std::vector<std::int64_t> shape = values.sizes().vec();
  shape.back() = k;
  const at::Tensor ids = at::empty(shape, values.options().dtype(at::kLong));
  values.scalar_type() == at::kDouble ? select_largest<double>(values, ids) : select_largest<float>(values, ids);
  return ids;
}

std::vector<std::int64_t> count_ids(const at::Tensor& ids, std::int64_t num_experts) {
  std::vector<std::int64_t> counts(static_cast<std::size_t>(num_experts), 0);
  const at::Tensor on_cpu = ids.to(at::kCPU).contiguous();
  const std::int64_t* id = on_cpu.const_data_ptr<std::int64_t>();
  for (std::int64_t i = 0; i < on_cpu.numel(); ++i) ++counts.at(static_cast<std::size_t>(id[i]));
  return counts;
}

at::Tensor balanced_bias(const at::Tensor& bias, const std::vector<std::int64_t>& counts, double rate) {
  const std::int64_t total = std::accumulate(counts.begin(), counts.end(), std::int64_t{0});
  const auto size = static_cast<std::int64_t>(counts.size());
  std::vector<double> steps;
  for (const std::int64_t count : counts) {
    // mean - count in units of 1 / size, so that it is exact.
    const std::int64_t lacking = total - count * size;
    steps.push_back(lacking > 0 ? rate : lacking < 0 ? -rate : 0.0);
  }
  return bias.detach() + at::tensor(steps, at::kDouble).to(bias.options());
}

void fill_kaiming_uniform(const at::Tensor& tensor, std::int64_t fan_in, at::Generator& generator) {
  const double bound = 1.0 / std::sqrt(static_cast<double>(fan_in));
  fill_uniform(tensor, -bound, bound, generator);
}

void fill_uniform(const at::Tensor& tensor, double low, double high, at::Generator& generator) {
  const at::NoGradGuard no_grad;
  tensor.copy_(at::empty(tensor.sizes(), at::kFloat).uniform_(low, high, generator));
}

}  // namespace dagmoe
