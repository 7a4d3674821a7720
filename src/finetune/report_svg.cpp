#include "finetune/report_svg.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <limits>

#include "base/text.h"

namespace dagmoe {
namespace {

constexpr std::size_t kMaxPoints = 1500;
constexpr int kLevels = 16;
constexpr std::int64_t kMaxNumberedCells = 8;

struct Style {
  const char *colour, *dash;
};
// Dark enough for print, apart for every common kind of colour blindness, and each with a dash pattern of its own.
constexpr std::array<Style, 8> kStyles{{{"#174a7e", ""},
                                        {"#b5450b", "7 3"},
                                        {"#1d7a5f", "2 2.5"},
                                        {"#7a3b8f", "9 3 2 3"},
                                        {"#8a6d00", "12 4"},
                                        {"#555555", "4 2 1 2 1 2"},
                                        {"#a3195b", "5 5"},
                                        {"#0086a8", "1.5 4"}}};
const Style& style_of(int index) { return kStyles[static_cast<std::size_t>(index) % kStyles.size()]; }

std::string short_number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.4g", value);
  std::string result = text;  // "2e-05" reads better as "2e-5"
  if (const auto zero = result.find("e-0"); zero != std::string::npos) result.erase(zero + 2, 1);
  if (const auto zero = result.find("e+0"); zero != std::string::npos) result.erase(zero + 1, 2);
  return result;
}

// Coordinates need a tenth of a pixel.
std::string px(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f", value);
  std::string result = text;
  if (result.ends_with(".0")) result.resize(result.size() - 2);
  return result == "-0" ? "0" : result;
}

std::string text_at(double x, double y, const char* attributes, std::string_view text) {
  return str("<text x=\"", px(x), "\" y=\"", px(y), "\"", attributes, ">", escape_html(text), "</text>");
}

std::string line_at(double x1, double y1, double x2, double y2, const char* css_class) {
  return str("<line class=\"", css_class, "\" x1=\"", px(x1), "\" y1=\"", px(y1), "\" x2=\"", px(x2), "\" y2=\"",
             px(y2), "\"/>");
}

struct Range {
  double low = 0, high = 1;
};

// 1, 2 or 5 times a power of ten, about `count` of them in the range.
double tick_step(Range range, int count) {
  const double raw = (range.high - range.low) / count, power = std::pow(10.0, std::floor(std::log10(raw)));
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (raw <= factor * power * (1 + 1e-9)) return factor * power;
  }
  return 10 * power;
}

std::vector<double> ticks_of(Range range, int count) {
  const double step = tick_step(range, count);
  std::vector<double> ticks;
  for (double k = std::ceil(range.low / step - 1e-9); k * step <= range.high + step * 1e-9; ++k)
    ticks.push_back(k == 0 ? 0.0 : k * step);
  return ticks;
}

// Ticks share their decimals and their unit: 0.0, 0.5, 1.0; 500k, 1,000k.
std::vector<std::string> tick_labels(const std::vector<double>& ticks) {
  double largest = 0;
  for (const double tick : ticks) largest = std::max(largest, std::abs(tick));
  const double unit = largest >= 1e9 ? 1e9 : largest >= 1e6 ? 1e6 : largest >= 1e5 ? 1e3 : 1;
  const char* suffix = unit == 1e9 ? "G" : unit == 1e6 ? "M" : unit == 1e3 ? "k" : "";
  const double step = (ticks.size() > 1 ? ticks[1] - ticks[0] : largest) / unit;
  std::vector<std::string> labels;
  for (const double tick : ticks) {
    if (largest < 1e-2 || largest >= 1e14) {
      labels.push_back(short_number(tick));
    } else if (tick == 0 && unit > 1) {
      labels.emplace_back("0");
    } else if (step >= 1) {
      labels.push_back(with_commas(std::llround(tick / unit)) + suffix);
    } else {
      labels.push_back(fixed(tick / unit, std::max(0, static_cast<int>(std::ceil(-std::log10(step) - 1e-9)))) + suffix);
    }
  }
  return labels;
}

// A constant, or one but for rounding, gets room of its own size.
Range padded(Range range, double share) {
  const double size = std::max(std::abs(range.low), std::abs(range.high));
  double width = range.high - range.low;
  if (width <= 1e-9 * size) width = size == 0 ? 1 : size;
  return {range.low - share * width, range.high + share * width};
}

