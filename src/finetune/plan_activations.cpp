// Letters: T tokens, D hidden_size, H heads, d head width, F expert width, E experts, K chosen experts, R = T K rows of
// experts, G node width, V vocabulary, N supervised tokens, O = H d.
#include "finetune/plan_activations.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <map>
#include <set>
#include <string>

#include "base/text.h"
#include "kernels/ops.h"
#include "model/attention.h"

namespace dagmoe {
namespace {

constexpr std::int64_t kFloat = 4, kLong = 8;

/// Which parameters train and which layers carry an adapter, asked by name.
class Trained {
 public:
  explicit Trained(const RunSetup& setup) : spec_(setup.adapter) {
    for (const RunParameter& parameter : setup.parameters) {
      if (parameter.is_trainable) names_.insert(parameter.name);
    }
    for (const AdapterPart& part : spec_.parts) parts_[part.target.module] = &part;
  }
  bool operator()(const std::string& name) const { return names_.contains(name); }
  bool weight_or_bias(const std::string& module) const {
    return (*this)(module + ".weight") || (*this)(module + ".bias");
  }
  /// Whether a layer's input is kept for a gradient: something of it trains, or an adapter of it.
  bool reads_input(const std::string& module) const {
    return weight_or_bias(module) || parts_.contains(adapted_module(module));
  }
  /// Of a linear layer, or of all experts together ("model.layers.3.mlp.experts.gate_up_proj"); null without adapter.
  const AdapterPart* adapter(const std::string& module) const {
    const auto found = parts_.find(module);
    return found == parts_.end() ? nullptr : found->second;
  }
  const AdapterSpec& spec() const { return spec_; }

 private:
  // Adapters of experts are of all of them: "…mlp.experts.3.up_proj" -> "…mlp.experts.gate_up_proj".
  static std::string adapted_module(const std::string& module) {
    constexpr std::string_view kExperts = ".mlp.experts.";
    const auto at = module.find(kExperts);
    if (at == std::string::npos) return module;
    return module.substr(0, at + kExperts.size()) + (module.ends_with("down_proj") ? "down_proj" : "gate_up_proj");
  }

  const AdapterSpec& spec_;
  std::set<std::string> names_;
  std::map<std::string, const AdapterPart*> parts_;
};

/// Walks through one layer in the order of Decoder::run_layer and adds up what stays. `flows` is whether the stream
/// needs a gradient at this place.
class LayerAccount {
 public:
  LayerAccount(const RunSetup& setup, const Trained& trained, std::int64_t layer, const BatchShape& batch,
               std::int64_t element, bool flows)
      : config_(setup.config),
        trained_(trained),
        prefix_(str("model.layers.", layer, ".")),
        T_(batch.tokens),
        element_(element),
        flows_(flows) {
    memory_.input_gradient = flows;
    const bool is_moe = config_.is_moe_layer(layer);
    attention();
    is_moe ? experts_layer() : dense_layer();
    memory_.is_recorded = flows_;
  }
  const LayerMemory& memory() const { return memory_; }
  bool flows() const { return flows_; }

 private:
  std::int64_t stream_bytes() const { return T_ * config_.hidden_size * element_; }
  bool trains(const std::string& name) const { return trained_(prefix_ + name); }
  void save(bool is_needed, std::int64_t bytes) {
    if (is_needed) memory_.saved += bytes;
  }

  // The input of a norm and one float a row; returns whether its output needs a gradient.
  bool norm(const std::string& name, bool needs, std::int64_t input_bytes, std::int64_t rows) {
    const bool result = needs || trains(name + ".weight");
    save(result, input_bytes + rows * kFloat);
    return result;
  }

  // A product with a weight: returns whether its output needs a gradient. A copy of the weight exists when it trains in
  // another type than it computes in, and stays when the gradient goes on below.
  bool product(const std::string& name, bool needs, std::int64_t num_weights) {
    const bool weight_trains = trained_.weight_or_bias(prefix_ + name);
    if (weight_trains && needs && element_ != kFloat) memory_.copies += num_weights * element_;
    low_rank(name, T_);
    return needs || trained_.reads_input(prefix_ + name);
  }

