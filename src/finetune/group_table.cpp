#include "finetune/group_table.h"

#include <algorithm>
#include <map>
#include <sstream>

#include "base/text.h"
#include "peft/trainable.h"

namespace dagmoe {
namespace {

// "2e-05", or "1e-05..2e-05" when the parameters of a group differ; nothing for what does not train.
std::string range_text(double min, double max, std::int64_t num_trainable) {
  if (num_trainable == 0) return "";
  std::ostringstream text;
  text << min;
  if (min != max) text << ".." << max;
  return text.str();
}

void add_to(GroupRow& row, const RunParameter& parameter) {
  row.num_tensors += 1;
  row.num_parameters += parameter.num_elements();
  row.memory += parameter.memory;
  if (!parameter.is_trainable) return;
  const bool is_first = row.num_trainable == 0;
  row.num_trainable += parameter.num_elements();
  row.min_lr = is_first ? parameter.lr : std::min(row.min_lr, parameter.lr);
  row.max_lr = is_first ? parameter.lr : std::max(row.max_lr, parameter.lr);
  row.min_weight_decay = is_first ? parameter.weight_decay : std::min(row.min_weight_decay, parameter.weight_decay);
  row.max_weight_decay = is_first ? parameter.weight_decay : std::max(row.max_weight_decay, parameter.weight_decay);
}

// Of a model's own groups first.
std::vector<GroupRow> in_order(std::map<std::string, GroupRow>& by_group) {
  std::vector<std::string> order = parameter_groups();
  order.insert(order.end(), {"router_bias", "lora"});
  std::vector<GroupRow> rows;
  for (const auto& group : order) {
    if (!by_group.contains(group)) continue;
    rows.push_back(by_group[group]);
    rows.back().group = group;
  }
  return rows;
}

}  // namespace

std::vector<GroupRow> group_rows(const RunSetup& setup) {
  std::map<std::string, GroupRow> by_group;
  for (const RunParameter& parameter : setup.parameters) add_to(by_group[parameter_group(parameter.name)], parameter);
  return in_order(by_group);
}

std::string parameter_table(const ModelConfig& config) {
  std::map<std::string, GroupRow> by_group;
  for (const auto& [name, shape] : parameter_shapes(config)) add_to(by_group[parameter_group(name)], {name, shape});
  std::vector<std::vector<std::string>> cells{{"group", "tensors", "parameters"}};
  std::int64_t num_tensors = 0;
  for (const GroupRow& row : in_order(by_group)) {
    cells.push_back({row.group, with_commas(row.num_tensors), with_commas(row.num_parameters)});
    num_tensors += row.num_tensors;
  }
  cells.push_back({"total", with_commas(num_tensors), with_commas(num_parameters(config))});
  return table_text(cells);
}

std::string group_table(const std::vector<GroupRow>& rows) {
  std::vector<std::vector<std::string>> cells{
      {"group", "tensors", "parameters", "trainable", "lr", "weight decay", "memory"}};
  GroupRow total{.group = "total"};
  for (const GroupRow& row : rows) {
    cells.push_back({row.group, with_commas(row.num_tensors), with_commas(row.num_parameters),
                     with_commas(row.num_trainable), range_text(row.min_lr, row.max_lr, row.num_trainable),
                     range_text(row.min_weight_decay, row.max_weight_decay, row.num_trainable),
                     human_bytes(row.memory.total())});
    total.num_tensors += row.num_tensors, total.num_parameters += row.num_parameters;
    total.num_trainable += row.num_trainable, total.memory += row.memory;
  }
  cells.push_back({total.group, with_commas(total.num_tensors), with_commas(total.num_parameters),
                   with_commas(total.num_trainable), "", "", human_bytes(total.memory.total())});
  return table_text(cells);
}

Json group_json(const std::vector<GroupRow>& rows) {
  Json json = Json::array();
  for (const GroupRow& row : rows) {
    json.push_back({{"group", row.group},
                    {"tensors", row.num_tensors},
                    {"parameters", row.num_parameters},
                    {"trainable", row.num_trainable},
                    {"lr", range_text(row.min_lr, row.max_lr, row.num_trainable)},
                    {"weight_decay", range_text(row.min_weight_decay, row.max_weight_decay, row.num_trainable)},
                    {"bytes", row.memory.total()}});
  }
  return json;
}

}  // namespace dagmoe
