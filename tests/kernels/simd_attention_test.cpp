// The parts of training attention: every table this processor supports against the reference table.
#include <ATen/ATen.h>

#include <vector>

#include "kernels/dispatch.h"
#include "tests/support/catch.h"
#include "tests/support/compare.h"
#include "tests/support/kernel_tables.h"

using namespace dagmoe;
using namespace dagmoe::testing;

namespace {

// Scores of a block, NaN where nothing is seen, which must not matter.
at::Tensor scores_of(const AttentionBlock& block, double scale, std::uint64_t seed) {
  const at::Tensor scores = random_values<float>({block.C, padded(block.R)}, scale, seed);
  for (std::int64_t c = 0; c < block.C; ++c) {
    const SeenRange seen = rows_seeing(block, c);
    for (std::int64_t r = 0; r < scores.size(1); ++r) {
      if (r < seen.begin || r >= seen.end) scores.data_ptr<float>()[c * scores.size(1) + r] = kNan;
    }
  }
  return scores;
}

// The values of real rows; what stands behind them is nobody's.
void require_rows_as_reference(const at::Tensor& actual, const at::Tensor& expected, std::int64_t num_rows) {
  require_as_reference<float>(actual.narrow(-1, 0, num_rows), expected.narrow(-1, 0, num_rows));
}

template <class Check>
void for_each_block_shape(Check check) {
  for (const std::int64_t M : {1, 3, 5}) {
    for (const std::int64_t num_queries : {1, 4, 6, 11, 33}) {
      for (const std::int64_t C : {1, 9, 40}) {
        for (const std::int64_t first_key : {-60, -20, -1, 0, 3}) {
          for (const std::int64_t window : {0, 1, 2, 25}) {
            INFO(M << " heads, " << num_queries << " queries, " << C << " keys from " << first_key << ", window "
                   << window);
            check(AttentionBlock{num_queries * M, C, M, first_key, window});
          }
        }
      }
    }
  }
}

}  // namespace

TEST_CASE("attention blocks: rows that see a key and keys that a row sees are the same pairs", "[kernels]") {
  for_each_block_shape([](const AttentionBlock& block) {
    for (std::int64_t r = 0; r < block.R; ++r) {
      for (std::int64_t c = 0; c < block.C; ++c) {
        const std::int64_t age = r / block.M - (block.first_key + c);
        const bool is_seen = age >= 0 && (block.window == 0 || age < block.window);
        const SeenRange rows = rows_seeing(block, c), keys = keys_seen_by(block, r);
        if ((r >= rows.begin && r < rows.end) != is_seen || (c >= keys.begin && c < keys.end) != is_seen) {
          INFO("row " << r << ", key " << c);
          REQUIRE(false);
        }
      }
    }
    REQUIRE(block.R > 0);
  });
}

TEST_CASE("attention_weights: every table gives what the reference gives", "[kernels]") {
  for_each_table<float>([](const KernelTable<float>& table, const KernelTable<float>& reference) {
    for_each_block_shape([&](const AttentionBlock& block) {
      const std::int64_t size = padded(block.R);
      const at::Tensor weights = scores_of(block, 3, 1), other = guarded(weights);
      // As after no block, and as after one.
      const at::Tensor top = random_values<float>({size}, 3, 2), sum = random_values<float>({size}, 0.1, 3, 1);
      top.slice(0, 0, size, 2).fill_(kLowestTop);
      sum.slice(0, 0, size, 2).fill_(0);
      const at::Tensor other_top = guarded(top), other_sum = guarded(sum);
      const at::Tensor factor = empty_values<float>({size}), other_factor = empty_values<float>({size});
      table.attention_weights(
          {block, data<float>(weights), size, data<float>(top), data<float>(sum), data<float>(factor)});
      reference.attention_weights(
          {block, data<float>(other), size, data<float>(other_top), data<float>(other_sum), data<float>(other_factor)});
      require_rows_as_reference(weights, other, block.R);
      require_rows_as_reference(top, other_top, block.R);
      require_rows_as_reference(sum, other_sum, block.R);
      require_rows_as_reference(factor, other_factor, block.R);
    });
  });
}