Range x_range(const Chart& chart) {
  Range range{std::numeric_limits<double>::infinity(), -std::numeric_limits<double>::infinity()};
  for (const Curve& curve : chart.curves) {
    for (const double x : curve.x) range = {std::min(range.low, x), std::max(range.high, x)};
  }
  return range.low == range.high ? Range{range.low - 1, range.high + 1} : range;
}

// A spike must not flatten the rest of a long curve: what lies far above 99 % of the values is left outside, and said.
Range y_range(const Chart& chart) {
  std::vector<double> values;
  for (const Curve& curve : chart.curves) values.insert(values.end(), curve.y.begin(), curve.y.end());
  std::ranges::sort(values);
  const double low = chart.from_zero ? std::min(0.0, values.front()) : values.front();
  const double most = values[(values.size() - 1) * 99 / 100];
  double high = values.back();
  if (values.size() >= 400 && high - low > 3 * (most - low) && most > low) high = low + 1.5 * (most - low);
  Range range = padded({low, high}, 0.04);
  if (chart.from_zero && low == 0) range.low = 0;
  return range;
}

std::int64_t count_above(const Chart& chart, double top) {
  std::int64_t count = 0;
  for (const Curve& curve : chart.curves) count += std::ranges::count_if(curve.y, [&](double y) { return y > top; });
  return count;
}

// Pixels of the plot.
struct Frame {
  double width, height, left, right, top, bottom;
  Range x, y;
  double px_x(double value) const { return left + (value - x.low) / (x.high - x.low) * (right - left); }
  double px_y(double value) const {
    // Far outside, where the clip path hides it, any place will do.
    const double place = bottom - (value - y.low) / (y.high - y.low) * (bottom - top);
    return std::clamp(place, -1000.0, 2000.0);
  }
};

std::string axes(const Chart& chart, const Frame& frame) {
  std::string out;
  const auto y_ticks = ticks_of(frame.y, 5), x_ticks = ticks_of(frame.x, chart.wide ? 8 : 5);
  const auto y_labels = tick_labels(y_ticks), x_labels = tick_labels(x_ticks);
  for (std::size_t i = 0; i < y_ticks.size(); ++i) {
    const double y = frame.px_y(y_ticks[i]);
    out += line_at(frame.left, y, frame.right, y, "grid");
    out += text_at(frame.left - 6, y + 3.5, " class=\"tick\" text-anchor=\"end\"", y_labels[i]);
  }
  for (std::size_t i = 0; i < x_ticks.size(); ++i) {
    const double x = frame.px_x(x_ticks[i]);
    out += line_at(x, frame.bottom, x, frame.bottom + 4, "axis");
    out += text_at(x, frame.bottom + 16, " class=\"tick\" text-anchor=\"middle\"", x_labels[i]);
  }
  out += line_at(frame.left, frame.bottom, frame.right, frame.bottom, "axis");
  out += text_at((frame.left + frame.right) / 2, frame.height - 4, " class=\"label\" text-anchor=\"middle\"",
                 chart.x_label);
  out += text_at(0, 12, " class=\"name\"", chart.title);
  out += str("<text class=\"label\" x=\"0\" y=\"27\">", escape_html(chart.y_label), "</text>");
  return out;
}

std::string marker(double x, double y, int style) {
  return str("<rect x=\"", px(x - 2.6), "\" y=\"", px(y - 2.6),
             "\" width=\"5.2\" height=\"5.2\" fill=\"#fff\" stroke=\"", style_of(style).colour,
             "\" stroke-width=\"1.4\"/>");
}

std::string curve_path(const Curve& curve, const Frame& frame) {
  const Points points = thin_out(curve.x, curve.y, kMaxPoints);
  std::string path;
  for (std::size_t i = 0; i < points.x.size(); ++i)
    path += str(i == 0 ? "M" : "L", px(frame.px_x(points.x[i])), " ", px(frame.px_y(points.y[i])));
  const Style& style = style_of(curve.style);
  const bool is_faint = curve.kind == CurveKind::kFaint;
  // Many values overlap to a band, which must stay lighter than the line over it.
  const char* faint = points.x.size() > 500 ? "0.7\" stroke-opacity=\"0.25" : "0.9\" stroke-opacity=\"0.45";
  std::string out = str("<path fill=\"none\" stroke-linejoin=\"round\" stroke=\"", style.colour, "\" stroke-width=\"",
                        is_faint ? faint : "1.7", "\"");
  if (!is_faint && *style.dash != '\0') out += str(" stroke-dasharray=\"", style.dash, "\"");
  out += str(" d=\"", path, "\"/>");
  if (curve.kind == CurveKind::kPoints || points.x.size() == 1) {
    for (std::size_t i = 0; i < points.x.size(); ++i)
      out += marker(frame.px_x(points.x[i]), frame.px_y(points.y[i]), curve.style);
  }
  return out;
}

