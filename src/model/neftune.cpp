#include "model/neftune.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <cmath>

#include "base/random.h"

namespace dagmoe {

at::Tensor neftune_noise(const std::vector<std::int64_t>& segment_offsets, std::int64_t hidden_size, double alpha,
                         std::uint64_t seed, std::int64_t first_sequence) {
  const std::int64_t D = hidden_size;
  const at::Tensor noise_TD = at::empty({segment_offsets.back(), D}, at::kFloat);
  float* noise = noise_TD.mutable_data_ptr<float>();
  for (std::size_t s = 0; s + 1 < segment_offsets.size(); ++s) {
    const std::int64_t begin = segment_offsets[s], S = segment_offsets[s + 1] - begin;
    const auto bound = static_cast<float>(alpha / std::sqrt(static_cast<double>(S * D)));
    const RandomStream stream(seed, static_cast<std::uint64_t>(first_sequence) + s);
    at::parallel_for(0, S * D, 16384, [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t i = first; i < last; ++i)
        noise[begin * D + i] =
            bound * static_cast<float>(2.0 * stream.uniform(static_cast<std::uint64_t>(i)) - 1.0);  // symmetric
    });
  }
  return noise_TD;
}

}  // namespace dagmoe