TEST_CASE("attention_slopes: every table gives what the reference gives", "[kernels]") {
  for_each_table<float>([](const KernelTable<float>& table, const KernelTable<float>& reference) {
    for_each_block_shape([&](const AttentionBlock& block) {
      const std::int64_t size = padded(block.R);
      const at::Tensor weights = scores_of(block, 1, 1), other_weights = guarded(weights);
      const at::Tensor slopes = scores_of(block, 1, 2), other_slopes = guarded(slopes);
      const at::Tensor log_sum_exp = random_values<float>({size}, 1, 3, 3), delta = random_values<float>({size}, 1, 4);
      table.attention_slopes(
          {block, data<float>(weights), data<float>(slopes), size, data<float>(log_sum_exp), data<float>(delta)});
      reference.attention_slopes({block, data<float>(other_weights), data<float>(other_slopes), size,
                                  data<float>(log_sum_exp), data<float>(delta)});
      require_rows_as_reference(weights, other_weights, block.R);
      require_rows_as_reference(slopes, other_slopes, block.R);
    });
  });
}

TEST_CASE("small_product: every table gives what the reference gives", "[kernels]") {
  for_each_table<float>([](const KernelTable<float>& table, const KernelTable<float>& reference) {
    for (std::int64_t m = 1; m <= 13; ++m) {
      for (const std::int64_t n : {16, 32, 48, 64, 80, 128}) {
        for (const std::int64_t k : {0, 1, 7, 64}) {
          for (const bool is_transposed : {false, true}) {
            for (const bool is_added : {false, true}) {
              INFO(m << " x " << n << " x " << k << ", transposed " << is_transposed << ", added " << is_added);
              const std::int64_t a_stride = is_transposed ? m + 1 : k + 1;
              const at::Tensor a = random_values<float>({m * k + m + k}, 1, 1), b = random_values<float>({k, n}, 1, 2);
              const at::Tensor c = is_added ? random_values<float>({m, n}, 1, 3) : empty_values<float>({m, n});
              const at::Tensor expected = guarded(c);
              SmallProduct args = {m,
                                   n,
                                   k,
                                   data<float>(a),
                                   is_transposed ? 1 : a_stride,
                                   is_transposed ? a_stride : 1,
                                   data<float>(b),
                                   n,
                                   data<float>(c),
                                   n,
                                   is_added};
              table.small_product(args);
              args.c_mn = data<float>(expected);
              reference.small_product(args);
              require_as_reference<float>(c, expected);
            }
          }
        }
      }
    }
  });
}

TEST_CASE("transpose: every table moves every value to its place", "[kernels]") {
  for (const Isa isa : {Isa::kReference, Isa::kAvx2, Isa::kAvx512}) {
    const KernelTable<float>* table = kernels_for<float>(isa);
    if (table == nullptr) continue;
    INFO("table " << isa_name(isa));
    for (const std::int64_t N : {16, 48}) {
      for (const std::int64_t C : {16, 64}) {
        const at::Tensor from = random_values<float>({N, C}, 1, 1), to = empty_values<float>({C, N});
        table->transpose({N, C, data<float>(from), C, data<float>(to), N});
        require_equal(to, from.t());
      }
    }
  }
}

TEMPLATE_TEST_CASE("row_dots: every table gives what the reference gives", "[kernels]", float, Bf16) {
  using T = TestType;
  for_each_table<T>([](const KernelTable<T>& table, const KernelTable<T>& reference) {
    for (const std::int64_t d : kSizes) {
      const std::int64_t N = 3;
      const at::Tensor a = random_values<T>({N * (d + 2) - 2}, 1, 1), b = random_values<T>({N * (d + 1) - 1}, 1, 2);
      const at::Tensor dots = empty_values<float>({N}), expected = empty_values<float>({N});
      table.row_dots({N, d, data<T>(a), d + 2, data<T>(b), d + 1, data<float>(dots)});
      reference.row_dots({N, d, data<T>(a), d + 2, data<T>(b), d + 1, data<float>(expected)});
      require_as_reference<float>(dots, expected);
    }
  });
}
