#include "peft/smore.h"

#include <ATen/ATen.h>

#include <cmath>

#include "base/error.h"
#include "base/text.h"

namespace dagmoe {
namespace {

std::size_t index(std::int64_t depth) { return static_cast<std::size_t>(depth); }

// d_0 .. d_L.
std::vector<std::int64_t> widths(const SmoreConfig& config) {
  std::vector<std::int64_t> d = {0};
  for (std::size_t l = 0; l < config.num_experts.size(); ++l) {
    d.push_back(d.back() + config.num_experts[l] * config.ranks[l]);
  }
  return d;
}

void check_list(const std::vector<std::int64_t>& list, std::size_t length, const std::string& where,
                std::vector<std::string>& issues) {
  if (list.size() != length) {
    issues.push_back(
        str(where, ": found ", list.size(), " values, expected one per depth, as num_experts has (", length, ")"));
  }
  for (const std::int64_t value : list) {
    if (value < 1) issues.push_back(str(where, ": found ", value, ", expected 1 or more"));
  }
}

// The keys that the nodes at `depth` have for ancestors, each through its own columns of the MLP's first matrix. Every
// expert's key is multiplied once and the products are gathered, instead of concatenated keys once per node.
at::Tensor add_ancestors(at::Tensor sum_TPH, const Smore& adapter, const SmoreRouting& routing, std::int64_t depth,
                         const at::Tensor& hidden_weight_HX) {
  const std::int64_t Q = adapter.config.router_dim, H = adapter.config.key_dim;
  const std::int64_t top = adapter.config.num_depths() - 1;
  const std::int64_t T = sum_TPH.size(0);
  for (std::int64_t ancestor = top; ancestor > depth; --ancestor) {
    const at::Tensor columns_HH = hidden_weight_HX.narrow(1, Q + (top - ancestor) * H, H);
    const at::Tensor keys_SH = adapter.depths[index(ancestor)].keys_SH.to(sum_TPH.scalar_type());
    const at::Tensor ids_TN = routing.depths[index(ancestor)].expert_ids_TPF.flatten(1);
    const std::int64_t N = ids_TN.size(1);
    const at::Tensor products_TNH =
        at::linear(keys_SH, columns_HH).index_select(0, ids_TN.flatten()).view({T, N, 1, H});
    // Nodes of this depth are in the order of their ancestors: each has the same number, one after another.
    const std::int64_t P = routing.depths[index(depth + 1)].expert_ids_TPF.flatten(1).size(1);
    sum_TPH = sum_TPH + products_TNH.expand({T, N, P / N, H}).reshape({T, P, H});
  }
  return sum_TPH;
}

SmoreDepthRouting route_depth(const at::Tensor& query_TQ, const Smore& adapter, const SmoreRouting& above,
                              std::int64_t l) {
  const auto dtype = query_TQ.scalar_type();
  const SmoreDepth& depth = adapter.depths[index(l)];
  const at::Tensor hidden_weight_HX = depth.hidden_weight_HX.to(dtype);
  const at::Tensor token_TH =
      at::linear(query_TQ, hidden_weight_HX.narrow(1, 0, adapter.config.router_dim), depth.hidden_bias_H.to(dtype));
  const at::Tensor hidden_TPH = at::relu(add_ancestors(token_TH.unsqueeze(1), adapter, above, l, hidden_weight_HX));
  // key . (W h + b) = (key W) . h + key . b: two vectors per expert instead of a query per node.
  const at::Tensor keys_SH = depth.keys_SH.to(dtype);
  const at::Tensor logits_TPS = at::linear(hidden_TPH, at::matmul(keys_SH, depth.query_weight_HH.to(dtype)),
                                           at::mv(keys_SH, depth.query_bias_H.to(dtype)));
  SmoreDepthRouting routing;
  routing.probabilities_TPS = at::softmax(logits_TPS, -1);
  const std::int64_t F = adapter.config.num_active[index(l)];
  routing.expert_ids_TPF = stable_top_k(logits_TPS, F);
  routing.gates_TPF = routing.probabilities_TPS.gather(-1, routing.expert_ids_TPF);
  if (F > 1) routing.gates_TPF = routing.gates_TPF / routing.gates_TPF.sum(-1, /*keepdim=*/true);
  return routing;
}

SmoreRouting route(const at::Tensor& x_TI, const Smore& adapter) {
  const auto dtype = routing_dtype(x_TI);
  const at::Tensor query_TQ =
      at::linear(x_TI.to(dtype), adapter.down_weight_QI.to(dtype), adapter.down_bias_Q.to(dtype));
  SmoreRouting routing;
  routing.depths.resize(adapter.depths.size());
  for (std::int64_t l = adapter.config.num_depths() - 1; l >= 0; --l) {
    routing.depths[index(l)] = route_depth(query_TQ, adapter, routing, l);
  }
  return routing;
}

// c_l A_l^i x of every expert of every depth, one [T, S, R] a depth: the experts that a token did not choose as well,
// because one product with all of A (here 64 rows) is faster than gathering rows of it for every token.
std::vector<at::Tensor> project_down(const at::Tensor& x_TI, const Smore& adapter) {
  const SmoreConfig& config = adapter.config;
  std::vector<at::Tensor> rows;
  std::vector<std::int64_t> sizes;
  for (const SmoreDepth& depth : adapter.depths) {
    rows.push_back(depth.A_SRI.flatten(0, 1).to(x_TI.scalar_type()));
    sizes.push_back(rows.back().size(0));
  }
  const at::Tensor all = at::linear(x_TI, at::cat(rows)).to(routing_dtype(x_TI));
  std::vector<at::Tensor> parts = at::split_with_sizes(all, sizes, 1);
  for (std::size_t l = 0; l < parts.size(); ++l) {
    const double scale = config.alpha / static_cast<double>(config.ranks[l]);
    parts[l] = (parts[l] * scale).view({x_TI.size(0), config.num_experts[l], config.ranks[l]});
  }
  return parts;
}

// B^i of every expert's own low-rank part: [T, S, R] to [T, S, D].
at::Tensor project_up(const at::Tensor& low_TSR, const at::Tensor& B_SDR) {
  const at::Tensor up_STD = at::bmm(low_TSR.transpose(0, 1), B_SDR.to(low_TSR.scalar_type()).transpose(1, 2));
  return up_STD.transpose(0, 1).contiguous();
}

// Depth 0: an expert's output does not depend on which node it is, so that the activation is taken once per expert and
// the nodes of a parent are a weighted sum over experts.
at::Tensor sum_leaves(const at::Tensor& own_TSD, const SmoreDepthRouting& routing) {
  const at::Tensor weights_TPS =
      at::zeros_like(routing.probabilities_TPS).scatter(-1, routing.expert_ids_TPF, routing.gates_TPF);
  return at::bmm(weights_TPS, at::tanh(own_TSD));
}

at::Tensor sum_nodes(const at::Tensor& own_TSD, const at::Tensor& children_TNC, const at::Tensor& W_DC,
                     const SmoreDepthRouting& routing) {
  const std::int64_t T = own_TSD.size(0), S = own_TSD.size(1), D = own_TSD.size(2);
  const std::int64_t P = routing.gates_TPF.size(1), F = routing.gates_TPF.size(2);
  // Whole rows of the table [T S, D] are picked: node n of token t has row t S + its expert.
  const at::Tensor first_row_T = at::arange(T, routing.expert_ids_TPF.options()) * S;
  const at::Tensor row_TPF = routing.expert_ids_TPF + first_row_T.view({T, 1, 1});
  const at::Tensor own_TND = own_TSD.reshape({T * S, D}).index_select(0, row_TPF.flatten()).view({T, P * F, D});
  const at::Tensor nodes_TND = at::tanh(own_TND + at::linear(children_TNC, W_DC.to(own_TSD.scalar_type())));
  return (routing.gates_TPF.unsqueeze(-1) * nodes_TND.view({T, P, F, D})).sum(2);
}

}  // namespace

std::vector<std::string> problems_of(const SmoreConfig& config) {
  std::vector<std::string> problems;
  const std::size_t L = config.num_experts.size();
  if (L == 0) problems.push_back("num_experts: found no value, expected one per depth, the leaves first");
  check_list(config.num_experts, L, "num_experts", problems);
  check_list(config.num_active, L, "num_active", problems);
  check_list(config.ranks, L, "ranks", problems);
  for (std::size_t l = 0; l < std::min(L, config.num_active.size()); ++l) {
    if (config.num_active[l] > config.num_experts[l]) {
      problems.push_back(str("num_active: found ", config.num_active[l], " of ", config.num_experts[l],
                             " experts at depth ", l, ", expected at most all"));
    }
  }
  if (!std::isfinite(config.alpha) || config.alpha <= 0)
    problems.push_back(str("alpha: found ", config.alpha, ", expected a number above 0"));
  if (config.router_dim < 1) problems.push_back(str("router_dim: found ", config.router_dim, ", expected 1 or more"));
  if (config.key_dim < 1) problems.push_back(str("key_dim: found ", config.key_dim, ", expected 1 or more"));
  return problems;
}

void check(const SmoreConfig& config, std::string_view where) { throw_config_problems(where, problems_of(config)); }

std::vector<NamedShape> smore_shapes(const SmoreConfig& config, std::int64_t out, std::int64_t in) {
  const std::int64_t Q = config.router_dim, H = config.key_dim, L = config.num_depths();
  const std::vector<std::int64_t> d = widths(config);
  std::vector<NamedShape> shapes = {{"smore_router.down.weight", {Q, in}}, {"smore_router.down.bias", {Q}}};
  for (std::int64_t l = 0; l < L; ++l) {
    const std::int64_t S = config.num_experts[index(l)], R = config.ranks[index(l)], D = d[index(l + 1)];
    const std::string router = str("smore_router.", l, ".");
    shapes.push_back({str("smore_A.", l, ".weight"), {S, R, in}});
    shapes.push_back({str("smore_B.", l, ".weight"), {S, D, R}});
    if (l > 0) shapes.push_back({str("smore_W.", l, ".weight"), {D, d[index(l)]}});
    shapes.push_back({router + "keys", {S, H}});
    shapes.push_back({router + "hidden.weight", {H, Q + (L - 1 - l) * H}});
    shapes.push_back({router + "hidden.bias", {H}});
    shapes.push_back({router + "query.weight", {H, H}});
    shapes.push_back({router + "query.bias", {H}});
  }
  shapes.push_back({"smore_final.weight", {out, d.back()}});
  return shapes;
}

std::vector<at::Tensor*> smore_tensors(Smore& adapter) {
  std::vector<at::Tensor*> tensors{&adapter.down_weight_QI, &adapter.down_bias_Q};
  for (std::size_t l = 0; l < adapter.depths.size(); ++l) {
    SmoreDepth& depth = adapter.depths[l];
    tensors.insert(tensors.end(), {&depth.A_SRI, &depth.B_SDR});
    if (l > 0) tensors.push_back(&depth.W_DC);
    tensors.insert(tensors.end(), {&depth.keys_SH, &depth.hidden_weight_HX, &depth.hidden_bias_H,
                                   &depth.query_weight_HH, &depth.query_bias_H});
  }
  tensors.push_back(&adapter.final_weight_OD);
  return tensors;
}

Smore make_smore(const SmoreConfig& config, const std::vector<at::Tensor>& tensors) {
  if (tensors.size() < 2) throw InternalError(str("smore: found ", tensors.size(), " tensors"));
  expect_shapes("smore", smore_shapes(config, tensors.back().size(0), tensors.front().size(-1)), tensors);
  Smore adapter{.config = config};
  adapter.depths.resize(config.num_experts.size());
  auto next = tensors.begin();
  for (at::Tensor* tensor : smore_tensors(adapter)) *tensor = *next++;
  return adapter;
}

void initialize_smore(const Smore& adapter, at::Generator& generator) {
  const auto fill = [&generator](const at::Tensor& tensor) {
    fill_kaiming_uniform(tensor, tensor.size(-1), generator);
  };
  const auto fill_linear = [&](const at::Tensor& weight, const at::Tensor& bias) {
    fill(weight);
    fill_kaiming_uniform(bias, weight.size(-1), generator);
  };
  fill_linear(adapter.down_weight_QI, adapter.down_bias_Q);
  for (const SmoreDepth& depth : adapter.depths) {
    fill(depth.A_SRI);
    fill(depth.B_SDR);
    if (depth.W_DC.defined()) fill(depth.W_DC);
    fill_uniform(depth.keys_SH, 0.0, 1.0, generator);
    fill_linear(depth.hidden_weight_HX, depth.hidden_bias_H);
    fill_linear(depth.query_weight_HH, depth.query_bias_H);
  }
  const at::NoGradGuard no_grad;
  adapter.final_weight_OD.zero_();
}

at::Tensor smore_delta(const at::Tensor& x_TI, const Smore& adapter, SmoreRouting* routing) {
  const SmoreRouting chosen = route(x_TI, adapter);
  const std::vector<at::Tensor> low = project_down(x_TI, adapter);
  at::Tensor sum;
  for (std::size_t l = 0; l < adapter.depths.size(); ++l) {
    const SmoreDepth& depth = adapter.depths[l];
    const at::Tensor own_TSD = project_up(low[l], depth.B_SDR);
    sum = l == 0 ? sum_leaves(own_TSD, chosen.depths[l]) : sum_nodes(own_TSD, sum, depth.W_DC, chosen.depths[l]);
  }
  if (routing != nullptr) *routing = chosen;
  const auto dtype = x_TI.scalar_type();
  return at::linear(sum.squeeze(1).to(dtype), adapter.final_weight_OD.to(dtype));
}

at::Tensor smore_balance_loss(const SmoreRouting& routing, const SmoreConfig& config) {
  at::Tensor total = at::zeros({}, routing.depths.at(0).probabilities_TPS.options());
  for (std::int64_t l = 0; l < config.num_depths(); ++l) {
    const at::Tensor probabilities_MS = routing.depths[index(l)].probabilities_TPS.flatten(0, 1);
    const std::int64_t num_rows = probabilities_MS.size(0);
    if (num_rows == 0) continue;
    const at::Tensor count_S = at::tensor(smore_counts(routing, config, l), probabilities_MS.options());
    const double scale = static_cast<double>(config.num_experts[index(l)]) / static_cast<double>(num_rows);
    total = total + scale * (count_S * probabilities_MS.mean(0)).sum();
  }
  return total;
}

std::vector<std::int64_t> smore_counts(const SmoreRouting& routing, const SmoreConfig& config, std::int64_t depth) {
  return count_ids(routing.depths.at(index(depth)).expert_ids_TPF, config.num_experts.at(index(depth)));
}

}  // namespace dagmoe
