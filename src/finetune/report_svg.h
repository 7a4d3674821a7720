#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace dagmoe {

/// Text for HTML and SVG: the five characters of markup as entities, other control characters than \n and \t, and bytes
/// that are no UTF-8, as U+FFFD.
std::string escape_html(std::string_view text);
/// A number as people read it: four significant digits, thousands with commas, "2e-05" when very small or large.
std::string number_text(double value);

/// How a curve is told apart: by its place among the styles (hue and dash pattern together, so that a black and white
/// print still tells), or as the faint raw values behind a smoothed curve, or as single measurements.
enum class CurveKind { kLine, kFaint, kPoints };
struct Curve {
  std::string label;  ///< in the legend; none when empty
  std::vector<double> x, y;
  CurveKind kind = CurveKind::kLine;
  int style = 0;
};
struct Chart {
  std::string title, x_label, y_label;
  std::vector<Curve> curves;
  bool wide = false;       ///< over both columns of the page
  bool from_zero = false;  ///< the y axis begins at 0
};
/// A chart as one <svg> with axes, ticks and legend; its <desc> has the first, last, lowest and highest value of every
/// curve. A curve of more than 1,500 points is drawn as the lowest and highest of each of 750 stretches.
std::string chart_svg(const Chart& chart);

/// The points that are drawn for a curve: all of them, or at most `max_points` that hold the lowest and the highest of
/// each stretch, in order.
struct Points {
  std::vector<double> x, y;
};
Points thin_out(const std::vector<double>& x, const std::vector<double>& y, std::size_t max_points);

/// A matrix as a picture in sixteen steps from light to dark, 0 to `top`; NaN is white. Up to 8 x 8 the numbers stand
/// in the cells. `row_labels` and `row_notes` stand left and right of the rows, and may be empty.
struct Heatmap {
  std::string title, description, x_label, y_label;
  std::vector<std::vector<double>> rows;
  double top = 1;
  std::vector<std::string> row_labels, row_notes;
  double cell_width = 8, cell_height = 8;
  std::int64_t columns_per_cell = 1;  ///< for the ticks: a binned column stands for that many
};
std::string heatmap_svg(const Heatmap& map);
/// The smallest round number that is not below `largest`: the `top` of a scale with round ticks. 1 for nothing.
double scale_top(double largest);
/// The legend of every heatmap with this `top`, with the white of "no value" where that can occur.
std::string scale_svg(double top, const std::string& label, bool with_none);

}  // namespace dagmoe
