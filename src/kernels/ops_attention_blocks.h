#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>

#include "kernels/attention_plan.h"
#include "kernels/dispatch.h"
#include "kernels/ops_attention_cpu.h"
#include "kernels/ops_support.h"

// What the forward and the backward pass of ops_attention_cpu.cpp share; nobody else includes it.
// M = H / Hk query heads share a key head. A block has n queries and R = n M rows, the heads of one query side by side.
// Rows of d elements become rows of D = padded(d) floats. Positions count from the beginning of a segment.

namespace dagmoe::ops {

// Rows and keys of a block: two blocks of scores and what belongs to their rows fit the second-level cache.
inline constexpr std::int64_t kBlockRows = 192, kBlockKeys = 192;
// Rows or keys that take part in one product, so that a product sees little of what the mask hides.
inline constexpr std::int64_t kPanel = 12;

/// Element (t, h, i) at data[t * token_stride + h * head_stride + i].
template <class T>
struct Heads {
  explicit Heads(const at::Tensor& x_THd)
      : data(static_cast<T*>(x_THd.mutable_data_ptr())), token_stride(x_THd.stride(0)), head_stride(x_THd.stride(1)) {}
  T* at(std::int64_t token, std::int64_t head) const { return data + token * token_stride + head * head_stride; }
  T* data;
  std::int64_t token_stride, head_stride;
};

/// A thread's memory, zeros at first, cut into aligned pieces.
class Workspace {
 public:
  explicit Workspace(std::int64_t num_floats) : memory_(at::zeros({num_floats}, at::kFloat)) {
    next_ = memory_.mutable_data_ptr<float>();
  }
  float* take(std::int64_t num_floats) { return std::exchange(next_, next_ + num_floats); }

 private:
  at::Tensor memory_;
  float* next_;
};

/// Rows of floats: row i at data + i * stride.
struct Rows {
  float* data;
  std::int64_t stride;
  float* operator[](std::int64_t row) const { return data + row * stride; }
};

inline void multiply(std::int64_t m, std::int64_t n, std::int64_t k, const float* a, std::int64_t a_row,
                     std::int64_t a_column, const float* b, std::int64_t b_stride, float* c, std::int64_t c_stride,
                     bool is_added) {
  kernels<float>().small_product({m, n, k, a, a_row, a_column, b, b_stride, c, c_stride, is_added});
}

template <class T>
class AttentionWorker {
 public:
  AttentionWorker(const SegmentAttention& attention, const AttentionPlan& plan)
      : plan_(plan),
        d_(attention.q_THd.size(2)),
        D_(padded(d_)),
        num_tokens_(attention.q_THd.size(0)),
        M_(attention.q_THd.size(1) / attention.k_THkd.size(1)),
        window_(attention.window),
        scale_(static_cast<float>(1 / std::sqrt(static_cast<double>(d_)))),
        q_(attention.q_THd),
        k_(attention.k_THkd),
        v_(attention.v_THkd),
        most_queries_(std::max<std::int64_t>(1, kBlockRows / M_)),
        R_(padded(most_queries_ * M_)) {
    for (const AttentionTask& task : plan.tasks) most_keys_ = std::max(most_keys_, task.num_keys());
  }

 protected:
  /// One block of queries and one of keys; its statistics and masks.
  struct Step {
    std::int64_t first_query, num_queries, first_key, num_keys;
  };

  AttentionBlock block_of(const Step& step) const {
    return {step.num_queries * M_, step.num_keys, M_, step.first_key - step.first_query, window_};
  }

  /// f(first, count) for parts of [begin, end) of about the same size, at most `most`.
  template <class F>
  static void for_each_part(std::int64_t begin, std::int64_t end, std::int64_t most, F f) {
    const std::int64_t size = end - begin, num_parts = (size + most - 1) / most;
    for (std::int64_t i = 0; i < num_parts; ++i) {
      const std::int64_t first = begin + size * i / num_parts;
      f(first, begin + size * (i + 1) / num_parts - first);
    }
  }
  template <class F>
  void for_each_queries(const AttentionTask& task, F f) const {
    for_each_part(task.first_query, task.end_query, most_queries_, f);
  }
  template <class F>
  void for_each_keys(const AttentionTask& task, std::int64_t first_query, std::int64_t num_queries, F f) const {
    const std::int64_t first = window_ > 0 ? std::max(task.first_key, first_query - window_ + 1) : task.first_key;
    for_each_part(first, first_query + num_queries, kBlockKeys, f);
  }
  template <class F>
  static void for_each_panel(std::int64_t size, F f) {
    for (std::int64_t i = 0; i < size; i += kPanel) f(i, std::min(kPanel, size - i));
  }

