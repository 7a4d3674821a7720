#include "kernels/ops_attention_cpu.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <atomic>
#include <cmath>

#include "kernels/attention_plan.h"
#include "kernels/dispatch.h"
#include "kernels/ops_attention_blocks.h"
#include "kernels/ops_support.h"

namespace dagmoe::ops {
namespace {

struct ForwardMemory {
  ForwardMemory(std::int64_t num_keys, std::int64_t R, std::int64_t D)
      : all(2 * num_keys * D + 3 * R * D + kBlockKeys * R + 3 * R),
        keys{all.take(num_keys * D), D},
        values{all.take(num_keys * D), D},
        queries{all.take(R * D), D},
        queries_dR{all.take(D * R), R},
        out{all.take(R * D), D},
        weights_CR{all.take(kBlockKeys * R), R},
        top_R(all.take(R)),
        sum_R(all.take(R)),
        factor_R(all.take(R)) {}
  Workspace all;
  Rows keys, values, queries, queries_dR, out, weights_CR;
  float *top_R, *sum_R, *factor_R;
};

template <class T>
class Forward : AttentionWorker<T> {
  using Base = AttentionWorker<T>;
  using Step = typename Base::Step;

 public:
  Forward(const SegmentAttention& attention, const AttentionPlan& plan, const SegmentAttentionResult& result)
      : Base(attention, plan), out_(result.out_THd), log_sum_exp_(output<float>(result.log_sum_exp_HkTM)) {}

  void run() const {
    this->template for_each_task<ForwardMemory>([this](ForwardMemory& memory, std::size_t index) {
      const AttentionTask& task = this->plan_.tasks[index];
      this->load_keys(task, this->k_, memory.keys);
      this->load_keys(task, this->v_, memory.values);
      this->for_each_queries(task, [&](std::int64_t first, std::int64_t count) { attend(task, first, count, memory); });
    });
  }

 private:
  void attend(const AttentionTask& task, std::int64_t first_query, std::int64_t num_queries,
              ForwardMemory& memory) const {
    const std::int64_t num_rows = num_queries * this->M_;
    this->load_queries(task, first_query, num_queries, this->q_, this->scale_, memory.queries);
    this->transpose_queries(num_rows, memory.queries, memory.queries_dR);
    this->clear(memory.out, num_rows);
    std::fill_n(memory.top_R, padded(num_rows), kLowestTop);
    std::fill_n(memory.sum_R, padded(num_rows), 0.0F);
    bool is_first = true;
    this->for_each_keys(task, first_query, num_queries, [&](std::int64_t first_key, std::int64_t num_keys) {
      const Step step = {first_query, num_queries, first_key, num_keys};
      this->multiply_keys(step, memory.keys[first_key - task.first_key], memory.queries_dR, memory.weights_CR);
      kernels<float>().attention_weights({this->block_of(step), memory.weights_CR.data, memory.weights_CR.stride,
                                          memory.top_R, memory.sum_R, memory.factor_R});
      if (!is_first) rescale(memory.out, num_rows, memory.factor_R);
      is_first = false;
      this->add_to_queries(step, memory.weights_CR, memory.values[first_key - task.first_key], memory.out);
    });
    this->store_queries(task, first_query, num_queries, out_, 1, memory.sum_R, memory.out);
    float* log_sum_exp = log_sum_exp_ + this->statistics_place(task, first_query);
    for (std::int64_t r = 0; r < num_rows; ++r) log_sum_exp[r] = memory.top_R[r] + std::log(memory.sum_R[r]);
  }

  void rescale(Rows out, std::int64_t num_rows, const float* factor_R) const {
    for (std::int64_t r = 0; r < num_rows; ++r) {
      if (factor_R[r] == 1) continue;
      kernels<float>().rows_to_floats({.N = 1,
                                       .d = this->D_,
                                       .row_stride = out.stride,
                                       .rows_Nd = out[r],
                                       .floats_Nd = out[r],
                                       .scale = factor_R[r]});
    }
  }

  Heads<T> out_;
  float* log_sum_exp_;
};

struct BackwardMemory {
  BackwardMemory(std::int64_t num_keys, std::int64_t R, std::int64_t D)
      : all(4 * num_keys * D + 5 * R * D + 2 * kBlockKeys * R + 2 * R),
        keys{all.take(num_keys * D), D},
        values{all.take(num_keys * D), D},
        grad_keys{all.take(num_keys * D), D},
        grad_values{all.take(num_keys * D), D},
        queries{all.take(R * D), D},
        queries_dR{all.take(D * R), R},
        grad_out{all.take(R * D), D},
        grad_out_dR{all.take(D * R), R},
        grad_queries{all.take(R * D), D},
        weights_CR{all.take(kBlockKeys * R), R},
        slopes_CR{all.take(kBlockKeys * R), R},
        log_sum_exp_R(all.take(R)),
        delta_R(all.take(R)) {}
  Workspace all;
  Rows keys, values, grad_keys, grad_values, queries, queries_dR, grad_out, grad_out_dR, grad_queries, weights_CR,
      slopes_CR;
  float *log_sum_exp_R, *delta_R;
};

template <class T>
class Backward : AttentionWorker<T> {
  using Base = AttentionWorker<T>;
  using Step = typename Base::Step;

