#pragma once

#include <cstdint>
#include <optional>
#include <vector>

namespace dagmoe {

/// The order of an epoch: a permutation of 0 .. size - 1 that depends on its arguments alone, on every machine and with
/// every standard library.
std::vector<std::int64_t> epoch_order(std::int64_t size, std::uint64_t seed, std::int64_t epoch);
/// The same in half the memory, for fewer than 2^32 items.
std::vector<std::uint32_t> short_epoch_order(std::int64_t size, std::uint64_t seed, std::int64_t epoch);

/// The item at a place of another such permutation, without the memory for all of it: four rounds of a Feistel network
/// over the next power of four, walked until they end below `size`.
std::int64_t permuted_item(std::int64_t index, std::int64_t size, std::uint64_t seed);

/// How often a source is used; absent both: each of its records once an epoch.
struct SourceShare {
  std::int64_t size = 0;         ///< good records
  std::optional<double> weight;  ///< relative to the other sources': its share of an epoch's samples
  std::optional<double> epochs;  ///< passes over it in one epoch of the run
};
/// Draws from every source in one epoch of the run. With weights an epoch has as many draws as there are records, and a
/// source without a weight counts as 1. At least one draw each.
std::vector<std::int64_t> draws_per_epoch(const std::vector<SourceShare>& shares);

}  // namespace dagmoe