double text_width(std::string_view text) { return 6.2 * static_cast<double>(count_code_points(text)); }

// Right-aligned above the plot.
std::string legend(const Chart& chart, const Frame& frame) {
  double width = 0;
  for (const Curve& curve : chart.curves) {
    if (!curve.label.empty()) width += 34 + text_width(curve.label) + 12;
  }
  double x = std::max(text_width(chart.y_label) + 20, frame.right - width);
  std::string out;
  for (const Curve& curve : chart.curves) {
    if (curve.label.empty()) continue;
    const Style& style = style_of(curve.style);
    const bool is_faint = curve.kind == CurveKind::kFaint;
    out += str("<path fill=\"none\" stroke=\"", style.colour, "\" stroke-width=\"",
               is_faint ? "0.8\" stroke-opacity=\"0.5" : "1.8", "\"");
    if (!is_faint && *style.dash != '\0') out += str(" stroke-dasharray=\"", style.dash, "\"");
    out += str(" d=\"M", px(x), " 23H", px(x + 28), "\"/>");
    if (curve.kind == CurveKind::kPoints) out += marker(x + 14, 23, curve.style);
    out += text_at(x + 33, 27, " class=\"label\"", curve.label);
    x += 34 + text_width(curve.label) + 12;
  }
  return out;
}

std::string describe(const Curve& curve, const Chart& chart) {
  const auto [low, high] = std::ranges::minmax_element(curve.y);
  const auto x_of = [&](auto place) { return number_text(curve.x[static_cast<std::size_t>(place - curve.y.begin())]); };
  return str(curve.label.empty() ? chart.title : curve.label, ": ",
             with_commas(static_cast<std::int64_t>(curve.y.size())), " values; first ", number_text(curve.y.front()),
             ", last ", number_text(curve.y.back()), ", lowest ", number_text(*low), " at ", x_of(low), ", highest ",
             number_text(*high), " at ", x_of(high), ". ");
}

std::string svg_begin(double width, double height, const std::string& css_class, const std::string& title,
                      const std::string& description) {
  return str("<svg class=\"", css_class, "\" role=\"img\" aria-label=\"", escape_html(title), "\" viewBox=\"0 0 ",
             px(width), " ", px(height), "\" width=\"", px(width), "\" height=\"", px(height), "\"><title>",
             escape_html(title), "</title><desc>", escape_html(description), "</desc>");
}

// ---- Heatmaps: an indexed PNG of 4 bits a pixel, stored without compression. Sixty times smaller than one SVG
// rectangle a cell.

std::uint32_t crc32(std::string_view bytes) {
  std::uint32_t crc = 0xFFFFFFFFU;
  for (const char byte : bytes) {
    crc ^= static_cast<unsigned char>(byte);
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0xEDB88320U : 0U);
  }
  return ~crc;
}

std::uint32_t adler32(std::string_view bytes) {
  std::uint32_t a = 1, b = 0;
  for (const char byte : bytes) {
    a = (a + static_cast<unsigned char>(byte)) % 65521;
    b = (b + a) % 65521;
  }
  return b << 16 | a;
}

std::string big_endian(std::uint32_t value) {
  return {static_cast<char>(value >> 24), static_cast<char>(value >> 16), static_cast<char>(value >> 8),
          static_cast<char>(value)};
}

std::string png_chunk(const std::string& type, const std::string& data) {
  return big_endian(static_cast<std::uint32_t>(data.size())) + type + data + big_endian(crc32(type + data));
}