 public:
  Backward(const SegmentAttention& attention, const AttentionPlan& plan, const SegmentAttentionResult& result,
           const at::Tensor& grad_out_THd, const SegmentAttentionGradients& gradients)
      : Base(attention, plan),
        out_(result.out_THd),
        grad_out_(grad_out_THd),
        grad_q_(gradients.q_THd),
        grad_k_(gradients.k_THkd),
        grad_v_(gradients.v_THkd),
        log_sum_exp_(input<float>(result.log_sum_exp_HkTM)),
        partial_sums_(plan.tasks.size()),
        shared_sums_(plan.groups.size()),
        num_left_(plan.groups.size()) {
    for (std::size_t i = 0; i < plan.groups.size(); ++i) num_left_[i] = plan.groups[i].num_tasks;
  }

  void run() {
    this->template for_each_task<BackwardMemory>([this](BackwardMemory& memory, std::size_t index) {
      const AttentionTask& task = this->plan_.tasks[index];
      this->load_keys(task, this->k_, memory.keys);
      this->load_keys(task, this->v_, memory.values);
      this->clear(memory.grad_keys, task.num_keys());
      this->clear(memory.grad_values, task.num_keys());
      this->for_each_queries(task,
                             [&](std::int64_t first, std::int64_t count) { go_back(task, first, count, memory); });
      hand_over(index, memory);
    });
    for (const AttentionGroup& group : this->plan_.groups) {
      if (!group.followers.empty()) store_shared(group);
    }
  }

 private:
  struct KeySums {
    std::vector<float> keys, values;
  };

  void go_back(const AttentionTask& task, std::int64_t first_query, std::int64_t num_queries,
               BackwardMemory& memory) const {
    const std::int64_t num_rows = num_queries * this->M_;
    this->load_queries(task, first_query, num_queries, this->q_, this->scale_, memory.queries);
    this->transpose_queries(num_rows, memory.queries, memory.queries_dR);
    this->load_queries(task, first_query, num_queries, grad_out_, 1, memory.grad_out);
    this->transpose_queries(num_rows, memory.grad_out, memory.grad_out_dR);
    this->clear(memory.grad_queries, num_rows);
    std::copy_n(log_sum_exp_ + this->statistics_place(task, first_query), num_rows, memory.log_sum_exp_R);
    for (std::int64_t i = 0; i < num_queries; ++i) {
      const std::int64_t token = task.place.own_row(first_query + i), head = task.kv_head * this->M_;
      kernels<T>().row_dots({this->M_, this->d_, out_.at(token, head), out_.head_stride, grad_out_.at(token, head),
                             grad_out_.head_stride, memory.delta_R + i * this->M_});
    }
    this->for_each_keys(task, first_query, num_queries, [&](std::int64_t first_key, std::int64_t num_keys) {
      const Step step = {first_query, num_queries, first_key, num_keys};
      const std::int64_t key = first_key - task.first_key;
      this->multiply_keys(step, memory.keys[key], memory.queries_dR, memory.weights_CR);
      this->multiply_keys(step, memory.values[key], memory.grad_out_dR, memory.slopes_CR);
      kernels<float>().attention_slopes({this->block_of(step), memory.weights_CR.data, memory.slopes_CR.data,
                                         memory.weights_CR.stride, memory.log_sum_exp_R, memory.delta_R});
      this->add_to_keys(step, memory.weights_CR, memory.grad_out, memory.grad_values[key]);
      this->add_to_keys(step, memory.slopes_CR, memory.queries, memory.grad_keys[key]);
      this->add_to_queries(step, memory.slopes_CR, memory.keys[key], memory.grad_queries);
    });
    // Scaled queries gave scaled gradients of the keys; only these lack the scale.
    this->store_queries(task, first_query, num_queries, grad_q_, this->scale_, nullptr, memory.grad_queries);
  }

