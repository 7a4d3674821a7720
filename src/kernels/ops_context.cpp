#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/dispatch.h"
#include "kernels/ops.h"
#include "kernels/ops_support.h"

// Attention of segments that go on from others, without gradients, and the softmax of logits. n: queries of a block,
// M = H / Hk: query heads that share a key head, C: columns, the positions that a block's last query sees.

// MKL's single-precision product, which LibTorch carries; column-major.
extern "C" void sgemm_(const char* transa, const char* transb, const int* m, const int* n, const int* k,
                       const float* alpha, const float* a, const int* lda, const float* b, const int* ldb,
                       const float* beta, float* c, const int* ldc);

namespace dagmoe {

std::int64_t ContextSegment::context_size() const {
  std::int64_t size = 0;
  for (const ContextSpan& span : context) size += span.count;
  return size;
}

namespace ops {
namespace {

/// A matrix inside a larger one: element (r, c) at data[r * stride + c].
struct Matrix {
  float* data;
  std::int64_t stride;
};

// c_mn = beta c_mn + a_mk b, where b is kn, or nk and transposed.
void multiply(std::int64_t m, std::int64_t n, std::int64_t k, Matrix a_mk, Matrix b, bool b_is_nk, float beta,
              Matrix c_mn) {
  const int rows = static_cast<int>(m), columns = static_cast<int>(n), inner = static_cast<int>(k);
  const int lda = static_cast<int>(a_mk.stride), ldb = static_cast<int>(b.stride), ldc = static_cast<int>(c_mn.stride);
  const float one = 1;
  sgemm_(b_is_nk ? "T" : "N", "N", &columns, &rows, &inner, &one, b.data, &ldb, a_mk.data, &lda, &beta, c_mn.data,
         &ldc);
}

/// Element (t, h, i) at data[t * row + h * d + i].
template <class T>
struct Heads {
  explicit Heads(const at::Tensor& x_THd)
      : data(x_THd.defined() ? static_cast<T*>(x_THd.mutable_data_ptr()) : nullptr),
        row(x_THd.defined() ? x_THd.stride(0) : 0) {}
  T* data;
  std::int64_t row;
};

// Up to here the kernels of few_rows.h beat MKL's products, which copy their operands first.
constexpr std::int64_t kFewRows = 8;

/// One block of queries of one segment and one key head.
struct Task {
  const ContextSegment* segment;
  std::int64_t kv_head, first_query, num_queries;
};

/// Keys or values of one run of positions.
struct Run {
  Matrix rows;
  std::int64_t count;
};

template <class T>
class ContextAttention {
 public:
  ContextAttention(const at::Tensor& q_THd, const at::Tensor& k_THkd, const at::Tensor& v_THkd,
                   const at::Tensor& cached_k_SHkd, const at::Tensor& cached_v_SHkd, const at::Tensor& out_THd,
                   std::int64_t window)
      : d_(q_THd.size(2)),
        num_kv_heads_(k_THkd.size(1)),
        M_(q_THd.size(1) / num_kv_heads_),
        window_(window),
        scale_(static_cast<float>(1 / std::sqrt(static_cast<double>(d_)))),
        q_(q_THd),
        k_(k_THkd),
        v_(v_THkd),
        cached_k_(cached_k_SHkd),
        cached_v_(cached_v_SHkd),
        out_(out_THd) {}

  void run(const std::vector<ContextSegment>& segments) const {
    const std::vector<Task> tasks = tasks_of(segments);
    // Tasks differ in size, so that each thread takes the next one when it is free.
    for_each_task(
        tasks.size(), [] { return Buffers(); }, [&](Buffers& buffers, std::size_t i) { attend(tasks[i], buffers); });
  }

 private:
  struct Buffers {
    std::vector<float> queries, scores, sums, out, keys, values;
  };

  // As many queries as keep the scores of a block in the cache of a core.
  std::vector<Task> tasks_of(const std::vector<ContextSegment>& segments) const {
    constexpr std::int64_t kScores = 96 * 1024, kMinQueries = 16;
    std::vector<Task> tasks;
    for (const ContextSegment& segment : segments) {
      const std::int64_t most_columns = segment.context_size() + segment.count;
      const std::int64_t block = std::max(kMinQueries, kScores / std::max<std::int64_t>(1, M_ * most_columns));
      for (std::int64_t first = 0; first < segment.count; first += block) {
        for (std::int64_t head = 0; head < num_kv_heads_; ++head)
          tasks.push_back({&segment, head, first, std::min(block, segment.count - first)});
      }
    }
    return tasks;
  }