std::string zlib_stored(std::string_view bytes) {
  std::string out("\x78\x01", 2);
  for (std::size_t begin = 0; begin < bytes.size(); begin += 65535) {
    const std::string_view block = bytes.substr(begin, 65535);
    const auto size = static_cast<std::uint32_t>(block.size());
    out += begin + block.size() == bytes.size() ? '\1' : '\0';
    for (const std::uint32_t value : {size, ~size})
      out += {static_cast<char>(value & 0xFF), static_cast<char>(value >> 8 & 0xFF)};
    out += block;
  }
  return out + big_endian(adler32(bytes));
}

std::string base64(std::string_view bytes) {
  constexpr std::string_view digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  for (std::size_t i = 0; i < bytes.size(); i += 3) {
    std::uint32_t group = 0;
    for (std::size_t k = 0; k < 3; ++k)
      group = group << 8 | (i + k < bytes.size() ? static_cast<unsigned char>(bytes[i + k]) : 0U);
    for (std::size_t k = 0; k < 4; ++k) out += i + k <= bytes.size() ? digits[group >> (18 - 6 * k) & 63] : '=';
  }
  return out;
}

struct Rgb {
  int red, green, blue;
};
// Light to dark blue, evenly in lightness, so that the order survives without colour. Level 0 is "no value".
Rgb level_colour(int level) {
  if (level == 0) return {255, 255, 255};
  const double t = static_cast<double>(level - 1) / (kLevels - 2);
  const auto mix = [&](int light, int middle, int dark) {
    const double value = t < 0.5 ? light + (middle - light) * 2 * t : middle + (dark - middle) * (2 * t - 1);
    return static_cast<int>(std::lround(value));
  };
  return {mix(229, 98, 8), mix(236, 143, 29), mix(243, 190, 74)};
}

int level_of(double value, double top) {
  if (std::isnan(value)) return 0;
  const int step = top <= 0 ? 0 : static_cast<int>(value / top * (kLevels - 1));
  return 1 + std::clamp(step, 0, kLevels - 2);
}

std::string colour_text(Rgb colour) {
  char text[8];
  std::snprintf(text, sizeof text, "#%02x%02x%02x", colour.red & 0xFF, colour.green & 0xFF, colour.blue & 0xFF);
  return text;
}

std::string png_of(const Heatmap& map) {
  const auto height = static_cast<std::uint32_t>(map.rows.size());
  const auto width = static_cast<std::uint32_t>(map.rows.front().size());
  std::string palette, pixels;
  for (int level = 0; level < kLevels; ++level) {
    const Rgb colour = level_colour(level);
    palette += {static_cast<char>(colour.red), static_cast<char>(colour.green), static_cast<char>(colour.blue)};
  }
  for (const auto& row : map.rows) {
    pixels += '\0';  // no filter
    for (std::size_t j = 0; j < row.size(); j += 2) {
      const int high = level_of(row[j], map.top), low = j + 1 < row.size() ? level_of(row[j + 1], map.top) : 0;
      pixels += static_cast<char>(high << 4 | low);
    }
  }
  const std::string header = big_endian(width) + big_endian(height) + std::string("\x04\x03\0\0\0", 5);
  return "\x89PNG\r\n\x1a\n" + png_chunk("IHDR", header) + png_chunk("PLTE", palette) +
         png_chunk("IDAT", zlib_stored(pixels)) + png_chunk("IEND", "");
}

// Two to three digits, as many decimals as the top of the scale asks for: "42.0", "0.42", ".042".
std::string cell_text(double value, double top) {
  if (std::isnan(value)) return "\xE2\x80\x93";
  if (top >= 10) return fixed(value, top >= 100 ? 0 : 1);
  return top >= 0.1 ? fixed(value, 2) : fixed(value, 3).substr(1);
}

std::string cell_numbers(const Heatmap& map, double left, double top) {
  std::string out;
  for (std::size_t i = 0; i < map.rows.size(); ++i) {
    for (std::size_t j = 0; j < map.rows[i].size(); ++j) {
      const bool on_dark = level_of(map.rows[i][j], map.top) > kLevels / 2;
      out += text_at(left + (static_cast<double>(j) + 0.5) * map.cell_width,
                     top + (static_cast<double>(i) + 0.5) * map.cell_height + 3.2,
                     on_dark ? " class=\"cell\" fill=\"#fff\"" : " class=\"cell\"", cell_text(map.rows[i][j], map.top));
    }
  }
  return out;
}