  // The keys of a prefix, and then those of the sequence's own rows.
  void load_keys(const AttentionTask& task, const Heads<T>& source, Rows to) const {
    const SequencePlace& place = task.place;
    const std::int64_t num_shared = std::max<std::int64_t>(0, place.prefix_size - task.first_key);
    const auto load = [&](std::int64_t row, std::int64_t count, float* floats) {
      kernels<T>().rows_to_floats({.N = count,
                                   .d = d_,
                                   .row_stride = source.token_stride,
                                   .rows_Nd = source.at(row, task.kv_head),
                                   .floats_Nd = floats,
                                   .floats_stride = to.stride});
    };
    if (num_shared > 0) load(place.prefix_begin + task.first_key, num_shared, to.data);
    load(place.own_row(task.first_key + num_shared), task.num_keys() - num_shared, to[num_shared]);
  }
  // All rows of a block of queries.
  void load_queries(const AttentionTask& task, std::int64_t first, std::int64_t count, const Heads<T>& source,
                    float scale, Rows to) const {
    for (std::int64_t i = 0; i < count; ++i) {
      kernels<T>().rows_to_floats({.N = M_,
                                   .d = d_,
                                   .row_stride = source.head_stride,
                                   .rows_Nd = source.at(task.place.own_row(first + i), task.kv_head * M_),
                                   .floats_Nd = to[i * M_],
                                   .scale = scale,
                                   .floats_stride = to.stride});
    }
  }
  void store_queries(const AttentionTask& task, std::int64_t first, std::int64_t count, const Heads<T>& target,
                     float scale, const float* divisor_R, Rows from) const {
    for (std::int64_t i = 0; i < count; ++i) {
      kernels<T>().floats_to_rows({.N = M_,
                                   .d = d_,
                                   .row_stride = target.head_stride,
                                   .rows_Nd = target.at(task.place.own_row(first + i), task.kv_head * M_),
                                   .floats_Nd = from[i * M_],
                                   .scale = scale,
                                   .divisor_N = divisor_R == nullptr ? nullptr : divisor_R + i * M_,
                                   .floats_stride = from.stride});
    }
  }
  void transpose_queries(std::int64_t num_rows, Rows from, Rows to) const {
    kernels<float>().transpose({padded(num_rows), D_, from.data, from.stride, to.data, to.stride});
  }
  static void clear(Rows rows, std::int64_t count) { std::fill_n(rows.data, count * rows.stride, 0.0F); }

  // products_CR = keys_Cd queries_dR where seen; the rest is left as it was.
  void multiply_keys(const Step& step, const float* keys, Rows queries_dR, Rows products_CR) const {
    const AttentionBlock block = block_of(step);
    for_each_panel(step.num_keys, [&](std::int64_t c, std::int64_t count) {
      const std::int64_t begin = rows_seeing(block, c).begin / kRowFloats * kRowFloats;
      const std::int64_t end = padded(rows_seeing(block, c + count - 1).end);
      multiply(count, end - begin, d_, keys + c * D_, D_, 1, queries_dR.data + begin, queries_dR.stride,
               products_CR[c] + begin, products_CR.stride, false);
    });
  }
  // sums_RD += the transpose of weights_CR times values_CD.
  void add_to_queries(const Step& step, Rows weights_CR, const float* values, Rows sums_RD) const {
    const AttentionBlock block = block_of(step);
    for_each_panel(block.R, [&](std::int64_t r, std::int64_t count) {
      const std::int64_t begin = keys_seen_by(block, r).begin, end = keys_seen_by(block, r + count - 1).end;
      multiply(count, D_, end - begin, weights_CR[begin] + r, 1, weights_CR.stride, values + begin * D_, D_, sums_RD[r],
               D_, true);
    });
  }
  // sums_CD += weights_CR times queries_RD.
  void add_to_keys(const Step& step, Rows weights_CR, Rows queries_RD, float* sums) const {
    const AttentionBlock block = block_of(step);
    for_each_panel(step.num_keys, [&](std::int64_t c, std::int64_t count) {
      const std::int64_t begin = rows_seeing(block, c).begin, end = rows_seeing(block, c + count - 1).end;
      multiply(count, D_, end - begin, weights_CR[c] + begin, weights_CR.stride, 1, queries_RD[begin], D_,
               sums + c * D_, D_, true);
    });
  }

  // The place of a query's statistics in a tensor [Hk, T, M].
  std::int64_t statistics_place(const AttentionTask& task, std::int64_t query) const {
    return (task.kv_head * num_tokens_ + task.place.own_row(query)) * M_;
  }

  // Calls f(worker's own memory, task) for every task, on all threads.
  template <class Memory, class F>
  void for_each_task(F f) const {
    ops::for_each_task(
        plan_.order.size(), [&] { return Memory(most_keys_, R_, D_); },
        [&](Memory& memory, std::size_t i) { f(memory, plan_.order[i]); });
  }

  const AttentionPlan& plan_;
  std::int64_t d_, D_, num_tokens_, M_, window_;
  float scale_;
  Heads<T> q_, k_, v_;
  std::int64_t most_queries_, R_, most_keys_ = 0;
};

}  // namespace dagmoe::ops
