#pragma once

#include "kernels/adamw_8bit.h"
#include "kernels/cross_entropy.h"
#include "kernels/dag_nodes.h"
#include "kernels/dag_pairs.h"
#include "kernels/few_rows.h"
#include "kernels/layer_norm.h"
#include "kernels/rms_norm.h"
#include "kernels/rope.h"
#include "kernels/row_softmax.h"
#include "kernels/segment_attention.h"
#include "kernels/swiglu.h"

/// The slow, readable twin of every kernel, for float, Bf16 and double. Sums over long rows are double whatever T is,
/// so that the judge is more exact than what it judges.
namespace dagmoe::reference {

template <class T>
void rms_norm_forward(const RmsNormForward<T>& args);
template <class T>
void rms_norm_backward(const RmsNormBackward<T>& args);
template <class T>
void rope(const Rope<T>& args);
template <class T>
void swiglu_forward(const SwiGluForward<T>& args);
template <class T>
void swiglu_backward(const SwiGluBackward<T>& args);
template <class T>
void dag_pairs_forward(const DagPairsForward<T>& args);
template <class T>
void dag_pairs_backward(const DagPairsBackward<T>& args);
template <class T>
void dag_nodes_forward(const DagNodesForward<T>& args);
template <class T>
void dag_nodes_backward(const DagNodesBackward<T>& args);
template <class T>
void layer_norm_forward(const LayerNormForward<T>& args);
template <class T>
void layer_norm_backward(const LayerNormBackward<T>& args);
template <class T>
void cross_entropy(const CrossEntropy<T>& args);
void adamw_8bit(const AdamW8bit& args);
template <class T>
void log_sum_exp(const LogSumExp<T>& args);
void attention_softmax(const AttentionSoftmax& args);
template <class T>
void few_row_scores(const FewRows<T>& args);
template <class T>
void few_row_values(const FewRows<T>& args);
template <class T>
void rows_to_floats(const FloatRows<T>& args);
template <class T>
void floats_to_rows(const FloatRows<T>& args);
void small_product(const SmallProduct& args);
void transpose(const Transpose& args);
template <class T>
void row_dots(const RowDots<T>& args);
void attention_weights(const AttentionWeights& args);
void attention_slopes(const AttentionSlopes& args);

}  // namespace dagmoe::reference