  // The runs of keys (or values) that a task sees, in order: in place when they are floats, else as floats in `buffer`.
  std::vector<Run> runs_of(const Task& task, const Heads<T>& own, const Heads<T>& cached,
                           std::vector<float>& buffer) const {
    std::vector<Run> runs;
    std::int64_t num_columns = 0;
    buffer.clear();
    for_each_run(task, own, cached, [&](T* first, std::int64_t stride, std::int64_t count) {
      if constexpr (std::is_same_v<T, float>) {
        runs.push_back({{first, stride}, count});
      } else {
        buffer.resize(static_cast<std::size_t>((num_columns + count) * d_));
        kernels<T>().rows_to_floats({.N = count,
                                     .d = d_,
                                     .row_stride = stride,
                                     .rows_Nd = first,
                                     .floats_Nd = buffer.data() + num_columns * d_});
      }
      num_columns += count;
    });
    if constexpr (!std::is_same_v<T, float>) runs.push_back({{buffer.data(), d_}, num_columns});
    return runs;
  }

  // Calls f(first row, number of rows) for every run of keys (or values) that a task sees, in order.
  template <class F>
  void for_each_run(const Task& task, const Heads<T>& own, const Heads<T>& cached, F f) const {
    const auto call = [&](const Heads<T>& source, std::int64_t begin, std::int64_t count) {
      f(source.data + begin * source.row + task.kv_head * d_, source.row, count);
    };
    for (const ContextSpan& span : task.segment->context) call(span.is_cached ? cached : own, span.begin, span.count);
    call(own, task.segment->begin, task.first_query + task.num_queries);
  }

  void multiply_few(const Task& task, const Heads<T>& own, const Heads<T>& cached, std::int64_t rows, Matrix queries,
                    Matrix scores, Matrix out, void (*kernel)(const FewRows<T>&)) const {
    std::int64_t column = 0;
    for_each_run(task, own, cached, [&](const T* first, std::int64_t stride, std::int64_t count) {
      kernel({.R = rows,
              .C = count,
              .d = d_,
              .row_stride = stride,
              .rows_Cd = first,
              .queries_Rd = queries.data,
              .scores_RC = scores.data + column,
              .score_stride = scores.stride,
              .out_Rd = out.data});
      column += count;
    });
  }

  void attend(const Task& task, Buffers& buffers) const {
    const std::int64_t n = task.num_queries, rows = n * M_;
    const std::int64_t first_position = task.segment->context_size() + task.first_query, C = first_position + n;
    const std::int64_t first_row = task.segment->begin + task.first_query;
    buffers.queries.resize(static_cast<std::size_t>(rows * d_));
    buffers.out.resize(static_cast<std::size_t>(rows * d_));
    buffers.scores.resize(static_cast<std::size_t>(rows * C));
    buffers.sums.resize(static_cast<std::size_t>(rows));
    kernels<T>().rows_to_floats({.N = n,
                                 .d = M_ * d_,
                                 .row_stride = q_.row,
                                 .rows_Nd = q_.data + first_row * q_.row + task.kv_head * M_ * d_,
                                 .floats_Nd = buffers.queries.data(),
                                 .scale = scale_});
    const Matrix queries = {buffers.queries.data(), d_}, scores = {buffers.scores.data(), C},
                 out = {buffers.out.data(), d_};
    const bool has_few_rows = rows <= kFewRows;
    if (has_few_rows) {
      multiply_few(task, k_, cached_k_, rows, queries, scores, out, kernels<T>().few_row_scores);
    } else {
      std::int64_t column = 0;
      for (const Run& run : runs_of(task, k_, cached_k_, buffers.keys)) {
        multiply(rows, run.count, d_, queries, run.rows, /*b_is_nk=*/true, 0.0F, {scores.data + column, C});
        column += run.count;
      }
    }
    kernels<float>().attention_softmax({.num_queries = n,
                                        .heads_per_query = M_,
                                        .C = C,
                                        .first_position = first_position,
                                        .window = window_,
                                        .scores_NC = scores.data,
                                        .sum_N = buffers.sums.data()});
    if (has_few_rows) {
      std::fill(buffers.out.begin(), buffers.out.end(), 0.0F);
      multiply_few(task, v_, cached_v_, rows, queries, scores, out, kernels<T>().few_row_values);
    } else {
      std::int64_t column = 0;
      for (const Run& run : runs_of(task, v_, cached_v_, buffers.values)) {
        multiply(rows, d_, run.count, {scores.data + column, C}, run.rows, /*b_is_nk=*/false, column == 0 ? 0.0F : 1.0F,
                 out);
        column += run.count;
      }
    }
    for (std::int64_t i = 0; i < n; ++i) {
      kernels<T>().floats_to_rows({.N = M_,
                                   .d = d_,
                                   .row_stride = d_,
                                   .rows_Nd = out_.data + (first_row + i) * out_.row + task.kv_head * M_ * d_,
                                   .floats_Nd = out.data + i * M_ * d_,
                                   .divisor_N = buffers.sums.data() + i * M_});
    }
  }

