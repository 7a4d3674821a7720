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

namespace dagmoe {

/// One implementation of every hot block. Kernels run on one thread over the rows they are given; ops splits the rows.
template <class T>
struct KernelTable {
  void (*rms_norm_forward)(const RmsNormForward<T>&);
  void (*rms_norm_backward)(const RmsNormBackward<T>&);
  void (*rope)(const Rope<T>&);
  void (*swiglu_forward)(const SwiGluForward<T>&);
  void (*swiglu_backward)(const SwiGluBackward<T>&);
  void (*dag_pairs_forward)(const DagPairsForward<T>&);
  void (*dag_pairs_backward)(const DagPairsBackward<T>&);
  void (*dag_nodes_forward)(const DagNodesForward<T>&);
  void (*dag_nodes_backward)(const DagNodesBackward<T>&);
  void (*layer_norm_forward)(const LayerNormForward<T>&);
  void (*layer_norm_backward)(const LayerNormBackward<T>&);
  void (*cross_entropy)(const CrossEntropy<T>&);
  void (*adamw_8bit)(const AdamW8bit&);  ///< the same for every T: optimizers work on floats
  void (*log_sum_exp)(const LogSumExp<T>&);
  void (*attention_softmax)(const AttentionSoftmax&);  ///< on floats too
  void (*few_row_scores)(const FewRows<T>&);
  void (*few_row_values)(const FewRows<T>&);
  void (*rows_to_floats)(const FloatRows<T>&);
  void (*floats_to_rows)(const FloatRows<T>&);
  void (*small_product)(const SmallProduct&);  ///< this and the next on floats, whatever T is
  void (*transpose)(const Transpose&);
  void (*row_dots)(const RowDots<T>&);
  void (*attention_weights)(const AttentionWeights&);
  void (*attention_slopes)(const AttentionSlopes&);
};

/// Instruction sets, slowest first. The reference table is the readable one that judges the others.
enum class Isa { kReference, kAvx2, kAvx512 };
const char* isa_name(Isa isa);

/// T is float, Bf16 or double; double has only the reference table. Null when the processor or the operating system
/// lacks the instructions; how tests reach every table.
template <class T>
const KernelTable<T>* kernels_for(Isa isa);
/// The best table here, chosen once. The environment variable DAGMOE_ISA=reference|avx2|avx512 lowers it, for tests.
template <class T>
const KernelTable<T>& kernels();
Isa best_isa();

}  // namespace dagmoe