  // A group's only task writes its sums when it sees all keys; of several the last one adds them up, in their order.
  void hand_over(std::size_t index, const BackwardMemory& memory) {
    const AttentionTask& task = this->plan_.tasks[index];
    const auto group_index = static_cast<std::size_t>(task.group);
    const AttentionGroup& group = this->plan_.groups[group_index];
    if (group.num_tasks == 1 && task.first_key == 0) {
      store_keys(group_index, memory.grad_keys.data, memory.grad_values.data);
      return;
    }
    const std::int64_t size = task.num_keys() * this->D_;
    partial_sums_[index] = {{memory.grad_keys.data, memory.grad_keys.data + size},
                            {memory.grad_values.data, memory.grad_values.data + size}};
    if (--num_left_[group_index] > 0) return;
    KeySums sums = {added_up(group, &KeySums::keys), added_up(group, &KeySums::values)};
    store_keys(group_index, sums.keys.data(), sums.values.data());
    for (std::size_t i = 0; i < group.num_tasks; ++i) partial_sums_[group.first_task + i] = {};
  }

  // For all positions of the sequence.
  std::vector<float> added_up(const AttentionGroup& group, std::vector<float> KeySums::*part) const {
    std::vector<float> sums(static_cast<std::size_t>(group.place.end_position() * this->D_));
    for (std::size_t i = group.first_task; i < group.first_task + group.num_tasks; ++i) {
      const std::vector<float>& added = partial_sums_[i].*part;
      float* to = sums.data() + this->plan_.tasks[i].first_key * this->D_;
      for (std::size_t j = 0; j < added.size(); ++j) to[j] += added[j];
    }
    return sums;
  }

  // Sums for all positions of a group's sequence. Those of rows that several see wait for all of these.
  void store_keys(std::size_t group_index, float* keys, float* values) {
    const AttentionGroup& group = this->plan_.groups[group_index];
    const SequencePlace& place = group.place;
    const std::int64_t num_shared = group.followers.empty() ? place.prefix_size : place.size;
    const std::int64_t size = num_shared * this->D_;
    if (num_shared > 0) shared_sums_[group_index] = {{keys, keys + size}, {values, values + size}};
    if (!group.followers.empty()) return;
    store_rows(grad_k_, group, keys + size);
    store_rows(grad_v_, group, values + size);
  }

  // A prefix: its own sums, and those of each sequence that goes on from it, in their order.
  void store_shared(const AttentionGroup& group) {
    KeySums& sums = shared_sums_[static_cast<std::size_t>(this->plan_.tasks[group.first_task].group)];
    for (const std::size_t follower : group.followers) {
      add(sums.keys, shared_sums_[follower].keys);
      add(sums.values, shared_sums_[follower].values);
    }
    store_rows(grad_k_, group, sums.keys.data());
    store_rows(grad_v_, group, sums.values.data());
  }

  static void add(std::vector<float>& sums, const std::vector<float>& added) {
    for (std::size_t i = 0; i < sums.size(); ++i) sums[i] += added[i];
  }

  void store_rows(const Heads<T>& target, const AttentionGroup& group, float* from) const {
    kernels<T>().floats_to_rows({.N = group.place.size,
                                 .d = this->d_,
                                 .row_stride = target.token_stride,
                                 .rows_Nd = target.at(group.place.begin, group.kv_head),
                                 .floats_Nd = from,
                                 .floats_stride = this->D_});
  }

  Heads<T> out_, grad_out_, grad_q_, grad_k_, grad_v_;
  const float* log_sum_exp_;
  std::vector<KeySums> partial_sums_;  // of the tasks of groups with several
  std::vector<KeySums> shared_sums_;   // of the groups that are a prefix or go on from one
  std::vector<std::atomic<std::size_t>> num_left_;
};

}  // namespace

SegmentAttentionResult attention_forward_cpu(const SegmentAttention& attention) {
  const at::Tensor& q_THd = attention.q_THd;
  const std::int64_t num_kv_heads = attention.k_THkd.size(1);
  const SegmentAttentionResult result = {
      at::empty(q_THd.sizes(), q_THd.options()),
      at::empty({num_kv_heads, q_THd.size(0), q_THd.size(1) / num_kv_heads}, q_THd.options().dtype(at::kFloat))};
  const AttentionPlan plan = plan_attention(attention.segments, attention.k_THkd.size(1), attention.window);
  with_cpu_element(q_THd.scalar_type(),
                   [&](auto element) { Forward<typename decltype(element)::type>(attention, plan, result).run(); });
  return result;
}

SegmentAttentionGradients attention_backward_cpu(const SegmentAttention& attention,
                                                 const SegmentAttentionResult& result, const at::Tensor& grad_out_THd) {
  const auto empty_as = [](const at::Tensor& x) { return at::empty(x.sizes(), x.options()); };
  const SegmentAttentionGradients gradients = {empty_as(attention.q_THd), empty_as(attention.k_THkd),
                                               empty_as(attention.v_THkd)};
  const AttentionPlan plan = plan_attention(attention.segments, attention.k_THkd.size(1), attention.window);
  with_cpu_element(attention.q_THd.scalar_type(), [&](auto element) {
    Backward<typename decltype(element)::type>(attention, plan, result, grad_out_THd, gradients).run();
  });
  return gradients;
}

}  // namespace dagmoe::ops
