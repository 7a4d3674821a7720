#include <limits>

#include "kernels/cuda_device.cuh"
#include "kernels/cuda_kernels.h"

// A stable counting sort of the slots by expert, and rows moved to their places and back. A warp takes one chunk of
// slots in their order and keeps a number per expert in shared memory: first how many it met, then where the next one
// goes. Chunks are added up as integers, so nothing depends on which warp is first.

namespace dagmoe::cuda {
namespace {

constexpr int kChunksMost = 1024, kSlotsLeast = 256;  // chunks in all, slots of a chunk
constexpr std::size_t kSharedBytes = 48 * 1024;

std::int64_t slots_of_chunk(std::int64_t num_slots) {
  const std::int64_t wanted = (num_slots + kChunksMost - 1) / kChunksMost;
  return std::max<std::int64_t>(kSlotsLeast, (wanted + kWarp - 1) / kWarp * kWarp);
}

/// Counts the slots of each expert in a chunk, or (kPlaces) gives each slot its row. An id that is no expert counts as
/// expert E.
template <bool kPlaces>
__global__ void __launch_bounds__(kWarp) chunk_kernel(SortByExpert args, std::int64_t chunk_size) {
  extern __shared__ std::int32_t number_E1[];
  const int lane = threadIdx.x;
  std::int32_t* of_chunk = args.scratch_E1C + blockIdx.x;
  for (std::int64_t e = lane; e <= args.E; e += kWarp) number_E1[e] = kPlaces ? of_chunk[e * gridDim.x] : 0;
  __syncwarp();
  const std::int64_t begin = blockIdx.x * chunk_size, end = min(begin + chunk_size, args.num_slots);
  for (std::int64_t first = begin; first < end; first += kWarp) {
    const std::int64_t slot = first + lane;
    const bool present = slot < end;
    const std::int64_t id = present ? __ldg(args.expert_of_slot + slot) : 0;
    const int expert = id >= 0 && id < args.E ? static_cast<int>(id) : static_cast<int>(args.E);
    const unsigned same = __match_any_sync(0xffffffffU, present ? expert : -1);
    const int num_before = __popc(same & ((1U << lane) - 1));
    if (kPlaces && present) {
      const std::int64_t row = number_E1[expert] + num_before;
      args.token_of_row[row] = slot / args.K;
      args.row_of_slot[slot] = row;
    }
    __syncwarp();
    if (present && num_before == 0) number_E1[expert] += __popc(same);
    __syncwarp();
  }
  if constexpr (!kPlaces) {
    for (std::int64_t e = lane; e <= args.E; e += kWarp) {
      of_chunk[e * gridDim.x] = number_E1[e];
      atomicAdd(args.count_E1 + e, number_E1[e]);
    }
  }
}

/// A block per expert, a thread per chunk: from the counts of the chunks to the first row of each.
__global__ void __launch_bounds__(kChunksMost) first_row_kernel(SortByExpert args, int num_chunks) {
  constexpr int kWarps = kChunksMost / kWarp;
  __shared__ std::int32_t of_warp[kWarps];
  const int chunk = threadIdx.x, lane = chunk % kWarp, warp = chunk / kWarp;
  std::int32_t before = 0;
  for (unsigned e = threadIdx.x; e < blockIdx.x; e += kChunksMost) before += args.count_E1[e];
  before = over_block<kChunksMost>(before, Sum());

  std::int32_t* of_expert = args.scratch_E1C + static_cast<std::int64_t>(blockIdx.x) * num_chunks;
  const std::int32_t own = chunk < num_chunks ? of_expert[chunk] : 0;
  std::int32_t up_to_own = own;
  for (int distance = 1; distance < kWarp; distance *= 2) {
    const std::int32_t other = __shfl_up_sync(0xffffffffU, up_to_own, distance);
    if (lane >= distance) up_to_own += other;
  }
  if (lane == kWarp - 1) of_warp[warp] = up_to_own;
  __syncthreads();
  for (int other = 0; other < warp; ++other) before += of_warp[other];
  if (chunk < num_chunks) of_expert[chunk] = before + up_to_own - own;
}

/// A thread moves one unit of a row at a time.
template <class Unit, bool kScatters>
__global__ void move_rows_kernel(MoveRows args) {
  const std::int64_t units = args.row_bytes / static_cast<std::int64_t>(sizeof(Unit));
  const Unit* source = static_cast<const Unit*>(args.source);
  Unit* result = static_cast<Unit*>(args.result);
  for (std::int64_t k = first_element(); k < args.num_rows * units; k += element_stride()) {
    const std::int64_t row = k / units, other = args.index[row] * units + (k - row * units);
    result[kScatters ? other : k] = source[kScatters ? k : other];
  }
}

template <bool kScatters>
void move_rows(const MoveRows& args, Stream stream) {
  const auto launch = [&]<class Unit>(Unit) {
    const int blocks = num_blocks(args.num_rows * (args.row_bytes / static_cast<std::int64_t>(sizeof(Unit))), kThreads);
    move_rows_kernel<Unit, kScatters><<<blocks, kThreads, 0, stream>>>(args);
  };
  const auto fits = [&](std::size_t num_bytes) {
    return args.row_bytes % static_cast<std::int64_t>(num_bytes) == 0 && is_aligned(args.source, num_bytes) &&
           is_aligned(args.result, num_bytes);
  };
  if (fits(16)) {
    launch(uint4());
  } else if (fits(4)) {
    launch(std::uint32_t());
  } else if (fits(2)) {
    launch(std::uint16_t());
  } else {
    launch(std::uint8_t());
  }
  check_launch("move_rows");
}

/// A thread sums W columns of one token's rows.
template <class T, int W>
__global__ void sum_rows_kernel(SumRows<T> args) {
  using Real = Accumulate<T>;
  const std::int64_t packs = args.D / W;
  for (std::int64_t k = first_element(); k < args.N * packs; k += element_stride()) {
    const std::int64_t n = k / packs, column = (k - n * packs) * W;
    Real sum[W] = {};
#pragma unroll 4
    for (std::int64_t slot = n * args.K; slot < (n + 1) * args.K; ++slot) {
      Real values[W];
      load(args.source_RD + args.row_of_slot_NK[slot] * args.D + column, values);
#pragma unroll
      for (int w = 0; w < W; ++w) sum[w] += values[w];
    }
    store(args.result_ND + n * args.D + column, sum);
  }
}

}  // namespace

std::int64_t num_sort_chunks(std::int64_t num_slots) {
  const std::int64_t size = slots_of_chunk(num_slots);
  return std::max<std::int64_t>(1, (num_slots + size - 1) / size);
}

void sort_by_expert(const SortByExpert& args, Stream stream) {
  const std::size_t shared_bytes = static_cast<std::size_t>(args.E + 1) * sizeof(std::int32_t);
  if (shared_bytes > kSharedBytes || args.num_slots > std::numeric_limits<std::int32_t>::max())
    throw InternalError(str("sort_by_expert: found ", args.E, " experts and ", args.num_slots, " slots, too many"));
  const auto num_chunks = static_cast<int>(num_sort_chunks(args.num_slots));
  const std::int64_t chunk_size = slots_of_chunk(args.num_slots);
  chunk_kernel<false><<<num_chunks, kWarp, shared_bytes, stream>>>(args, chunk_size);
  first_row_kernel<<<static_cast<unsigned>(args.E + 1), kChunksMost, 0, stream>>>(args, num_chunks);
  chunk_kernel<true><<<num_chunks, kWarp, shared_bytes, stream>>>(args, chunk_size);
  check_launch("sort_by_expert");
}

void gather_rows(const MoveRows& args, Stream stream) { move_rows</*kScatters=*/false>(args, stream); }
void scatter_rows(const MoveRows& args, Stream stream) { move_rows</*kScatters=*/true>(args, stream); }

template <class T>
void sum_rows(const SumRows<T>& args, Stream stream) {
  constexpr int W = 16 / sizeof(T);
  if (args.D % W == 0 && is_aligned(args.source_RD, 16) && is_aligned(args.result_ND, 16)) {
    sum_rows_kernel<T, W><<<num_blocks(args.N * (args.D / W), kThreads), kThreads, 0, stream>>>(args);
  } else {
    sum_rows_kernel<T, 1><<<num_blocks(args.N * args.D, kThreads), kThreads, 0, stream>>>(args);
  }
  check_launch("sum_rows");
}

template void sum_rows(const SumRows<float>&, Stream);
template void sum_rows(const SumRows<Bf16>&, Stream);
template void sum_rows(const SumRows<double>&, Stream);

}  // namespace dagmoe::cuda