  // What an adapter of a layer of `rows` rows keeps besides the input: A x, and copies of the factors.
  void low_rank(const std::string& name, std::int64_t rows) {
    const AdapterPart* part = trained_.adapter(prefix_ + name);
    if (part == nullptr) return;
    const AdapterTarget& target = part->target;
    if (is_mixture(trained_.spec().kind)) return mixture(*part, rows);
    memory_.saved += rows * part->rank * element_;
    const std::int64_t num_factors = std::max<std::int64_t>(1, target.num_experts) * part->rank * (target.I + target.O);
    if (element_ != kFloat) memory_.copies += num_factors * element_;
    if (trained_.spec().kind == AdapterKind::kDora) memory_.saved += 2 * rows * target.O * element_;  // W x and B A x
    if (trained_.spec().dropout > 0) memory_.saved += 2 * rows * target.I * element_;  // the mask and what it leaves
  }

  // What smore_delta and smora_delta keep: the router's float copy of the input, scores and gates, and the narrow part
  // in float before and after each function.
  void mixture(const AdapterPart& part, std::int64_t rows) {
    const bool is_narrow = element_ != kFloat;
    std::int64_t floats = is_narrow ? part.target.I : 0, narrow = 0, factors = 0;
    if (trained_.spec().kind == AdapterKind::kSmora) {
      floats += 6 * part.rank, narrow += 2 * part.rank, factors = part.rank * (part.target.I + part.target.O);
    } else {
      const SmoreConfig& config = trained_.spec().smore;
      std::int64_t width = 0, nodes = 1;
      for (std::size_t l = 0; l < config.ranks.size(); ++l) width += config.num_experts[l] * config.ranks[l];
      narrow = 2 * width, factors = width * (part.target.I + part.target.O);
      for (std::size_t l = config.ranks.size(); l-- > 0;) {
        const std::int64_t S = config.num_experts[l], parents = nodes;
        nodes *= config.num_active[l];
        const std::int64_t below = width - S * config.ranks[l];
        // A x; of leaves the tanh of B's products, of inner nodes their tanh and their children's sums; the router.
        floats += S * config.ranks[l] + (l == 0 ? S * width : nodes * (width + below)) +
                  parents * (3 * S + 2 * config.key_dim) + 2 * nodes;
        width -= S * config.ranks[l];
      }
      floats += config.router_dim;
    }
    memory_.saved += rows * (floats * kFloat + narrow * element_);
    if (is_narrow) memory_.copies += factors * element_;
  }

  void attention() {
    const std::int64_t D = config_.hidden_size;
    const bool x_needs = norm("input_layernorm", flows_, stream_bytes(), T_);
    const bool attends = config_.mla ? latent_attention(x_needs) : plain_attention(x_needs);
    const std::int64_t value_width =
        config_.num_attention_heads * (config_.mla ? config_.mla->v_head_dim : config_.head_dim);
    const bool output_trains = trained_.reads_input(prefix_ + "self_attn.o_proj");
    // The output's product needs what the attention saves anyway, or a narrower copy of it.
    save(output_trains && (!attends || config_.mla), T_ * value_width * element_);
    flows_ = product("self_attn.o_proj", attends, D * value_width) || flows_;
  }

  bool plain_attention(bool x_needs) {
    const std::int64_t D = config_.hidden_size, d = config_.head_dim;
    const bool has_norm = config_.qk_norm != QkNorm::kNone, per_head = config_.qk_norm == QkNorm::kPerHead;
    bool attends = false, any_trains = false;
    for (const auto& [name, heads] : {std::pair{"q", config_.num_attention_heads},
                                      {"k", config_.num_key_value_heads},
                                      {"v", config_.num_key_value_heads}}) {
      const std::string path = str("self_attn.", name, "_proj");
      const std::int64_t width = heads * d;
      any_trains = any_trains || trained_.reads_input(prefix_ + path);
      bool needs = product(path, x_needs, D * width);
      const bool is_normed = has_norm && *name != 'v';
      if (is_normed)
        needs = norm(str("self_attn.", name, "_norm"), needs, T_ * width * element_, per_head ? T_ * heads : T_);
      save(needs && config_.clip_qkv.has_value(), T_ * width * element_);
      attends = attends || needs;
    }
    save(any_trains, stream_bytes());
    save_attention(attends, config_.num_attention_heads, config_.num_key_value_heads, d);
    return attends;
  }

