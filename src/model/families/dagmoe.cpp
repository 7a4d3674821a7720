// dagmoe: the keys and tensor names of a base family with experts, and beside them
//   "base_model_type"     that family
//   "dag"                 {"num_iterations", "node_size", "node_residual": hidden_state | normed_input | none,
//                         "norm": layer_norm | rms_norm, "activation": "silu"}; absent: the weighted sum
//   "scoring_func" (softmax | sigmoid), "norm_topk_prob", "routed_scaling_factor"
//   "router_bias"         true: each router has a bias for choosing experts, `mlp.gate.e_score_correction_bias`
//   "shared_expert_intermediate_size", "shared_expert_gate"     where they differ from the base family's
#include "base/error.h"
#include "base/problems.h"
#include "base/text.h"
#include "model/families.h"

namespace dagmoe {
namespace {

constexpr EnumNames<RouterScore> kRouterScores = {{"softmax", RouterScore::kSoftmax},
                                                  {"sigmoid", RouterScore::kSigmoid}};
constexpr EnumNames<NodeResidual> kNodeResiduals = {{"hidden_state", NodeResidual::kHiddenState},
                                                    {"normed_input", NodeResidual::kNormedInput},
                                                    {"none", NodeResidual::kNone}};
constexpr EnumNames<DagNorm> kDagNorms = {{"layer_norm", DagNorm::kLayerNorm}, {"rms_norm", DagNorm::kRmsNorm}};

std::vector<std::string> base_names() {
  std::vector<std::string> names;
  for (const Family* family : families()) {
    if (family->has_experts) names.emplace_back(family->model_type);
  }
  return names;
}

const Family* read_base(ConfigKeys& keys) {
  const Json* name = keys.ask("base_model_type");
  const std::string known = join(base_names(), ", ");
  if (name == nullptr) {
    keys.problem("base_model_type", "is missing; known: " + known);
    return nullptr;
  }
  const Family* family = name->is_string() ? find_family(name->get<std::string>()) : nullptr;
  if (family != nullptr && family->has_experts) return family;
  const std::string hint =
      name->is_string() ? did_you_mean(name->get<std::string>(), base_names()) : "; known: " + known;
  keys.problem("base_model_type", str("found ", found_text(*name), hint));
  return nullptr;
}

void read_router(ConfigKeys& keys, MoeConfig& moe) {
  keys.choice("scoring_func", moe.router_score, kRouterScores);
  keys.boolean("norm_topk_prob", moe.norm_topk_prob);
  keys.number("routed_scaling_factor", moe.routed_scaling_factor, 0.0);
  keys.boolean("router_bias", moe.router_bias);
  keys.integer("shared_expert_intermediate_size", moe.shared_expert_intermediate_size, 0, kMaxIntermediateSize);
  keys.boolean("shared_expert_gate", moe.shared_expert_gate);
}

DagConfig dag_of(ConfigKeys& dag_keys) {
  DagConfig dag;
  dag_keys.required("num_iterations", dag.num_iterations, kMaxIterations);
  dag_keys.required("node_size", dag.node_size, kMaxNodeSize);
  dag_keys.choice("node_residual", dag.node_residual, kNodeResiduals);
  dag_keys.choice("norm", dag.norm, kDagNorms);
  const Json* activation = dag_keys.ask("activation");
  if (activation != nullptr && *activation != "silu") {
    dag_keys.problem("activation", str("found ", found_text(*activation), ", supported: silu"));
  }
  const std::vector<std::string> known = dag_keys.asked();
  const Json unknown = dag_keys.rest();
  for (const auto& [key, value] : unknown.items()) dag_keys.problem(key, "unknown key" + did_you_mean(key, known));
  return dag;
}

void read_dag(ConfigKeys& keys, ModelConfig& config) {
  const Json* json = keys.ask("dag");
  if (json == nullptr) return;
  if (!json->is_object()) return keys.problem("dag", str("found ", found_text(*json), ", expected an object"));
  ConfigKeys dag_keys(*json, "dag: ", keys.problems());
  config.dag = dag_of(dag_keys);
}

void read(ConfigKeys& keys, ModelConfig& config) {
  if (const Family* base = read_base(keys)) {
    config.base_model_type = base->model_type;
    base->read(keys, config);
    read_router(keys, *config.moe);
  }
  read_dag(keys, config);
}

void write(const ModelConfig& config, Json& json) {
  const MoeConfig& moe = *config.moe;
  find_family(config.base_model_type)->write(config, json);
  json["base_model_type"] = config.base_model_type;
  json["scoring_func"] = name_of(moe.router_score, kRouterScores);
  json["norm_topk_prob"] = moe.norm_topk_prob;
  json["routed_scaling_factor"] = moe.routed_scaling_factor;
  if (moe.router_bias) json["router_bias"] = true;
  if (moe.shared_expert_intermediate_size > 0) {
    json["shared_expert_intermediate_size"] = moe.shared_expert_intermediate_size;
    json["shared_expert_gate"] = moe.shared_expert_gate;
  }
  if (!config.dag) return;
  json["dag"] = dag_config_json(*config.dag);
}

}  // namespace

DagConfig parse_dag_config(const Json& json, const std::string& where) {
  if (!json.is_object()) throw InputError(str(where, ": dag: found ", json.type_name(), ", expected an object"));
  std::vector<std::string> problems;
  ConfigKeys keys(json, "dag: ", problems);
  const DagConfig dag = dag_of(keys);
  throw_problems(where, problems);
  return dag;
}

Json dag_config_json(const DagConfig& dag) {
  return {{"num_iterations", dag.num_iterations},
          {"node_size", dag.node_size},
          {"node_residual", name_of(dag.node_residual, kNodeResiduals)},
          {"norm", name_of(dag.norm, kDagNorms)},
          {"activation", "silu"}};
}

extern const Family kDagmoe;
const Family kDagmoe = {"dagmoe", "DagMoeForCausalLM", read, write, nullptr, /*has_experts=*/false};

}  // namespace dagmoe
