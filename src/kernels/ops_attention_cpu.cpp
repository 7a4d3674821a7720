#include "kernels/ops_attention_cpu.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <memory>

#include "kernels/dispatch.h"
#include "kernels/ops_support.h"

// M = H / Hk query heads share a key head. A block has n queries and R = n M rows, the heads of one query side by side.
// Rows of d elements become rows of D = padded(d) floats. Positions count from the beginning of a segment.

namespace dagmoe::ops {
namespace {

// Rows and keys of a block: two blocks of scores and what belongs to their rows fit the second-level cache.
constexpr std::int64_t kBlockRows = 192, kBlockKeys = 192;
// Rows or keys that take part in one product, so that a product sees little of what the mask hides.
constexpr std::int64_t kPanel = 12;

/// Element (t, h, i) at data[t * token_stride + h * head_stride + i].
template <class T>
struct Heads {
  explicit Heads(const at::Tensor& x_THd)
      : data(static_cast<T*>(x_THd.mutable_data_ptr())), token_stride(x_THd.stride(0)), head_stride(x_THd.stride(1)) {}
  T* at(std::int64_t token, std::int64_t head) const { return data + token * token_stride + head * head_stride; }
  T* data;
  std::int64_t token_stride, head_stride;
};

/// Queries [first_query, end_query) of one segment and one key head. Keys before first_key are out of their sight.
struct Task {
  std::int64_t group, segment_begin, kv_head, first_query, end_query, first_key;
  std::int64_t num_keys() const { return end_query - first_key; }
};

/// The tasks of one segment and one key head: they are neighbours, and their gradients of keys and values add up.
struct Group {
  std::size_t first_task, num_tasks;
  std::int64_t segment_begin, segment_size, kv_head;
};

struct Plan {
  std::vector<Task> tasks;
  std::vector<Group> groups;
  std::vector<std::size_t> order;  ///< of the tasks, the dearest first
};

// Scores of a task.
double cost(const Task& task, std::int64_t window) {
  const auto before = [window](std::int64_t position) {
    const auto x = static_cast<double>(position), w = static_cast<double>(window > 0 ? window : position);
    return x <= w ? x * x / 2 : w * w / 2 + (x - w) * w;
  };
  return before(task.end_query) - before(task.first_query);
}

// Long segments in a few tasks of about the same cost, whatever the number of threads, because sums of gradients depend
// on it. Few, because every task but the first keeps the sums of all its keys.
std::vector<std::int64_t> task_bounds(std::int64_t segment_size, std::int64_t window) {
  constexpr std::int64_t kTaskQueries = 512, kMostTasks = 4;
  const std::int64_t num_tasks = bounded(segment_size / kTaskQueries, kMostTasks);
  std::vector<std::int64_t> bounds = {0};
  for (std::int64_t i = 1; i < num_tasks; ++i) {
    const double part = static_cast<double>(i) / static_cast<double>(num_tasks);
    const double place = window > 0 && window < segment_size / 2 ? part : std::sqrt(part);
    bounds.push_back(std::llround(place * static_cast<double>(segment_size)));
  }
  bounds.push_back(segment_size);
  return bounds;
}

Plan plan_of(const SegmentAttention& attention) {
  Plan plan;
  const std::int64_t window = attention.window;
  for (std::size_t s = 0; s + 1 < attention.offsets.size(); ++s) {
    const std::int64_t begin = attention.offsets[s], size = attention.offsets[s + 1] - begin;
    if (size == 0) continue;
    const std::vector<std::int64_t> bounds = task_bounds(size, window);
    for (std::int64_t head = 0; head < attention.k_THkd.size(1); ++head) {
      plan.groups.push_back({plan.tasks.size(), bounds.size() - 1, begin, size, head});
      for (std::size_t i = 0; i + 1 < bounds.size(); ++i) {
        const std::int64_t first_key = window > 0 ? std::max<std::int64_t>(0, bounds[i] - window + 1) : 0;
        plan.tasks.push_back(
            {static_cast<std::int64_t>(plan.groups.size()) - 1, begin, head, bounds[i], bounds[i + 1], first_key});
      }
    }
  }
  for (std::size_t i = 0; i < plan.tasks.size(); ++i) plan.order.push_back(i);
  std::stable_sort(plan.order.begin(), plan.order.end(), [&](std::size_t a, std::size_t b) {
    return cost(plan.tasks[a], window) > cost(plan.tasks[b], window);
  });
  return plan;
}

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

void multiply(std::int64_t m, std::int64_t n, std::int64_t k, const float* a, std::int64_t a_row, std::int64_t a_column,
              const float* b, std::int64_t b_stride, float* c, std::int64_t c_stride, bool is_added) {
  kernels<float>().small_product({m, n, k, a, a_row, a_column, b, b_stride, c, c_stride, is_added});
}

template <class T>
class Worker {
 public:
  Worker(const SegmentAttention& attention, const Plan& plan)
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
    for (const Task& task : plan.tasks) most_keys_ = std::max(most_keys_, task.num_keys());
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
  void for_each_queries(const Task& task, F f) const {
    for_each_part(task.first_query, task.end_query, most_queries_, f);
  }
  template <class F>
  void for_each_keys(const Task& task, std::int64_t first_query, std::int64_t num_queries, F f) const {
    const std::int64_t first = window_ > 0 ? std::max(task.first_key, first_query - window_ + 1) : task.first_key;
    for_each_part(first, first_query + num_queries, kBlockKeys, f);
  }
  template <class F>
  static void for_each_panel(std::int64_t size, F f) {
    for (std::int64_t i = 0; i < size; i += kPanel) f(i, std::min(kPanel, size - i));
  }