// A few expert numbers below the columns.
std::string column_ticks(const Heatmap& map, double left, double y) {
  const auto columns = static_cast<std::int64_t>(map.rows.front().size());
  const double label_width = columns * map.columns_per_cell > 100 ? 27 : 20;
  const auto room = static_cast<std::int64_t>(std::ceil(label_width / map.cell_width));  // columns that a number covers
  std::int64_t step = 1;
  while (step < room) step *= 2;
  std::string out;
  for (std::int64_t j = 0; j < columns; j += step) {
    out += text_at(left + (static_cast<double>(j) + 0.5) * map.cell_width, y, " class=\"tick\" text-anchor=\"middle\"",
                   std::to_string(j * map.columns_per_cell));
  }
  return out;
}

std::string row_ticks(const Heatmap& map, double left, double top, double right) {
  std::string out;
  const auto middle = [&](std::size_t i) { return top + (static_cast<double>(i) + 0.5) * map.cell_height + 3.5; };
  const auto room = static_cast<std::size_t>(std::ceil(11 / map.cell_height));
  std::size_t step = 1;
  while (step < room) step *= 2;
  for (std::size_t i = 0; i < map.row_labels.size(); i += step)
    out += text_at(left - 5, middle(i), " class=\"tick\" text-anchor=\"end\"", map.row_labels[i]);
  for (std::size_t i = 0; i < map.row_notes.size(); ++i)
    out += text_at(right + 6, middle(i), " class=\"tick\"", map.row_notes[i]);
  return out;
}

}  // namespace

std::string escape_html(std::string_view text) {
  const bool is_text = is_valid_utf8(text);
  std::string out;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '&') {
      out += "&amp;";
    } else if (c == '<') {
      out += "&lt;";
    } else if (c == '>') {
      out += "&gt;";
    } else if (c == '"') {
      out += "&quot;";
    } else if (c == '\'') {
      out += "&#39;";
    } else if ((byte < 0x20 && c != '\n' && c != '\t') || byte == 0x7F || (byte >= 0x80 && !is_text)) {
      out += "\xEF\xBF\xBD";
    } else {
      out += c;
    }
  }
  return out;
}

std::string number_text(double value) {
  if (!std::isfinite(value)) return std::isnan(value) ? "not a number" : "infinite";
  const double size = std::abs(value);
  if (size == std::floor(size) && size < 1e15) return with_commas(static_cast<std::int64_t>(value));
  if (size >= 1000 && size < 1e15) return with_commas(std::llround(value));
  return short_number(value);
}

double scale_top(double largest) {
  if (!(largest > 0)) return 1;
  // Fifths of the scale are round numbers.
  const double fifth = largest / 5, power = std::pow(10.0, std::floor(std::log10(fifth)));
  for (const double factor : {1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0}) {
    if (fifth <= factor * power * (1 + 1e-9)) return 5 * factor * power;
  }
  return 50 * power;
}

Points thin_out(const std::vector<double>& x, const std::vector<double>& y, std::size_t max_points) {
  if (y.size() <= max_points) return {x, y};
  Points points;
  const std::size_t stretches = max_points / 2;
  for (std::size_t s = 0; s < stretches; ++s) {
    const std::size_t begin = s * y.size() / stretches, end = (s + 1) * y.size() / stretches;
    std::size_t low = begin, high = begin;
    for (std::size_t i = begin; i < end; ++i) {
      if (y[i] < y[low]) low = i;
      if (y[i] > y[high]) high = i;
    }
    for (const std::size_t i : {std::min(low, high), std::max(low, high)}) {
      if (i == low && low == high && !points.x.empty() && points.x.back() == x[i]) continue;
      points.x.push_back(x[i]);
      points.y.push_back(y[i]);
    }
  }
  return points;
}