  std::int64_t d_, num_kv_heads_, M_, window_;
  float scale_;
  Heads<T> q_, k_, v_, cached_k_, cached_v_, out_;
};

bool any_cached(const std::vector<ContextSegment>& segments) {
  return std::any_of(segments.begin(), segments.end(), [](const ContextSegment& segment) {
    return std::any_of(segment.context.begin(), segment.context.end(), [](const auto& span) { return span.is_cached; });
  });
}

void check_context(const at::Tensor& q_THd, const at::Tensor& k_THkd, const at::Tensor& v_THkd,
                   const at::Tensor& cached_k_SHkd, const at::Tensor& cached_v_SHkd,
                   const std::vector<ContextSegment>& segments) {
  require_attention_shapes("context_attention", q_THd, k_THkd, v_THkd);
  const std::int64_t num_rows = q_THd.size(0), num_cached = cached_k_SHkd.defined() ? cached_k_SHkd.size(0) : 0;
  if (any_cached(segments)) {
    require(cached_k_SHkd.defined() && cached_v_SHkd.defined() && cached_k_SHkd.sizes() == cached_v_SHkd.sizes() &&
                cached_k_SHkd.sizes().slice(1) == k_THkd.sizes().slice(1) &&
                cached_k_SHkd.scalar_type() == q_THd.scalar_type(),
            "context_attention: the cache has another shape or type than the keys");
  }
  const auto is_inside = [](std::int64_t begin, std::int64_t count, std::int64_t size) {
    return begin >= 0 && count >= 0 && begin + count <= size;
  };
  for (const ContextSegment& segment : segments) {
    require(is_inside(segment.begin, segment.count, num_rows), "context_attention: a segment ends outside the pass");
    for (const ContextSpan& span : segment.context) {
      require(is_inside(span.begin, span.count, span.is_cached ? num_cached : num_rows),
              "context_attention: a context span ends outside its rows");
    }
  }
}

at::Tensor rows_contiguous(const at::Tensor& x_THd) {
  return x_THd.stride(2) == 1 && x_THd.stride(1) == x_THd.size(2) ? x_THd : x_THd.contiguous();
}

template <class T>
at::Tensor attend(const at::Tensor& q_THd, const at::Tensor& k_THkd, const at::Tensor& v_THkd,
                  const at::Tensor& cached_k_SHkd, const at::Tensor& cached_v_SHkd,
                  const std::vector<ContextSegment>& segments, std::int64_t window) {
  std::int64_t num_covered = 0;
  for (const ContextSegment& segment : segments) num_covered += segment.count;
  const at::Tensor out_THd = num_covered < q_THd.size(0) ? at::zeros(q_THd.sizes(), q_THd.options())
                                                         : at::empty(q_THd.sizes(), q_THd.options());
  const at::Tensor q = rows_contiguous(q_THd), k = rows_contiguous(k_THkd), v = rows_contiguous(v_THkd);
  ContextAttention<T>(q, k, v, cached_k_SHkd, cached_v_SHkd, out_THd, window).run(segments);
  return out_THd;
}

}  // namespace
}  // namespace ops

at::Tensor context_attention(const at::Tensor& q_THd, const at::Tensor& k_THkd, const at::Tensor& v_THkd,
                             const at::Tensor& cached_k_SHkd, const at::Tensor& cached_v_SHkd,
                             const std::vector<ContextSegment>& segments, std::int64_t window) {
  const at::NoGradGuard no_grad;
  ops::check_context(q_THd, k_THkd, v_THkd, cached_k_SHkd, cached_v_SHkd, segments);
  if (q_THd.is_cpu() && q_THd.scalar_type() == at::kFloat)
    return ops::attend<float>(q_THd, k_THkd, v_THkd, cached_k_SHkd, cached_v_SHkd, segments, window);
  if (q_THd.is_cpu() && q_THd.scalar_type() == at::kBFloat16)
    return ops::attend<Bf16>(q_THd, k_THkd, v_THkd, cached_k_SHkd, cached_v_SHkd, segments, window);
  return context_attention_reference(q_THd, k_THkd, v_THkd, cached_k_SHkd, cached_v_SHkd, segments, window);
}

at::Tensor context_attention_reference(const at::Tensor& q_THd, const at::Tensor& k_THkd, const at::Tensor& v_THkd,
                                       const at::Tensor& cached_k_SHkd, const at::Tensor& cached_v_SHkd,
                                       const std::vector<ContextSegment>& segments, std::int64_t window) {
  const at::NoGradGuard no_grad;
  ops::check_context(q_THd, k_THkd, v_THkd, cached_k_SHkd, cached_v_SHkd, segments);
  const std::int64_t group = q_THd.size(1) / k_THkd.size(1);
  const auto dtype = ops::accumulate_dtype(q_THd.scalar_type());
  at::Tensor out_THd = at::zeros(q_THd.sizes(), q_THd.options());
  for (const ContextSegment& segment : segments) {
    if (segment.count == 0) continue;
    std::vector<at::Tensor> keys, values;
    for (const ContextSpan& span : segment.context) {
      keys.push_back((span.is_cached ? cached_k_SHkd : k_THkd).narrow(0, span.begin, span.count));
      values.push_back((span.is_cached ? cached_v_SHkd : v_THkd).narrow(0, span.begin, span.count));
    }
    keys.push_back(k_THkd.narrow(0, segment.begin, segment.count));
    values.push_back(v_THkd.narrow(0, segment.begin, segment.count));
    const auto heads_first = [&](const std::vector<at::Tensor>& parts) {
      return at::cat(parts).to(dtype).repeat_interleave(group, 1).transpose(0, 1);
    };
    const at::Tensor q_Hnd = q_THd.narrow(0, segment.begin, segment.count).to(dtype).transpose(0, 1);
    const at::Tensor k_HCd = heads_first(keys), v_HCd = heads_first(values);
    const std::int64_t past = segment.context_size();
    at::Tensor seen_nC = at::ones({segment.count, past + segment.count}, q_THd.options().dtype(at::kBool)).tril(past);
    if (window > 0) seen_nC = seen_nC.triu(past - window + 1);
    const double scale = 1 / std::sqrt(static_cast<double>(q_THd.size(2)));
    const at::Tensor scores_HnC = (at::matmul(q_Hnd, k_HCd.transpose(1, 2)) * scale)
                                      .masked_fill(seen_nC.logical_not(), -std::numeric_limits<double>::infinity());
    const at::Tensor out_nHd = at::matmul(at::softmax(scores_HnC, -1), v_HCd).transpose(0, 1);
    out_THd.narrow(0, segment.begin, segment.count).copy_(out_nHd);
  }
  return out_THd;
}

RowSummary summarize_logits(const at::Tensor& logits_NV) {
  ops::require(logits_NV.dim() == 2, "summarize_logits: found shape ", shape_text(logits_NV.sizes()));
  const at::Tensor logits = logits_NV.to(at::kCPU).contiguous();
  const std::int64_t N = logits.size(0), V = logits.size(1);
  RowSummary summary;
  summary.log_sum_exp.resize(static_cast<std::size_t>(N));
  summary.argmax.resize(static_cast<std::size_t>(N));
  ops::with_element(logits.scalar_type(), [&](auto element) {
    using T = typename decltype(element)::type;
    ops::parallel_rows(N, V, [&](std::int64_t begin, std::int64_t end) {
      kernels<T>().log_sum_exp({.N = end - begin,
                                .V = V,
                                .logits_NV = ops::input<T>(logits) + begin * V,
                                .log_sum_exp_N = summary.log_sum_exp.data() + begin,
                                .argmax_N = summary.argmax.data() + begin});
    });
  });
  return summary;
}

}  // namespace dagmoe