  void load_keys(const Task& task, const Heads<T>& source, Rows to) const {
    kernels<T>().rows_to_floats({.N = task.num_keys(),
                                 .d = d_,
                                 .row_stride = source.token_stride,
                                 .rows_Nd = source.at(task.segment_begin + task.first_key, task.kv_head),
                                 .floats_Nd = to.data,
                                 .floats_stride = to.stride});
  }
  // All rows of a block of queries.
  void load_queries(const Task& task, std::int64_t first, std::int64_t count, const Heads<T>& source, float scale,
                    Rows to) const {
    for (std::int64_t i = 0; i < count; ++i) {
      kernels<T>().rows_to_floats({.N = M_,
                                   .d = d_,
                                   .row_stride = source.head_stride,
                                   .rows_Nd = source.at(task.segment_begin + first + i, task.kv_head * M_),
                                   .floats_Nd = to[i * M_],
                                   .scale = scale,
                                   .floats_stride = to.stride});
    }
  }
  void store_queries(const Task& task, std::int64_t first, std::int64_t count, const Heads<T>& target, float scale,
                     const float* divisor_R, Rows from) const {
    for (std::int64_t i = 0; i < count; ++i) {
      kernels<T>().floats_to_rows({.N = M_,
                                   .d = d_,
                                   .row_stride = target.head_stride,
                                   .rows_Nd = target.at(task.segment_begin + first + i, task.kv_head * M_),
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
  std::int64_t statistics_place(const Task& task, std::int64_t query) const {
    return (task.kv_head * num_tokens_ + task.segment_begin + query) * M_;
  }

  // Calls f(worker's own memory, task) for every task, on all threads.
  template <class Memory, class F>
  void for_each_task(F f) const {
    std::atomic<std::size_t> next{0};
    at::parallel_for(0, at::get_num_threads(), 1, [&](std::int64_t, std::int64_t) {
      std::size_t i = next++;
      if (i >= plan_.order.size()) return;
      Memory memory(most_keys_, R_, D_);
      for (; i < plan_.order.size(); i = next++) f(memory, plan_.order[i]);
    });
  }

  const Plan& plan_;
  std::int64_t d_, D_, num_tokens_, M_, window_;
  float scale_;
  Heads<T> q_, k_, v_;
  std::int64_t most_queries_, R_, most_keys_ = 0;
};

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
class Forward : Worker<T> {
  using Base = Worker<T>;
  using Step = typename Base::Step;

 public:
  Forward(const SegmentAttention& attention, const Plan& plan, const SegmentAttentionResult& result)
      : Base(attention, plan), out_(result.out_THd), log_sum_exp_(output<float>(result.log_sum_exp_HkTM)) {}

  void run() const {
    this->template for_each_task<ForwardMemory>([this](ForwardMemory& memory, std::size_t index) {
      const Task& task = this->plan_.tasks[index];
      this->load_keys(task, this->k_, memory.keys);
      this->load_keys(task, this->v_, memory.values);
      this->for_each_queries(task, [&](std::int64_t first, std::int64_t count) { attend(task, first, count, memory); });
    });
  }

 private:
  void attend(const Task& task, std::int64_t first_query, std::int64_t num_queries, ForwardMemory& memory) const {
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
class Backward : Worker<T> {
  using Base = Worker<T>;
  using Step = typename Base::Step;

 public:
  Backward(const SegmentAttention& attention, const Plan& plan, const SegmentAttentionResult& result,
           const at::Tensor& grad_out_THd, const SegmentAttentionGradients& gradients)
      : Base(attention, plan),
        out_(result.out_THd),
        grad_out_(grad_out_THd),
        grad_q_(gradients.q_THd),
        grad_k_(gradients.k_THkd),
        grad_v_(gradients.v_THkd),
        log_sum_exp_(input<float>(result.log_sum_exp_HkTM)),
        partial_sums_(plan.tasks.size()),
        num_left_(plan.groups.size()) {
    for (std::size_t i = 0; i < plan.groups.size(); ++i) num_left_[i] = plan.groups[i].num_tasks;
  }

  void run() {
    this->template for_each_task<BackwardMemory>([this](BackwardMemory& memory, std::size_t index) {
      const Task& task = this->plan_.tasks[index];
      this->load_keys(task, this->k_, memory.keys);
      this->load_keys(task, this->v_, memory.values);
      this->clear(memory.grad_keys, task.num_keys());
      this->clear(memory.grad_values, task.num_keys());
      this->for_each_queries(task,
                             [&](std::int64_t first, std::int64_t count) { go_back(task, first, count, memory); });
      hand_over(index, memory);
    });
  }

 private:
  struct KeySums {
    std::vector<float> keys, values;
  };

  void go_back(const Task& task, std::int64_t first_query, std::int64_t num_queries, BackwardMemory& memory) const {
    const std::int64_t num_rows = num_queries * this->M_;
    this->load_queries(task, first_query, num_queries, this->q_, this->scale_, memory.queries);
    this->transpose_queries(num_rows, memory.queries, memory.queries_dR);
    this->load_queries(task, first_query, num_queries, grad_out_, 1, memory.grad_out);
    this->transpose_queries(num_rows, memory.grad_out, memory.grad_out_dR);
    this->clear(memory.grad_queries, num_rows);
    std::copy_n(log_sum_exp_ + this->statistics_place(task, first_query), num_rows, memory.log_sum_exp_R);
    for (std::int64_t i = 0; i < num_queries; ++i) {
      const std::int64_t token = task.segment_begin + first_query + i, head = task.kv_head * this->M_;
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

  // A group's only task writes its sums; of several the last one adds them up, in their order.
  void hand_over(std::size_t index, const BackwardMemory& memory) {
    const Task& task = this->plan_.tasks[index];
    const auto group_index = static_cast<std::size_t>(task.group);
    const Group& group = this->plan_.groups[group_index];
    if (group.num_tasks > 1) {
      const std::int64_t size = task.num_keys() * this->D_;
      partial_sums_[index] = {{memory.grad_keys.data, memory.grad_keys.data + size},
                              {memory.grad_values.data, memory.grad_values.data + size}};
      if (--num_left_[group_index] > 0) return;
      add_up(group, grad_k_, &KeySums::keys);
      add_up(group, grad_v_, &KeySums::values);
      for (std::size_t i = 0; i < group.num_tasks; ++i) partial_sums_[group.first_task + i] = {};
      return;
    }
    store_keys(group, grad_k_, memory.grad_keys.data);
    store_keys(group, grad_v_, memory.grad_values.data);
  }

  void add_up(const Group& group, const Heads<T>& target, std::vector<float> KeySums::*part) const {
    std::vector<float> sums(static_cast<std::size_t>(group.segment_size * this->D_));
    for (std::size_t i = group.first_task; i < group.first_task + group.num_tasks; ++i) {
      const std::vector<float>& added = partial_sums_[i].*part;
      float* to = sums.data() + this->plan_.tasks[i].first_key * this->D_;
      for (std::size_t j = 0; j < added.size(); ++j) to[j] += added[j];
    }
    store_keys(group, target, sums.data());
  }

  void store_keys(const Group& group, const Heads<T>& target, float* from) const {
    kernels<T>().floats_to_rows({.N = group.segment_size,
                                 .d = this->d_,
                                 .row_stride = target.token_stride,
                                 .rows_Nd = target.at(group.segment_begin, group.kv_head),
                                 .floats_Nd = from,
                                 .floats_stride = this->D_});
  }

  Heads<T> out_, grad_out_, grad_q_, grad_k_, grad_v_;
  const float* log_sum_exp_;
  std::vector<KeySums> partial_sums_;  // of the tasks of groups with several
  std::vector<std::atomic<std::size_t>> num_left_;
};

// Calls f with a float or a Bf16 type tag.
template <class F>
void with_cpu_element(const at::Tensor& tensor, F f) {
  if (tensor.scalar_type() == at::kFloat) return f(Element<float>{});
  require(tensor.scalar_type() == at::kBFloat16, "attention on the CPU: found dtype ",
          at::toString(tensor.scalar_type()));
  f(Element<Bf16>{});
}

}  // namespace

SegmentAttentionResult attention_forward_cpu(const SegmentAttention& attention) {
  const at::Tensor& q_THd = attention.q_THd;
  const std::int64_t num_kv_heads = attention.k_THkd.size(1);
  const SegmentAttentionResult result = {
      at::empty(q_THd.sizes(), q_THd.options()),
      at::empty({num_kv_heads, q_THd.size(0), q_THd.size(1) / num_kv_heads}, q_THd.options().dtype(at::kFloat))};
  const Plan plan = plan_of(attention);
  with_cpu_element(q_THd,
                   [&](auto element) { Forward<typename decltype(element)::type>(attention, plan, result).run(); });
  return result;
}

SegmentAttentionGradients attention_backward_cpu(const SegmentAttention& attention,
                                                 const SegmentAttentionResult& result, const at::Tensor& grad_out_THd) {
  const auto empty_as = [](const at::Tensor& x) { return at::empty(x.sizes(), x.options()); };
  const SegmentAttentionGradients gradients = {empty_as(attention.q_THd), empty_as(attention.k_THkd),
                                               empty_as(attention.v_THkd)};
  const Plan plan = plan_of(attention);
  with_cpu_element(attention.q_THd, [&](auto element) {
    Backward<typename decltype(element)::type>(attention, plan, result, grad_out_THd, gradients).run();
  });
  return gradients;
}

}  // namespace dagmoe::ops