  // q, k, v, the result, and a float for each token and head.
  void save_attention(bool attends, std::int64_t heads, std::int64_t kv_heads, std::int64_t d) {
    save(attends, T_ * (2 * heads + 2 * kv_heads) * d * element_ + T_ * heads * kFloat);
  }

  bool latent_attention(bool x_needs) {
    const MlaConfig& mla = *config_.mla;
    const std::int64_t D = config_.hidden_size, H = config_.num_attention_heads, d = query_head_dim(config_);
    bool q_needs = false;
    if (mla.q_lora_rank > 0) {
      q_needs = product("self_attn.q_a_proj", x_needs, D * mla.q_lora_rank);
      q_needs = norm("self_attn.q_a_layernorm", q_needs, T_ * mla.q_lora_rank * element_, T_);
      save(trained_.reads_input(prefix_ + "self_attn.q_b_proj"), T_ * mla.q_lora_rank * element_);
      q_needs = product("self_attn.q_b_proj", q_needs, mla.q_lora_rank * H * d);
    } else {
      q_needs = product("self_attn.q_proj", x_needs, D * H * d);
    }
    bool kv_needs = product("self_attn.kv_a_proj_with_mqa", x_needs, D * (mla.kv_lora_rank + mla.qk_rope_head_dim));
    const bool latent_needs = norm("self_attn.kv_a_layernorm", kv_needs, T_ * mla.kv_lora_rank * element_, T_);
    save(trained_.reads_input(prefix_ + "self_attn.kv_b_proj"), T_ * mla.kv_lora_rank * element_);
    kv_needs =
        product("self_attn.kv_b_proj", latent_needs, mla.kv_lora_rank * H * (mla.qk_nope_head_dim + mla.v_head_dim)) ||
        kv_needs;
    save(trained_.reads_input(prefix_ + "self_attn.q_a_proj") || trained_.reads_input(prefix_ + "self_attn.q_proj") ||
             trained_.reads_input(prefix_ + "self_attn.kv_a_proj_with_mqa"),
         stream_bytes());
    save_attention(q_needs || kv_needs, H, H, d);
    return q_needs || kv_needs;
  }

  /// Names of the three matrices of every expert of a feed-forward part: "mlp.experts.3.".
  bool any_trains(const std::vector<std::string>& experts, const std::string& matrix) const {
    return std::any_of(experts.begin(), experts.end(),
                       [&](const std::string& expert) { return trained_.reads_input(prefix_ + expert + matrix); });
  }

  // A SwiGLU part for every token: returns whether the output needs a gradient.
  bool feed_forward(const std::string& part, bool x_needs, std::int64_t F) {
    const std::int64_t D = config_.hidden_size, wide = T_ * F * element_;
    const bool in_trains = any_trains({part}, "gate_proj") || any_trains({part}, "up_proj");
    const bool down_trains = any_trains({part}, "down_proj");
    save(in_trains, stream_bytes());
    const bool hidden_needs = x_needs || in_trains;
    save(hidden_needs, 2 * wide);  // gate and up
    save(down_trains, wide);
    product(part + "gate_proj", x_needs, D * F);
    product(part + "up_proj", x_needs, D * F);
    product(part + "down_proj", hidden_needs, D * F);
    if (down_trains) memory_.saved_combine += wide;
    // Gradients of the hidden layer, gate and up, and of the input from both; one of a matrix, and as float.
    std::int64_t backward = hidden_needs ? 3 * wide + 2 * stream_bytes() : 0;
    if (num_trained({part}) > 0) backward += D * F * (element_ + (element_ != kFloat ? kFloat : 0));
    memory_.backward_ffn = std::max(memory_.backward_ffn, backward);
    // gate, up and their product beside the rows before and after.
    memory_.forward = std::max(memory_.forward, 3 * wide + 5 * stream_bytes());
    return hidden_needs || down_trains;
  }

  // Matrices of these parts that train.
  std::int64_t num_trained(const std::vector<std::string>& parts) const {
    std::int64_t count = 0;
    for (const std::string& part : parts) {
      for (const char* matrix : {"gate_proj", "up_proj", "down_proj"})
        count += trained_.weight_or_bias(prefix_ + part + matrix);
    }
    return count;
  }

