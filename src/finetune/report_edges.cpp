// The learned DAG on the page of a run.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>

#include "base/text.h"
#include "finetune/report_page.h"

namespace dagmoe {
namespace {

constexpr std::size_t kMaxCells = 64;       // experts a side; above that, blocks of experts are averaged
constexpr std::size_t kMaxTotal = 900'000;  // cells of all maps; a cell takes two thirds of a byte on the page

struct Matrix {
  std::vector<std::vector<double>> rows;  // NaN where the two experts were never chosen together
};

Matrix masked(const EdgeLayerData& layer, const EdgeIterationData& iteration) {
  Matrix matrix{iteration.mean_EE};
  for (std::size_t i = 0; i < matrix.rows.size(); ++i) {
    for (std::size_t j = 0; j < matrix.rows[i].size(); ++j) {
      if (layer.count_EE[i][j] == 0) matrix.rows[i][j] = std::numeric_limits<double>::quiet_NaN();
    }
  }
  return matrix;
}

// Means over blocks of `block` x `block` experts, of the pairs that occurred.
Matrix binned(const Matrix& matrix, std::size_t block) {
  if (block == 1) return matrix;
  const std::size_t E = matrix.rows.size(), size = (E + block - 1) / block;
  Matrix sums{std::vector(size, std::vector(size, 0.0))}, counts = sums;
  for (std::size_t i = 0; i < E; ++i) {
    for (std::size_t j = 0; j < E; ++j) {
      if (std::isnan(matrix.rows[i][j])) continue;
      sums.rows[i / block][j / block] += matrix.rows[i][j];
      counts.rows[i / block][j / block] += 1;
    }
  }
  for (std::size_t i = 0; i < size; ++i) {
    for (std::size_t j = 0; j < size; ++j) sums.rows[i][j] /= counts.rows[i][j];  // 0 / 0: no value
  }
  return sums;
}

double largest(const Matrix& matrix) {
  double top = 0;
  for (const auto& row : matrix.rows) {
    for (const double value : row) top = std::isnan(value) ? top : std::max(top, value);
  }
  return top;
}

std::string strength_text(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.3g", value);
  return text;
}

struct Moment {
  const char* name;
  const EdgeData* edges;
};

std::vector<Moment> moments_of(const RunRecord& run) {
  std::vector<Moment> moments;
  if (run.edges_before) moments.push_back({"before", &*run.edges_before});
  if (run.edges_after) moments.push_back({"after", &*run.edges_after});
  return moments;
}

struct Plan {
  std::size_t E = 0, block = 1, num_maps = 0;
  std::size_t columns = 1;  // of maps in a row: the iterations of a layer, before and after
  double top = 0;
};

Plan plan_maps(const std::vector<Moment>& moments) {
  Plan plan;
  for (const Moment& moment : moments) {
    for (const EdgeLayerData& layer : moment.edges->layers) {
      plan.E = std::max(plan.E, layer.count_EE.size());
      plan.num_maps += layer.iterations.size();
      plan.columns = std::max(plan.columns, layer.iterations.size() * moments.size());
    }
  }
  // Numbered maps need their width; above a row's room, an iteration a row.
  if (plan.columns > (plan.E <= 8 ? 4U : 6U)) plan.columns = moments.size();
  const auto side = [&] { return (plan.E + plan.block - 1) / plan.block; };
  while (side() > kMaxCells || side() * side() * plan.num_maps > kMaxTotal) plan.block *= 2;
  for (const Moment& moment : moments) {
    for (const EdgeLayerData& layer : moment.edges->layers) {
      for (const auto& iteration : layer.iterations)
        plan.top = std::max(plan.top, largest(binned(masked(layer, iteration), plan.block)));
    }
  }
  plan.top = scale_top(plan.top);
  return plan;
}

// "strongest 3 <- 5: 0.42": target and source, self edges aside.
std::string strongest_text(const Matrix& matrix) {
  std::size_t target = 0, source = 0;
  double best = -1;
  for (std::size_t i = 0; i < matrix.rows.size(); ++i) {
    for (std::size_t j = 0; j < matrix.rows.size(); ++j) {
      if (i != j && matrix.rows[i][j] > best) best = matrix.rows[i][j], target = i, source = j;
    }
  }
  return best < 0 ? "\xE2\x80\x93" : str(source, " \xE2\x86\x92 ", target, ": ", strength_text(best));
}

std::string map_svg(const Plan& plan, const EdgeLayerData& layer, std::size_t l, const Moment& moment) {
  const Matrix full = masked(layer, layer.iterations[l]), cells = binned(full, plan.block);
  Heatmap map;
  map.rows = cells.rows;
  map.top = plan.top;
  map.title = str("iteration ", l + 1, ", ", moment.name);
  map.description = str("Edge strength of layer ", layer.layer, ", iteration ", l + 1, ", ", moment.name,
                        " training: rows targets, columns sources; largest ", strength_text(largest(full)),
                        "; strongest between two experts ", strongest_text(full));
  const auto size = static_cast<double>(cells.rows.size());
  map.cell_width = map.cell_height = std::clamp((size <= 8           ? 200.0
                                                 : plan.columns <= 4 ? 176.0
                                                                     : 120.0) /
                                                    size,
                                                1.5, 25.0);
  map.x_label = "source", map.y_label = "target";
  map.columns_per_cell = static_cast<std::int64_t>(plan.block);
  for (std::size_t i = 0; i < cells.rows.size(); ++i) map.row_labels.push_back(std::to_string(i * plan.block));
  return heatmap_svg(map);
}

std::string layer_maps(const Plan& plan, const std::vector<Moment>& moments, std::size_t index) {
  std::string out;
  const auto& first = moments.front().edges->layers[index];
  for (std::size_t l = 0; l < first.iterations.size(); ++l) {
    for (const Moment& moment : moments) {
      if (index >= moment.edges->layers.size()) continue;
      const EdgeLayerData& layer = moment.edges->layers[index];
      if (l < layer.iterations.size()) out += map_svg(plan, layer, l, moment) + "\n";
    }
  }
  return str("<div class=\"layer\"><h3>Layer ", first.layer,
             "</h3><div class=\"maps\" style=\"grid-template-columns:repeat(", plan.columns,
             ",minmax(0,max-content))\">\n", out, "</div></div>\n");
}

double mean_of(const EdgeLayerData& layer, const EdgeIterationData& iteration) {
  double total = 0, count = 0;
  for (std::size_t i = 0; i < iteration.mean_EE.size(); ++i) {
    for (std::size_t j = 0; j < iteration.mean_EE.size(); ++j) {
      total += iteration.mean_EE[i][j] * static_cast<double>(layer.count_EE[i][j]);
      count += static_cast<double>(layer.count_EE[i][j]);
    }
  }
  return count == 0 ? 0 : total / count;
}

// A row an iteration; each measure before and after training.
std::string share_table(const std::vector<Moment>& moments) {
  HtmlTable table{{"Layer", "Iteration", "Mean", "Largest", "Self edges", "Symmetric part",
                   "Strongest, source \xE2\x86\x92 target"},
                  {},
                  {false, false, true, true, true, true, true}};
  for (std::size_t n = 0; n < moments.front().edges->layers.size(); ++n) {
    for (std::size_t l = 0; l < moments.front().edges->layers[n].iterations.size(); ++l) {
      std::vector<std::string> mean, top, self, symmetric, strongest;
      for (const Moment& moment : moments) {
        if (n >= moment.edges->layers.size() || l >= moment.edges->layers[n].iterations.size()) continue;
        const EdgeLayerData& layer = moment.edges->layers[n];
        const EdgeIterationData& iteration = layer.iterations[l];
        const Matrix matrix = masked(layer, iteration);
        mean.push_back(strength_text(mean_of(layer, iteration)));
        top.push_back(strength_text(largest(matrix)));
        self.push_back(fixed(100 * iteration.self_edge_share, 1) + " %");
        symmetric.push_back(fixed(100 * iteration.symmetric_share, 1) + " %");
        strongest.push_back(strongest_text(matrix));
      }
      constexpr const char* kThen = " \xE2\x86\x92 ";
      table.rows.push_back({std::to_string(moments.front().edges->layers[n].layer), std::to_string(l + 1),
                            join(mean, kThen), join(top, kThen), join(self, kThen), join(symmetric, kThen),
                            join(strongest, "; ")});
    }
  }
  if (moments.size() == 2)
    table.caption = "Before \xE2\x86\x92 after training; for the strongest edge between two experts, before; after";
  return html_table(table);
}

}  // namespace

std::string edge_section(const RunRecord& run) {
  const std::vector<Moment> moments = moments_of(run);
  if (moments.empty()) return html_missing("analysis/edges.json", "The strength of the DAG's edges is");
  if (moments.front().edges->layers.empty()) return "<p class=\"missing\">The model has no DAG.</p>\n";
  const Plan plan = plan_maps(moments);
  std::string out =
      "<p>Strength of an edge: the norm of the message <i>m<sub>ij</sub></i> from source expert <i>j</i> to target "
      "expert <i>i</i>, averaged over the tokens that chose both. Rows are targets, columns sources; the diagonal is "
      "an "
      "expert's message to itself. ";
  for (const Moment& moment : moments)
    out += str(moment.name == std::string_view("before") ? "Before" : "After",
               " training: ", with_commas(moment.edges->tokens), " tokens. ");
  out += "All maps share one scale.";
  if (plan.block > 1)
    out += str(" Each cell is the mean over ", plan.block, " \xC3\x97 ", plan.block, " experts of the ", plan.E, ".");
  out += "</p>\n<figure>" + scale_svg(plan.top, "mean edge strength", true) + "</figure>\n<div class=\"layers\">\n";
  for (std::size_t n = 0; n < moments.front().edges->layers.size(); ++n) out += layer_maps(plan, moments, n);
  out += "</div>\n<h3>The same in numbers</h3>\n" + share_table(moments);
  return out +
         "<p class=\"note\">Mean: over all pairs, as often as they occur. Self edges: their share of the strength of "
         "all "
         "edges, 1/K when edges are alike. Symmetric part: share of the matrix's squared norm; 100 % when every edge "
         "is "
         "as strong as its reverse.</p>\n";
}

}  // namespace dagmoe