std::string chart_svg(const Chart& chart) {
  const double width = chart.wide ? 960 : 466, height = chart.wide ? 310 : 214;
  const Frame frame{width, height, 58, width - 8, 38, height - 36, x_range(chart), y_range(chart)};
  std::string description, curves;
  for (const Curve& curve : chart.curves) {
    description += describe(curve, chart);
    curves += curve_path(curve, frame);
  }
  // A clip path needs no name of its own as a nested svg.
  std::string out = svg_begin(width, height, chart.wide ? "chart wide" : "chart", chart.title, description);
  out += axes(chart, frame) + legend(chart, frame);
  out += str("<svg x=\"0\" y=\"", px(frame.top - 4), "\" width=\"", px(width), "\" height=\"",
             px(frame.bottom - frame.top + 8), "\" viewBox=\"0 ", px(frame.top - 4), " ", px(width), " ",
             px(frame.bottom - frame.top + 8), "\">", curves, "</svg>");
  if (const auto above = count_above(chart, frame.y.high); above > 0) {
    out += text_at(frame.right, frame.top + 4, " class=\"tick\" text-anchor=\"end\"",
                   str("\xE2\x86\x91 ", with_commas(above), above == 1 ? " value" : " values", " above the axis"));
  }
  return out + "</svg>";
}

std::string heatmap_svg(const Heatmap& map) {
  const double columns = static_cast<double>(map.rows.front().size()), rows = static_cast<double>(map.rows.size());
  double label_width = 0, note_width = 0;
  for (const auto& label : map.row_labels) label_width = std::max(label_width, text_width(label) + 8);
  for (const auto& note : map.row_notes) note_width = std::max(note_width, text_width(note) + 8);
  const double left = label_width + (map.y_label.empty() ? 0 : 14), top = map.title.empty() ? 2 : 18;
  const double right = left + columns * map.cell_width, bottom = top + rows * map.cell_height;
  const double height = bottom + 14 + (map.x_label.empty() ? 0 : 13);
  std::string out = svg_begin(right + note_width + 2, height, "map", map.title.empty() ? map.description : map.title,
                              map.description);
  if (!map.title.empty()) out += text_at(left, 11, " class=\"name\"", map.title);
  out += str("<image x=\"", px(left), "\" y=\"", px(top), "\" width=\"", px(right - left), "\" height=\"",
             px(bottom - top), "\" preserveAspectRatio=\"none\" href=\"data:image/png;base64,", base64(png_of(map)),
             "\"/>");
  out += str("<rect class=\"frame\" x=\"", px(left), "\" y=\"", px(top), "\" width=\"", px(right - left),
             "\" height=\"", px(bottom - top), "\"/>");
  const bool has_room = map.cell_width >= 24 && map.cell_height >= 13 && map.top >= 0.005;
  if (has_room && map.rows.front().size() <= kMaxNumberedCells) out += cell_numbers(map, left, top);
  out += column_ticks(map, left, bottom + 11) + row_ticks(map, left, top, right);
  if (!map.x_label.empty())
    out += text_at((left + right) / 2, height - 2, " class=\"label\" text-anchor=\"middle\"", map.x_label);
  if (!map.y_label.empty()) {
    const double middle = (top + bottom) / 2;
    out += str("<text class=\"label\" text-anchor=\"middle\" transform=\"translate(9 ", px(middle), ") rotate(-90)\">",
               escape_html(map.y_label), "</text>");
  }
  return out + "</svg>";
}

std::string scale_svg(double top, const std::string& label, bool with_none) {
  constexpr double kWidth = 16, kLeft = 8;
  std::string out = svg_begin(kLeft + (kLevels - 1) * kWidth + 150, 44, "scale", "Scale: " + label,
                              str("light is 0, dark is ", number_text(top), with_none ? ", white is no value" : ""));
  out += text_at(kLeft, 11, " class=\"label\"", label);
  for (int level = 1; level < kLevels; ++level) {
    out += str("<rect x=\"", px(kLeft + (level - 1) * kWidth), "\" y=\"17\" width=\"", px(kWidth),
               "\" height=\"11\" fill=\"", colour_text(level_colour(level)), "\"/>");
  }
  for (int part = 0; part <= 5; ++part) {
    const double x = kLeft + part * 3 * kWidth;
    out += line_at(x, 28, x, 31, "axis");
    out += text_at(x, 41, " class=\"tick\" text-anchor=\"middle\"", short_number(top * part / 5));
  }
  if (!with_none) return out + "</svg>";
  const double x = kLeft + (kLevels - 1) * kWidth + 26;
  out += str("<rect class=\"frame\" x=\"", px(x), "\" y=\"17\" width=\"16\" height=\"11\"/>");
  return out + text_at(x + 21, 26, " class=\"label\"", "no value") + "</svg>";
}

}  // namespace dagmoe