  // Routed experts (kernels/ops_expert_ffn.cpp), R rows: returns whether the output needs a gradient.
  bool routed_experts(const std::vector<std::string>& experts, bool x_needs, std::int64_t R) {
    const std::int64_t D = config_.hidden_size, F = config_.moe->moe_intermediate_size;
    const std::int64_t wide = R * F * element_, narrow = R * D * element_;
    const bool in_trains = any_trains(experts, "gate_proj") || any_trains(experts, "up_proj");
    const bool down_trains = any_trains(experts, "down_proj"), needs = x_needs || in_trains || down_trains;
    save(needs, stream_bytes() + 2 * wide);  // the input, gate and up
    for (const std::string& expert : experts) {
      for (const char* matrix : {"gate_proj", "up_proj", "down_proj"}) product(expert + matrix, needs, D * F);
    }
    low_rank("mlp.experts.gate_up_proj", 0), low_rank("mlp.experts.down_proj", 0);
    // What every thread works in.
    const std::int64_t scratch = at::get_num_threads() * kExpertRowsPerPiece * (2 * D + 3 * F) * element_;
    // Rows for the sums over all rows of an expert; the gradient of the input by rows and by tokens.
    std::int64_t backward = needs ? scratch + (x_needs ? narrow + stream_bytes() : 0) : 0;
    if (in_trains) backward += narrow + 2 * wide;
    if (down_trains) backward += narrow + wide;
    if (const std::int64_t count = num_trained(experts); count > 0)
      backward += D * F * (count * element_ + (element_ != kFloat ? kFloat : 0));
    memory_.backward_ffn = std::max(memory_.backward_ffn, backward);
    memory_.forward = std::max(memory_.forward, scratch + (needs ? 2 * wide : 0) + narrow + 4 * stream_bytes());
    return needs;
  }

  void dense_layer() {
    const bool x_needs = norm("post_attention_layernorm", flows_, stream_bytes(), T_);
    flows_ = feed_forward("mlp.", x_needs, config_.intermediate_size) || flows_;
    memory_.backward_ffn += stream_bytes();
    memory_.backward_combine = 2 * stream_bytes();
  }

  // Softmax or sigmoid scores, chosen weights before and after normalization, and what the balance and z losses save.
  bool router(bool x_needs) {
    const std::int64_t E = config_.moe->num_experts, K = config_.moe->num_experts_per_tok;
    const bool router_trains = trained_.reads_input(prefix_ + "mlp.gate"), needs = x_needs || router_trains;
    save(needs, T_ * (2 * E + 2 * K + 3) * kFloat + T_ * K * kLong);
    memory_.routing = T_ * (E + K) * kFloat + T_ * K * kLong;
    return needs;
  }

  void experts_layer() {
    const MoeConfig& moe = *config_.moe;
    const std::int64_t R = T_ * moe.num_experts_per_tok;
    const bool x_needs = norm("post_attention_layernorm", flows_, stream_bytes(), T_);
    const bool weights_need = router(x_needs);
    std::vector<std::string> experts;
    for (std::int64_t e = 0; e < moe.num_experts; ++e) experts.push_back(str("mlp.experts.", e, "."));
    const bool out_needs = routed_experts(experts, x_needs, R);
    save(x_needs || out_needs, R * kLong);  // the rows' places
    const std::int64_t before_combine = memory_.saved;
    const bool sum_needs = combine(weights_need || out_needs || flows_);
    memory_.saved_combine += memory_.saved - before_combine;
    memory_.backward_ffn += 2 * stream_bytes();
    flows_ = sum_needs || flows_;
    if (moe.shared_expert_intermediate_size > 0) shared_expert(x_needs);
  }

  void shared_expert(bool x_needs) {
    const MoeConfig& moe = *config_.moe;
    const bool out_needs = feed_forward("mlp.shared_expert.", x_needs, moe.shared_expert_intermediate_size);
    bool gate_needs = false;
    if (moe.shared_expert_gate) {
      gate_needs = product("mlp.shared_expert_gate", x_needs, config_.hidden_size);
      save(gate_needs, stream_bytes() + T_ * element_);
      save(out_needs, T_ * element_);
    }
    flows_ = out_needs || gate_needs || flows_;
  }

