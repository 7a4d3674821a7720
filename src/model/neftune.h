#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace dagmoe {

/// Noise for the embeddings of packed sequences (NEFTune, arXiv:2310.05914): uniform in (-1, 1), times alpha /
/// sqrt(S D) with S the length of the token's own sequence. Float, on the CPU.
///
/// Each value is a function of `seed`, the number `first_sequence` + s of its sequence and its place there: neither the
/// number of threads nor how sequences are divided into micro batches changes it.
at::Tensor neftune_noise(const std::vector<std::int64_t>& segment_offsets, std::int64_t hidden_size, double alpha,
                         std::uint64_t seed, std::int64_t first_sequence = 0);

}  // namespace dagmoe
