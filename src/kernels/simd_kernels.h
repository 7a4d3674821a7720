#pragma once

#include <cstdint>

#include "kernels/reference.h"
#include "kernels/simd_tables.h"

// Every kernel once, over the type Vec of the file that includes this: kernels_avx2.cpp or kernels_avx512.cpp, right
// after its vec_*.h. All of it has internal linkage and no standard header with code is included: the linker keeps one
// copy of an inline function, and if that were the one compiled here, unrelated code would die on an older processor. A
// test reads the symbols.

namespace dagmoe {
namespace {

/// A number known when compiling.
template <int kValue>
struct Count {
  static constexpr int value = kValue;
};

/// Stands where a Mask stands when all lanes are touched.
struct AllLanes {};
template <class T>
Vec load(const T* from, AllLanes) {
  return load(from);
}
template <class T>
void store(T* to, Vec a, AllLanes) {
  store(to, a);
}
Vec keep(Vec a, AllLanes, Vec) { return a; }

/// Calls body(first, lanes) for blocks of Vec::kLanes elements and a masked rest.
template <class Body>
void for_each_block(std::int64_t size, Body body) {
  std::int64_t i = 0;
  for (; i + Vec::kLanes <= size; i += Vec::kLanes) body(i, AllLanes{});
  if (i < size) body(i, first_lanes(size - i));
}

/// The sum of term(first, lanes) over all blocks; term is 0 in lanes outside the mask. Four sums hide the latency of
/// addition.
template <class Term>
float sum_blocks(std::int64_t size, Term term) {
  Vec sums[4] = {set(0), set(0), set(0), set(0)};
  std::int64_t i = 0;
  for (; i + 4 * Vec::kLanes <= size; i += 4 * Vec::kLanes) {
    for (std::int64_t j = 0; j < 4; ++j) sums[j] = sums[j] + term(i + j * Vec::kLanes, AllLanes{});
  }
  for (; i + Vec::kLanes <= size; i += Vec::kLanes) sums[0] = sums[0] + term(i, AllLanes{});
  if (i < size) sums[1] = sums[1] + term(i, first_lanes(size - i));
  return sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

/// e^x within about one unit in the last place: x = n ln 2 + r, |r| <= ln 2 / 2, with the polynomial of Cephes' expf
/// for e^r.
Vec exp(Vec x) {
  // Beyond these the result is 0 or infinity. NaN is the second operand, so it passes.
  const Vec bounded = min(set(89.0F), max(set(-104.0F), x));
  const Vec n = round_to_integer(bounded * set(1.44269504F));
  // ln 2 in two parts; the first has so few bits that its product with n is exact.
  const Vec r = multiply_add(n, set(2.12194440e-4F), multiply_add(n, set(-0.693359375F), bounded));
  Vec p = set(1.9875691500e-4F);
  p = multiply_add(p, r, set(1.3981999507e-3F));
  p = multiply_add(p, r, set(8.3334519073e-3F));
  p = multiply_add(p, r, set(4.1665795894e-2F));
  p = multiply_add(p, r, set(1.6666665459e-1F));
  p = multiply_add(p, r, set(5.0000001201e-1F));
  return scale_by_power_of_two(multiply_add(p, r * r, r + set(1)), n);
}

Vec sigmoid(Vec x) { return set(1) / (set(1) + exp(set(0) - x)); }

/// The derivative of SiLU at x, given q = sigmoid(x).
Vec silu_slope(Vec x, Vec q) { return q * multiply_add(x, set(1) - q, set(1)); }

template <class T>
void rms_norm_forward(const RmsNormForward<T>& args) {
  for (std::int64_t n = 0; n < args.N; ++n) {
    const T* x_D = args.x_ND + n * args.D;
    T* y_D = args.y_ND + n * args.D;
    const float sum_of_squares = sum_blocks(args.D, [x_D](std::int64_t i, auto lanes) {
      const Vec x = load(x_D + i, lanes);
      return x * x;
    });
    const double mean_square = static_cast<double>(sum_of_squares) / static_cast<double>(args.D);
    const __m128d root = _mm_sqrt_sd(_mm_setzero_pd(), _mm_set_sd(mean_square + args.eps));
    const float rstd = static_cast<float>(1 / _mm_cvtsd_f64(root));
    args.rstd_N[n] = rstd;
    for_each_block(args.D, [&](std::int64_t i, auto lanes) {
      store(y_D + i, load(x_D + i, lanes) * set(rstd) * load(args.weight_D + i, lanes), lanes);
    });
  }
}

template <class T>
void rms_norm_backward(const RmsNormBackward<T>& args) {
  for (std::int64_t n = 0; n < args.N; ++n) {
    const T* x_D = args.x_ND + n * args.D;
    const T* dy_D = args.grad_y_ND + n * args.D;
    const Vec rstd = set(args.rstd_N[n]);
    if (args.grad_x_ND != nullptr) {
      T* dx_D = args.grad_x_ND + n * args.D;
      const float dot = sum_blocks(args.D, [&](std::int64_t i, auto lanes) {
        return load(args.weight_D + i, lanes) * load(dy_D + i, lanes) * (load(x_D + i, lanes) * rstd);
      });
      const Vec mean = set(dot / static_cast<float>(args.D));
      for_each_block(args.D, [&](std::int64_t i, auto lanes) {
        const Vec normed = load(x_D + i, lanes) * rstd;
        store(dx_D + i, rstd * (load(args.weight_D + i, lanes) * load(dy_D + i, lanes) - normed * mean), lanes);
      });
    }
    if (args.grad_weight_D != nullptr) {
      for_each_block(args.D, [&](std::int64_t i, auto lanes) {
        const Vec normed = load(x_D + i, lanes) * rstd;
        float* sum_D = args.grad_weight_D + i;
        store(sum_D, multiply_add(load(dy_D + i, lanes), normed, load(sum_D, lanes)), lanes);
      });
    }
  }
}

template <class T>
void rope(const Rope<T>& args) {
  const std::int64_t half = args.d / 2;
  const Vec sign = set(static_cast<float>(args.sign));
  for (std::int64_t n = 0; n < args.N; ++n) {
    const float* cos_d2 = args.cos_Nd2 + n * half;
    const float* sin_d2 = args.sin_Nd2 + n * half;
    for (std::int64_t head = 0; head < args.H; ++head) {
      const T* x_d = args.x_NHd + n * args.x_stride + head * args.d;
      T* y_d = args.y_NHd + n * args.y_stride + head * args.d;
      for_each_block(half, [&](std::int64_t i, auto lanes) {
        const Vec first = load(x_d + i, lanes), second = load(x_d + half + i, lanes);
        const Vec cosine = load(cos_d2 + i, lanes), sine = sign * load(sin_d2 + i, lanes);
        store(y_d + i, first * cosine - second * sine, lanes);
        store(y_d + half + i, second * cosine + first * sine, lanes);
      });
    }
  }
}

template <class T>
void swiglu_forward(const SwiGluForward<T>& args) {
  for_each_block(args.N, [&](std::int64_t i, auto lanes) {
    const Vec gate = load(args.gate_N + i, lanes);
    store(args.y_N + i, gate * sigmoid(gate) * load(args.up_N + i, lanes), lanes);
  });
}

template <class T>
void swiglu_backward(const SwiGluBackward<T>& args) {
  for_each_block(args.N, [&](std::int64_t i, auto lanes) {
    const Vec gate = load(args.gate_N + i, lanes), up = load(args.up_N + i, lanes), dy = load(args.grad_y_N + i, lanes);
    const Vec q = sigmoid(gate);
    store(args.grad_up_N + i, dy * (gate * q), lanes);
    store(args.grad_gate_N + i, dy * up * silu_slope(gate, q), lanes);
  });
}

/// One slice of G of one token: the K nodes stay in the first-level cache while all pairs are formed.
template <class T>
void dag_pairs_forward(const DagPairsForward<T>& args) {
  const std::int64_t K = args.K, G = args.G;
  for (std::int64_t n = 0; n < args.N; ++n) {
    const T* abce_K4G = args.abce_NK4G + n * K * 4 * G;
    T* s_KG = args.s_NKG + n * K * G;
    for_each_block(G, [&](std::int64_t g, auto lanes) {
      for (std::int64_t i = 0; i < K; ++i) {
        const T* target = abce_K4G + i * 4 * G + g;
        const Vec a = load(target, lanes), c = load(target + 2 * G, lanes);
        Vec total = set(0);
        for (std::int64_t j = 0; j < K; ++j) {
          const T* source = abce_K4G + j * 4 * G + g;
          const Vec t = a + load(source + G, lanes);
          total = multiply_add(t * sigmoid(t), c + load(source + 3 * G, lanes), total);
        }
        store(s_KG + i * G + g, total, lanes);
      }
    });
  }
}

/// More chosen experts than any model has; the reference takes over beyond.
constexpr std::int64_t kMaxNodes = 32;

template <class T>
void dag_pairs_backward(const DagPairsBackward<T>& args) {
  const std::int64_t K = args.K, G = args.G;
  if (K > kMaxNodes) {
    reference::dag_pairs_backward(args);
    return;
  }
  for (std::int64_t n = 0; n < args.N; ++n) {
    const T* abce_K4G = args.abce_NK4G + n * K * 4 * G;
    const T* grad_s_KG = args.grad_s_NKG + n * K * G;
    T* grad_abce_K4G = args.grad_abce_NK4G + n * K * 4 * G;
    for_each_block(G, [&](std::int64_t g, auto lanes) {
      Vec grad_b_K[kMaxNodes], grad_e_K[kMaxNodes];
      for (std::int64_t j = 0; j < K; ++j) grad_b_K[j] = grad_e_K[j] = set(0);
      for (std::int64_t i = 0; i < K; ++i) {
        const T* target = abce_K4G + i * 4 * G + g;
        const Vec a = load(target, lanes), c = load(target + 2 * G, lanes), grad_s = load(grad_s_KG + i * G + g, lanes);
        Vec grad_a = set(0), grad_c = set(0);
        for (std::int64_t j = 0; j < K; ++j) {
          const T* source = abce_K4G + j * 4 * G + g;
          const Vec t = a + load(source + G, lanes), v = c + load(source + 3 * G, lanes);
          const Vec q = sigmoid(t);
          const Vec grad_t = grad_s * silu_slope(t, q) * v, grad_v = grad_s * (t * q);
          grad_a = grad_a + grad_t;
          grad_c = grad_c + grad_v;
          grad_b_K[j] = grad_b_K[j] + grad_t;
          grad_e_K[j] = grad_e_K[j] + grad_v;
        }
        store(grad_abce_K4G + (i * 4 + 0) * G + g, grad_a, lanes);
        store(grad_abce_K4G + (i * 4 + 2) * G + g, grad_c, lanes);
      }
      for (std::int64_t j = 0; j < K; ++j) {
        store(grad_abce_K4G + (j * 4 + 1) * G + g, grad_b_K[j], lanes);
        store(grad_abce_K4G + (j * 4 + 3) * G + g, grad_e_K[j], lanes);
      }
    });
  }
}

/// A block of `values`, or zeros where there are none.
template <class T, class Lanes>
Vec load_or_zero(const T* values, std::int64_t index, Lanes lanes) {
  return values == nullptr ? set(0) : load(values + index, lanes);
}

template <class T>
void dag_nodes_forward(const DagNodesForward<T>& args) {
  const std::int64_t K = args.K, D = args.D;
  const Vec share = set(1 / static_cast<float>(K));
  for (std::int64_t n = 0; n < args.N; ++n) {
    const T* expert_KD = args.expert_NKD + n * K * D;
    for_each_block(D, [&](std::int64_t i, auto lanes) {
      const Vec residual = load_or_zero(args.residual_ND, n * D + i, lanes) * share;
      Vec total = set(0);
      for (std::int64_t k = 0; k < K; ++k) {
        const Vec weight = set(args.weight_NK == nullptr ? 1 : args.weight_NK[n * K + k]);
        const Vec expert = load(expert_KD + k * D + i, lanes);
        // Written as one operation, lest the compiler's choice depends on what else is computed.
        total = multiply_add(weight, expert, total);
        if (args.nodes_NKD != nullptr)
          store(args.nodes_NKD + (n * K + k) * D + i, multiply_add(weight, expert, residual), lanes);
      }
      if (args.out_ND == nullptr) return;
      const Vec around = load_or_zero(args.outer_ND, n * D + i, lanes) + load_or_zero(args.extra_ND, n * D + i, lanes);
      store(args.out_ND + n * D + i, around + total, lanes);
    });
  }
}

template <class T>
void dag_nodes_backward(const DagNodesBackward<T>& args) {
  const std::int64_t K = args.K, D = args.D;
  const Vec share = set(1 / static_cast<float>(K));
  for (std::int64_t n = 0; n < args.N; ++n) {
    const T* grad_out_D = args.grad_out_ND + n * D;
    for (std::int64_t k = 0; k < K; ++k) {
      const std::int64_t row = (n * K + k) * D;
      const Vec weight = set(args.weight_NK[n * K + k]);
      const float dot = sum_blocks(D, [&](std::int64_t i, auto lanes) {
        const Vec grad = load(grad_out_D + i, lanes) + load_or_zero(args.grad_nodes_NKD, row + i, lanes);
        if (args.grad_expert_NKD != nullptr) store(args.grad_expert_NKD + row + i, weight * grad, lanes);
        return grad * load(args.expert_NKD + row + i, lanes);
      });
      if (args.grad_weight_NK != nullptr) args.grad_weight_NK[n * K + k] = dot;
    }
    if (args.grad_residual_ND == nullptr) continue;
    for_each_block(D, [&](std::int64_t i, auto lanes) {
      Vec total = set(0);
      for (std::int64_t k = 0; k < K; ++k)
        total = total + load_or_zero(args.grad_nodes_NKD, (n * K + k) * D + i, lanes);
      store(args.grad_residual_ND + n * D + i, multiply_add(total, share, load(grad_out_D + i, lanes)), lanes);
    });
  }
}

template <class T>
void layer_norm_statistics(const LayerNormForward<T>& args, std::int64_t n) {
  const auto width = static_cast<double>(args.D);
  const T* x_D = args.x_ND + n * args.D;
  float mean = 0;
  if (args.subtract_mean) {
    const float total = sum_blocks(args.D, [x_D](std::int64_t i, auto lanes) { return load(x_D + i, lanes); });
    mean = static_cast<float>(static_cast<double>(total) / width);
  }
  const float sum_of_squares = sum_blocks(args.D, [x_D, mean](std::int64_t i, auto lanes) {
    const Vec distance = keep(load(x_D + i, lanes) - set(mean), lanes, set(0));
    return distance * distance;
  });
  const double variance = static_cast<double>(sum_of_squares) / width;
  const __m128d root = _mm_sqrt_sd(_mm_setzero_pd(), _mm_set_sd(variance + args.eps));
  // Squares beyond float would make rows of zeros: a run that diverges has to show.
  const bool overflows = variance > static_cast<double>(__FLT_MAX__);
  args.mean_N[n] = mean;
  args.rstd_N[n] = overflows ? __builtin_nanf("") : static_cast<float>(1 / _mm_cvtsd_f64(root));
}

template <class T>
void layer_norm_forward(const LayerNormForward<T>& args) {
  for (std::int64_t n = 0; n < args.N; ++n) {
    if (!args.has_statistics) layer_norm_statistics(args, n);
    const T* x_D = args.x_ND + n * args.D;
    T* y_D = args.y_ND + n * args.D;
    const float mean = args.mean_N[n], rstd = args.rstd_N[n];
    for_each_block(args.D, [&](std::int64_t i, auto lanes) {
      store(y_D + i, (load(x_D + i, lanes) - set(mean)) * set(rstd) * load(args.weight_D + i, lanes), lanes);
    });
  }
}

template <class T>
void layer_norm_backward(const LayerNormBackward<T>& args) {
  for (std::int64_t n = 0; n < args.N; ++n) {
    const std::int64_t row = n * args.D;
    const T* x_D = args.x_ND + row;
    const T* dy_D = args.grad_y_ND + row;
    const Vec mean = set(args.mean_N[n]), rstd = set(args.rstd_N[n]);
    const auto normed = [&](std::int64_t i, auto lanes) { return (load(x_D + i, lanes) - mean) * rstd; };
    const auto weighted = [&](std::int64_t i, auto lanes) {
      return load(args.weight_D + i, lanes) * load(dy_D + i, lanes);
    };
    if (args.grad_x_ND != nullptr) {
      const float total = args.subtract_mean ? sum_blocks(args.D, weighted) : 0;
      // Masked loads give zeros, so that weighted is zero in lanes outside the mask.
      const float dot =
          sum_blocks(args.D, [&](std::int64_t i, auto lanes) { return weighted(i, lanes) * normed(i, lanes); });
      const Vec mean_grad = set(total / static_cast<float>(args.D)), mean_dot = set(dot / static_cast<float>(args.D));
      for_each_block(args.D, [&](std::int64_t i, auto lanes) {
        const Vec own = rstd * (weighted(i, lanes) - mean_grad - normed(i, lanes) * mean_dot);
        store(args.grad_x_ND + row + i, load_or_zero(args.grad_before_ND, row + i, lanes) + own, lanes);
      });
    }
    if (args.grad_weight_D != nullptr) {
      for_each_block(args.D, [&](std::int64_t i, auto lanes) {
        float* sum_D = args.grad_weight_D + i;
        store(sum_D, multiply_add(load(dy_D + i, lanes), normed(i, lanes), load(sum_D, lanes)), lanes);
      });
    }
  }
}

template <class T>
void cross_entropy(const CrossEntropy<T>& args) {
  const float lowest = -__builtin_inff();
  for (std::int64_t n = 0; n < args.N; ++n) {
    T* logits_V = args.logits_NV + n * args.V;
    Vec most = set(lowest);
    for_each_block(args.V, [&](std::int64_t v, auto lanes) {
      most = max(most, keep(load(logits_V + v, lanes), lanes, set(lowest)));
    });
    const float top = largest(most);
    const float total = sum_blocks(args.V, [&](std::int64_t v, auto lanes) {
      return keep(exp(load(logits_V + v, lanes) - set(top)), lanes, set(0));
    });
    T* target = logits_V + args.target_N[n];
    const Vec target_logit = load(target, first_lanes(1));
    args.loss_N[n] = static_cast<double>(top) + __builtin_log(total) - static_cast<double>(sum(target_logit));
    if (args.uniform_N != nullptr) {
      const float below_top = sum_blocks(args.V, [&](std::int64_t v, auto lanes) {
        return keep(load(logits_V + v, lanes) - set(top), lanes, set(0));
      });
      args.uniform_N[n] = __builtin_log(total) - static_cast<double>(below_top) / static_cast<double>(args.V);
    }
    if (args.keep_logits) continue;
    const Vec scale = set(static_cast<float>(args.scale)), factor = set(1 / total);
    // What the target distribution gives every class, and what it gives the label.
    const Vec shared = set(static_cast<float>(args.label_smoothing / static_cast<double>(args.V)));
    const Vec own = shared + set(static_cast<float>(1 - args.label_smoothing));
    for_each_block(args.V, [&](std::int64_t v, auto lanes) {
      store(logits_V + v, (exp(load(logits_V + v, lanes) - set(top)) * factor - shared) * scale, lanes);
    });
    store(target, (exp(target_logit - set(top)) * factor - own) * scale, first_lanes(1));
  }
}

/// The sum of e^(logit - top), in double from one stretch of classes to the next: a float that has grown to a whole
/// vocabulary's sum drops what the many unlikely classes add, always in the same direction.
template <class T>
double sum_of_exp(const T* logits_V, std::int64_t V, float top) {
  constexpr std::int64_t kStretch = 1024;
  double total = 0;
  for (std::int64_t begin = 0; begin < V; begin += kStretch) {
    const T* logits = logits_V + begin;
    total += sum_blocks(begin + kStretch < V ? kStretch : V - begin, [&](std::int64_t v, auto lanes) {
      return keep(exp(load(logits + v, lanes) - set(top)), lanes, set(0));
    });
  }
  return total;
}

template <class T>
void log_sum_exp(const LogSumExp<T>& args) {
  for (std::int64_t n = 0; n < args.N; ++n) {
    const T* logits_V = args.logits_NV + n * args.V;
    Vec most = set(-__FLT_MAX__);
    for_each_block(args.V,
                   [&](std::int64_t v, auto lanes) { most = max(most, keep(load(logits_V + v, lanes), lanes, most)); });
    const float top = largest(most);
    args.log_sum_exp_N[n] = static_cast<double>(top) + __builtin_log(sum_of_exp(logits_V, args.V, top));
    std::int64_t best = 0;
    while (best + 1 < args.V && !(sum(load(logits_V + best, first_lanes(1))) >= top)) ++best;
    args.argmax_N[n] = best;
  }
}

void attention_softmax(const AttentionSoftmax& args) {
  for (std::int64_t row = 0; row < args.num_queries * args.heads_per_query; ++row) {
    float* scores_C = args.scores_NC + row * args.C;
    const SeenColumns seen = seen_columns(args, row / args.heads_per_query);
    for_each_block(seen.first, [&](std::int64_t c, auto lanes) { store(scores_C + c, set(0), lanes); });
    float* seen_C = scores_C + seen.first;
    const std::int64_t num_seen = seen.end - seen.first;
    Vec most = set(-__FLT_MAX__);
    for_each_block(num_seen,
                   [&](std::int64_t c, auto lanes) { most = max(most, keep(load(seen_C + c, lanes), lanes, most)); });
    const Vec top = set(largest(most));
    args.sum_N[row] = sum_blocks(num_seen, [&](std::int64_t c, auto lanes) {
      const Vec weight = exp(load(seen_C + c, lanes) - top);
      store(seen_C + c, weight, lanes);
      return keep(weight, lanes, set(0));
    });
    for_each_block(args.C - seen.end,
                   [&](std::int64_t c, auto lanes) { store(scores_C + seen.end + c, set(0), lanes); });
  }
}

// Rows of a product that are worked on together: their sums stay in registers.
constexpr std::int64_t kRowsTogether = 4;

template <int kRows, class T>
void some_row_scores(const FewRows<T>& args, std::int64_t first_row) {
  const float* queries = args.queries_Rd + first_row * args.d;
  float* scores = args.scores_RC + first_row * args.score_stride;
  for (std::int64_t c = 0; c < args.C; ++c) {
    const T* row_d = args.rows_Cd + c * args.row_stride;
    Vec sums[kRows];
    for (int r = 0; r < kRows; ++r) sums[r] = set(0);
    for_each_block(args.d, [&](std::int64_t i, auto lanes) {
      const Vec key = load(row_d + i, lanes);
      for (int r = 0; r < kRows; ++r) sums[r] = multiply_add(key, load(queries + r * args.d + i, lanes), sums[r]);
    });
    for (int r = 0; r < kRows; ++r) scores[r * args.score_stride + c] = sum(sums[r]);
  }
}

template <int kRows, class T>
void some_row_values(const FewRows<T>& args, std::int64_t first_row) {
  const float* weights = args.scores_RC + first_row * args.score_stride;
  float* out = args.out_Rd + first_row * args.d;
  const auto add = [&](std::int64_t i, auto count, auto lanes) {
    constexpr int kBlocks = decltype(count)::value;
    Vec sums[kRows][kBlocks];
    for (int r = 0; r < kRows; ++r) {
      for (int b = 0; b < kBlocks; ++b) sums[r][b] = load(out + r * args.d + i + b * Vec::kLanes, lanes);
    }
    for (std::int64_t c = 0; c < args.C; ++c) {
      Vec values[kBlocks];
      for (int b = 0; b < kBlocks; ++b)
        values[b] = load(args.rows_Cd + c * args.row_stride + i + b * Vec::kLanes, lanes);
      for (int r = 0; r < kRows; ++r) {
        const Vec weight = set(weights[r * args.score_stride + c]);
        for (int b = 0; b < kBlocks; ++b) sums[r][b] = multiply_add(weight, values[b], sums[r][b]);
      }
    }
    for (int r = 0; r < kRows; ++r) {
      for (int b = 0; b < kBlocks; ++b) store(out + r * args.d + i + b * Vec::kLanes, sums[r][b], lanes);
    }
  };
  constexpr std::int64_t kPair = 2 * Vec::kLanes;
  std::int64_t i = 0;
  for (; i + kPair <= args.d; i += kPair) add(i, Count<2>{}, AllLanes{});
  for_each_block(args.d - i, [&](std::int64_t rest, auto lanes) { add(i + rest, Count<1>{}, lanes); });
}

/// Calls f(Count<n>, first) for rows [first, first + n) until all are done.
template <class F>
void for_each_rows(std::int64_t num_rows, F f) {
  std::int64_t first = 0;
  for (; first + kRowsTogether <= num_rows; first += kRowsTogether) f(Count<kRowsTogether>{}, first);
  switch (num_rows - first) {
    case 3:
      return f(Count<3>{}, first);
    case 2:
      return f(Count<2>{}, first);
    case 1:
      return f(Count<1>{}, first);
    default:
      return;
  }
}

template <class T>
void few_row_scores(const FewRows<T>& args) {
  for_each_rows(args.R, [&](auto count, std::int64_t first) { some_row_scores<decltype(count)::value>(args, first); });
}

template <class T>
void few_row_values(const FewRows<T>& args) {
  for_each_rows(args.R, [&](auto count, std::int64_t first) { some_row_values<decltype(count)::value>(args, first); });
}

template <class T>
void rows_to_floats(const FloatRows<T>& args) {
  for (std::int64_t n = 0; n < args.N; ++n) {
    const T* row_d = args.rows_Nd + n * args.row_stride;
    float* floats_d = args.floats_Nd + n * float_stride(args);
    for_each_block(args.d, [&](std::int64_t i, auto lanes) {
      store(floats_d + i, load(row_d + i, lanes) * set(args.scale), lanes);
    });
  }
}

template <class T>
void floats_to_rows(const FloatRows<T>& args) {
  for (std::int64_t n = 0; n < args.N; ++n) {
    T* row_d = args.rows_Nd + n * args.row_stride;
    const float* floats_d = args.floats_Nd + n * float_stride(args);
    const Vec factor = set(args.divisor_N == nullptr ? args.scale : args.scale / args.divisor_N[n]);
    for_each_block(args.d,
                   [&](std::int64_t i, auto lanes) { store(row_d + i, load(floats_d + i, lanes) * factor, lanes); });
  }
}

// The dynamic map of adamw_8bit.h as arithmetic. The levels of decade d = 0 ... 6 are the middles of n equal parts of
// 10^(d-7) ... 10^(d-6), so a value's level is the part it falls into. k numbers the levels of one sign from zero: 0 is
// zero, decade d begins at k = n (with sign, n = 2^d) or n - 1 (without, n = 2^(d+1)), and 1 comes last.
constexpr int kDecades = 7;
struct DynamicTables {
  // By decade; the eighth entry makes 1 of the last k.
  float spread[8], least[8];           // level = least + spread * fraction of the decade, both for dequantizing
  float scale[8], offset[8], last[8];  // k = min(round(scale * x + offset), last)
  float bounds[kDecades - 1];          // half-way between the last level of decade d and the first of d + 1
  float least_above_zero, least_one;
};
constexpr DynamicTables dynamic_tables(bool is_signed) {
  DynamicTables tables{};
  double power = 1e-6, last_level = 0;
  for (int d = 0; d < kDecades; ++d) {
    const double n = 1 << (is_signed ? d : d + 1);
    const double first_k = is_signed ? n : n - 1, first_level = power * (0.1 + 0.45 / n);
    tables.spread[d] = static_cast<float>(0.9 * power);
    tables.least[d] = static_cast<float>(first_level);
    tables.scale[d] = static_cast<float>(n / (0.9 * power));
    tables.offset[d] = static_cast<float>(first_k - n / 9 - 0.5);
    tables.last[d] = static_cast<float>(first_k + n - 1);
    const double bound = (last_level + first_level) / 2;
    (d == 0 ? tables.least_above_zero : tables.bounds[d - 1]) = static_cast<float>(bound);
    last_level = power * (1 - 0.45 / n);
    power *= 10;
  }
  tables.least[kDecades] = 1;
  tables.least_one = static_cast<float>((last_level + 1) / 2);
  return tables;
}
constexpr DynamicTables kSignedTables = dynamic_tables(true), kUnsignedTables = dynamic_tables(false);

/// The level with number k. `shift` is 0 with sign and 1 without: k + shift = n * (1 + fraction of the decade).
Vec dynamic_level(const DynamicTables& tables, Vec k, float shift) {
  const Vec j = k + set(shift);
  const Vec decade = binary_exponent(j) - set(shift), fraction = binary_fraction(j) - set(1);
  const Vec level = multiply_add(lookup(tables.spread, decade), fraction, lookup(tables.least, decade));
  return level * above(k, set(0.5F));
}

/// The number of the level nearest to x, 0 <= x <= 1.
Vec nearest_level(const DynamicTables& tables, Vec x) {
  Vec decade = set(0);
  for (const float bound : tables.bounds) decade = decade + above(x, set(bound));
  const Vec part = round_to_integer(multiply_add(x, lookup(tables.scale, decade), lookup(tables.offset, decade)));
  const Vec k = min(part, lookup(tables.last, decade));
  return multiply_add(k, above(x, set(tables.least_above_zero)), above(x, set(tables.least_one)));
}

/// 1 / most; 0 for a block that holds nothing but zeros, or less than a float's smallest normal number.
float inverse_scale(float most) { return most >= __FLT_MIN__ ? 1 / most : 0; }

void adamw_8bit(const AdamW8bit& args) {
  constexpr float kZeroCode = 127;  // of m
  float m_block[kBlockSize8bit], v_block[kBlockSize8bit];
  for (std::int64_t begin = 0, block = 0; begin < args.N; begin += kBlockSize8bit, ++block) {
    const std::int64_t size = args.N - begin < kBlockSize8bit ? args.N - begin : kBlockSize8bit;
    const float* grad = args.grad_N + begin;
    float* param = args.param_N + begin;
    std::uint8_t *m_codes = args.m_N + begin, *v_codes = args.v_N + begin;
    const Vec m_scale = set(args.m_scale_B[block] * args.beta1), v_scale = set(args.v_scale_B[block] * args.beta2);
    Vec m_most = set(0), v_most = set(0);
    for_each_block(size, [&](std::int64_t i, auto lanes) {
      const Vec g = set(args.grad_scale) * load(grad + i, lanes);
      const Vec m_code = load(m_codes + i, lanes) - set(kZeroCode);
      const Vec m_level = with_sign_of(dynamic_level(kSignedTables, absolute(m_code), 0), m_code);
      const Vec v_level = dynamic_level(kUnsignedTables, load(v_codes + i, lanes), 1);
      const Vec m = multiply_add(m_level, m_scale, set(args.one_minus_beta1) * g);
      const Vec v = multiply_add(v_level, v_scale, set(args.one_minus_beta2) * (g * g));
      store(m_block + i, m);
      store(v_block + i, v);
      m_most = max(m_most, keep(absolute(m), lanes, set(0)));
      v_most = max(v_most, keep(v, lanes, set(0)));
      const Vec ratio = m / multiply_add(square_root(v), set(1 / args.correction), set(args.eps));
      const Vec decayed = set(args.param_factor) * load(param + i, lanes);
      store(param + i, decayed - set(args.step_size) * ratio, lanes);
    });
    args.m_scale_B[block] = largest(m_most);
    args.v_scale_B[block] = largest(v_most);
    const Vec m_inverse = set(inverse_scale(args.m_scale_B[block]));
    const Vec v_inverse = set(inverse_scale(args.v_scale_B[block]));
    for_each_block(size, [&](std::int64_t i, auto lanes) {
      const Vec m = load(m_block + i), v = load(v_block + i);
      // -1 is no level, so the largest magnitude of a negative m is one number less.
      const Vec largest_k = set(kZeroCode) + above(m, set(0));
      const Vec m_k = min(nearest_level(kSignedTables, absolute(m) * m_inverse), largest_k);
      store(m_codes + i, set(kZeroCode) + with_sign_of(m_k, m), lanes);
      store(v_codes + i, max(nearest_level(kUnsignedTables, v * v_inverse), above(v, set(0))), lanes);
    });
  }
}

// In simd_attention.h.
void small_product(const SmallProduct& args);
void transpose(const Transpose& args);
template <class T>
void row_dots(const RowDots<T>& args);
void attention_weights(const AttentionWeights& args);
void attention_slopes(const AttentionSlopes& args);

template <class T>
constexpr KernelTable<T> simd_table() {
  return {rms_norm_forward<T>,
          rms_norm_backward<T>,
          rope<T>,
          swiglu_forward<T>,
          swiglu_backward<T>,
          dag_pairs_forward<T>,
          dag_pairs_backward<T>,
          dag_nodes_forward<T>,
          dag_nodes_backward<T>,
          layer_norm_forward<T>,
          layer_norm_backward<T>,
          cross_entropy<T>,
          adamw_8bit,
          log_sum_exp<T>,
          attention_softmax,
          few_row_scores<T>,
          few_row_values<T>,
          rows_to_floats<T>,
          floats_to_rows<T>,
          small_product,
          transpose,
          row_dots<T>,
          attention_weights,
          attention_slopes};
}

}  // namespace
}  // namespace dagmoe