  // What dag_combine keeps: the experts' results and weights and, of each iteration, what is as narrow as its nodes.
  // Returns whether the sum needs a gradient.
  bool combine(bool nodes_need) {
    const std::int64_t R = T_ * config_.moe->num_experts_per_tok, D = config_.hidden_size;
    const std::int64_t L = config_.dag ? config_.dag->num_iterations : 0, G = config_.dag ? config_.dag->node_size : 0;
    bool dag_trains = false;
    for (std::int64_t l = 0; l < L; ++l) {
      for (const char* weight : {"norm", "down_proj", "edge_proj", "node_proj", "up_proj"})
        dag_trains = dag_trains || trains(str("mlp.dag.", l, ".", weight, ".weight"));
    }
    if (!nodes_need && !dag_trains) return false;
    save(true, R * D * element_ + R * kFloat);
    save(L > 0, (2 * L - 1) * R * G * element_ + L * T_ * G * element_ + 2 * L * R * kFloat);
    save(L > 0 && !flows_, stream_bytes());  // h, unless the norm keeps it
    memory_.backward_combine = 2 * R * D * element_ + 2 * stream_bytes();
    // What every thread works in; each block of rows has gradients of the weights of its own.
    if (L > 0) memory_.backward_combine += at::get_num_threads() * kDagRowsPerBlock * ((L + 3) * D + 10 * G) * element_;
    if (dag_trains) memory_.backward_combine += L * (R / kDagRowsPerBlock + 1) * (2 * D * G + 4 * G * G) * element_;
    return true;
  }

  const ModelConfig& config_;
  const Trained& trained_;
  std::string prefix_;
  std::int64_t T_, element_;
  bool flows_;
  LayerMemory memory_;
};

EndsMemory ends_memory(const RunSetup& setup, const Trained& trained, const BatchShape& batch, std::int64_t element,
                       bool flows) {
  const ModelConfig& config = setup.config;
  const std::int64_t T = batch.tokens, N = batch.supervised_tokens, D = config.hidden_size, V = config.vocab_size;
  const std::int64_t rotated = config.mla ? config.mla->qk_rope_head_dim : config.head_dim;
  const bool embedding_trains = trained("model.embed_tokens.weight");
  const bool head_trains = config.tie_word_embeddings ? embedding_trains : trained.reads_input("lm_head");
  const bool hidden_needs = flows || trained("model.norm.weight");
  const bool is_narrow = element != kFloat;
  const std::int64_t chunk = std::min(N, kCrossEntropyRows);

  EndsMemory ends;
  ends.saved = T * rotated * kFloat + T * D * element;  // tables; the last hidden states
  if (hidden_needs) ends.saved += 2 * T * D * element + T * kFloat;
  ends.logits = chunk * (V + D) * element + N * (D * element + 3 * kLong);
  if (head_trains) {
    // Chunks are summed in float: the second finds the first in the compute type.
    const bool is_summed = N > kCrossEntropyRows;
    ends.logits += V * D * (is_summed ? kFloat + (is_narrow ? 2 : 1) * element : element);
    ends.head_copy = is_narrow ? V * D * element : 0;
    ends.head_gradient = V * D * kFloat;
  }
  if (embedding_trains) ends.embedding_gradient = V * D * kFloat + T * D * (is_narrow ? kFloat + element : kFloat);
  return ends;
}

}  // namespace

StepActivations step_activations(const RunSetup& setup, const BatchShape& batch, bool is_bfloat16) {
  const Trained trained(setup);
  const std::int64_t element = is_bfloat16 ? 2 : kFloat;
  StepActivations result;
  bool flows = trained("model.embed_tokens.weight");
  for (std::int64_t n = 0; n < setup.config.num_hidden_layers; ++n) {
    const LayerAccount account(setup, trained, n, batch, element, flows);
    flows = account.flows();
    result.layers.push_back(account.memory());
    const std::string prefix = str("model.layers.", n, ".");
    for (const RunParameter& parameter : setup.parameters) {
      if (parameter.name.starts_with(prefix)) result.layers.back().gradients += parameter.memory.gradients;
    }
  }
  result.ends = ends_memory(setup, trained, batch, element, flows);
  return result;
}

}  // namespace dagmoe
