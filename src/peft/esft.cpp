#include "peft/esft.h"

#include <algorithm>
#include <charconv>
#include <numeric>

#include "base/error.h"
#include "base/json.h"
#include "base/mapped_file.h"
#include "base/problems.h"
#include "base/text.h"
#include "peft/trainable.h"

namespace dagmoe {
namespace {

// Sums of shares that a person would call 0.2 may lie a rounding error below it.
constexpr double kRounding = 1e-9;

template <class T>
void add_rows(std::vector<std::vector<T>>& sums, const std::vector<std::vector<T>>& more) {
  for (std::size_t row = 0; row < sums.size(); ++row) {
    for (std::size_t e = 0; e < sums[row].size(); ++e) sums[row][e] += more[row][e];
  }
}

std::optional<std::int64_t> parse_index(std::string_view digits) {
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  const bool is_plain = digits.size() == 1 || !digits.starts_with('0');
  if (digits.empty() || !is_plain || error != std::errc() || end != digits.data() + digits.size() || value < 0)
    return std::nullopt;
  return value;
}

void read_flag(const Json& json, const char* key, bool& value, std::vector<std::string>& problems) {
  if (!json.contains(key)) return;
  if (!json.at(key).is_boolean()) {
    problems.push_back(str(key, ": found ", json.at(key).type_name(), ", expected true or false"));
  } else {
    value = json.at(key).get<bool>();
  }
}

std::vector<std::int64_t> read_ids(const Json& json, const std::string& layer, std::vector<std::string>& problems) {
  std::vector<std::int64_t> ids;
  if (!json.is_array()) {
    problems.push_back(str("experts.", layer, ": found ", json.type_name(), ", expected a list of experts"));
    return ids;
  }
  for (const Json& id : json) {
    if (!id.is_number_integer() || id < 0) {
      problems.push_back(str("experts.", layer, ": found ", quoted_for_message(id.dump()),
                             ", expected the number of an expert, counted from 0"));
    } else if (std::ranges::count(ids, id.get<std::int64_t>()) > 0) {
      problems.push_back(str("experts.", layer, ": expert ", id.dump(), " is listed twice"));
    } else {
      ids.push_back(id.get<std::int64_t>());
    }
  }
  return ids;
}

void read_experts(const Json& json, EsftConfig& config, std::vector<std::string>& problems) {
  if (!json.is_object()) {
    problems.push_back(str("experts: found ", json.type_name(), ", expected {\"LAYER\": [experts]}"));
    return;
  }
  for (const auto& [key, ids] : json.items()) {
    const auto layer = parse_index(key);
    if (!layer) {
      problems.push_back(str("experts: found key ", quoted_for_message(key), ", expected the number of a layer"));
    } else {
      config.experts[*layer] = read_ids(ids, key, problems);
    }
  }
}

// The number behind `prefix`, up to the next dot.
std::optional<std::int64_t> index_behind(std::string_view name, std::string_view prefix) {
  const auto begin = name.find(prefix);
  if (begin == std::string_view::npos) return std::nullopt;
  const std::string_view rest = name.substr(begin + prefix.size());
  return parse_index(rest.substr(0, rest.find('.')));
}

struct ExpertPlace {
  std::int64_t layer = 0, expert = 0;
};
std::optional<ExpertPlace> expert_of(std::string_view name) {
  if (parameter_group(name) != "experts") return std::nullopt;
  const auto layer = index_behind(name, "model.layers."), expert = index_behind(name, ".mlp.experts.");
  return layer && expert ? std::optional(ExpertPlace{*layer, *expert}) : std::nullopt;
}

// What names say of a model: its number of layers, and of experts in those that have some.
struct ExpertTable {
  std::int64_t num_layers = 0;
  std::map<std::int64_t, std::int64_t> num_experts;
  bool has_shared_experts = false;
};
ExpertTable expert_table(const std::vector<std::string>& names) {
  ExpertTable table;
  for (const auto& name : names) {
    table.num_layers = std::max(table.num_layers, index_behind(name, "model.layers.").value_or(-1) + 1);
    table.has_shared_experts = table.has_shared_experts || parameter_group(name) == "shared_experts";
    if (const auto place = expert_of(name)) {
      std::int64_t& count = table.num_experts[place->layer];
      count = std::max(count, place->expert + 1);
    }
  }
  return table;
}

std::vector<std::string> misfits(const EsftConfig& config, const ExpertTable& model) {
  std::vector<std::string> problems;
  for (const auto& [layer, ids] : config.experts) {
    if (layer >= model.num_layers) {
      problems.push_back(str("experts.", layer, ": the model has layers 0 to ", model.num_layers - 1));
      continue;
    }
    const auto found = model.num_experts.find(layer);
    if (found == model.num_experts.end()) {
      problems.push_back(str("experts.", layer, ": this layer of the model is dense; leave it out"));
      continue;
    }
    for (const std::int64_t id : ids) {
      if (id < found->second) continue;
      problems.push_back(
          str("experts.", layer, ": found expert ", id, "; this layer has experts 0 to ", found->second - 1));
    }
  }
  for (const auto& [layer, count] : model.num_experts) {
    if (config.experts.contains(layer)) continue;
    problems.push_back(str("experts: layer ", layer, " has ", count, " experts and is not listed; add \"", layer,
                           "\": [] to train none of them"));
  }
  if (config.shared_experts && !model.has_shared_experts)
    problems.push_back("shared_experts: found true, but the model has no shared expert; set it to false");
  return problems;
}

bool is_selected(const EsftConfig& config, const std::string& name) {
  if (const auto place = expert_of(name)) {
    return std::ranges::count(config.experts.at(place->layer), place->expert) > 0;
  }
  return parameter_group(name) == "shared_experts" ? config.shared_experts : config.non_expert_modules;
}

}  // namespace

RoutingTotals& RoutingTotals::operator+=(const RoutingTotals& other) {
  if (layers.empty()) return *this = other;
  if (other.layers != layers) throw InternalError("RoutingTotals: the layers differ");
  num_tokens += other.num_tokens;
  add_rows(counts_LE, other.counts_LE);
  add_rows(gate_sums_LE, other.gate_sums_LE);
  return *this;
}

std::optional<EsftScore> esft_score_named(std::string_view name) {
  if (name == "token") return EsftScore::kToken;
  if (name == "gate") return EsftScore::kGate;
  return std::nullopt;
}

std::string_view name_of(EsftScore score) { return score == EsftScore::kToken ? "token" : "gate"; }

double default_top_p(EsftScore score) { return score == EsftScore::kToken ? 0.2 : 0.1; }

std::string_view describe(EsftScore score) {
  return score == EsftScore::kToken
             ? "token: mean over tokens of 1 / K where the expert was chosen; sums to 1 over each layer"
             : "gate: mean over tokens of the expert's weight g_e, not normalized; sums over each layer to the mean "
               "mass "
               "of the K chosen experts";
}

std::vector<std::vector<double>> esft_scores(const RoutingTotals& totals, EsftScore score) {
  if (totals.num_tokens <= 0 || totals.experts_per_token <= 0) throw InternalError("esft_scores: no tokens");
  const auto num_tokens = static_cast<double>(totals.num_tokens);
  std::vector<std::vector<double>> scores_LE;
  for (std::size_t row = 0; row < totals.layers.size(); ++row) {
    std::vector<double> scores_E;
    for (std::size_t e = 0; e < totals.counts_LE[row].size(); ++e) {
      const double share =
          static_cast<double>(totals.counts_LE[row][e]) / num_tokens / static_cast<double>(totals.experts_per_token);
      scores_E.push_back(score == EsftScore::kToken ? share : totals.gate_sums_LE[row][e] / num_tokens);
    }
    scores_LE.push_back(std::move(scores_E));
  }
  return scores_LE;
}

std::vector<std::int64_t> select_experts(std::span<const double> scores_E, double top_p) {
  std::vector<std::int64_t> order(scores_E.size());
  std::iota(order.begin(), order.end(), 0);
  const auto score_of = [scores_E](std::int64_t e) { return scores_E[static_cast<std::size_t>(e)]; };
  std::ranges::stable_sort(order, std::greater<>(), score_of);
  std::size_t count = 0;
  for (double sum = 0.0; count < order.size() && sum < top_p - kRounding; ++count) sum += score_of(order[count]);
  order.resize(count);
  return order;
}

EsftConfig select_experts(const RoutingTotals& totals, EsftScore score, double top_p) {
  EsftConfig config;
  const auto scores_LE = esft_scores(totals, score);
  for (std::size_t row = 0; row < scores_LE.size(); ++row)
    config.experts[totals.layers[row]] = select_experts(scores_LE[row], top_p);
  return config;
}

EsftConfig read_esft_config(const std::filesystem::path& path) {
  if (!std::filesystem::exists(path)) {
    throw InputError(
        str(path.string(), ": no such file; esft.experts names it, and dagmoe profile-experts --output writes it"));
  }
  return parse_esft_config(MappedFile::open(path)->text(), path.string());
}

EsftConfig parse_esft_config(std::string_view text, const std::string& where) {
  const Json json = parse_json(text, where);
  if (!json.is_object()) throw InputError(str(where, ": found ", json.type_name(), ", expected {\"experts\": {..}}"));
  static const std::vector<std::string> known{"experts", "shared_experts", "non_expert_modules"};
  EsftConfig config;
  std::vector<std::string> problems;
  for (const auto& [key, unused] : json.items()) {
    if (std::ranges::count(known, key) == 0)
      problems.push_back(str("unknown key ", quoted_for_message(key), did_you_mean(key, known)));
  }
  if (json.contains("experts")) {
    read_experts(json.at("experts"), config, problems);
  } else {
    problems.emplace_back("'experts' is missing; expected {\"LAYER\": [experts]}");
  }
  read_flag(json, "shared_experts", config.shared_experts, problems);
  read_flag(json, "non_expert_modules", config.non_expert_modules, problems);
  throw_problems(where, problems);
  return config;
}

std::string esft_config_text(const EsftConfig& config) {
  Json experts = Json::object();
  for (const auto& [layer, ids] : config.experts) experts[std::to_string(layer)] = ids;
  return Json{{"experts", experts},
              {"shared_experts", config.shared_experts},
              {"non_expert_modules", config.non_expert_modules}}
             .dump() +
         "\n";
}

std::set<std::string> esft_parameters(const EsftConfig& config, const std::vector<std::string>& names,
                                      const std::string& where) {
  throw_problems(where, misfits(config, expert_table(names)));
  std::set<std::string> selected;
  for (const auto& name : names) {
    if (is_selected(config, name)) selected.insert(name);
  }
  if (selected.empty()) throw InputError(str(where, ": experts: no expert is listed, so that nothing would train"));
  return selected;
}

}  // namespace dagmoe
