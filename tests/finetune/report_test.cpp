#include "finetune/report.h"

#include <chrono>
#include <cmath>
#include <regex>
#include <set>

#include "base/error.h"
#include "base/text.h"
#include "finetune/report_page.h"
#include "model/edge_strength.h"
#include "tests/support/catch.h"
#include "tests/support/tiny_model.h"

using namespace dagmoe;
using namespace dagmoe::testing;

namespace {

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

std::size_t count_of(const std::string& text, const std::string& part) {
  std::size_t count = 0;
  for (std::size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++count;
  return count;
}

std::string report_of(const TemporaryFolder& folder, const std::vector<std::string>& runs) {
  std::vector<std::filesystem::path> folders;
  for (const auto& run : runs) folders.push_back(folder / run);
  write_report(folder / "page.html", folders);
  return read_text(folder / "page.html");
}

std::string message_of(const TemporaryFolder& folder, const std::string& run) {
  try {
    report_of(folder, {run});
  } catch (const InputError& error) {
    return error.what();
  }
  return "no error";
}

Json step_line(std::int64_t step, double loss) {
  return {{"step", step},
          {"loss", loss},
          {"aux_loss", 2.25},
          {"z_loss", 5.5},
          {"grad_norm", 0.75},
          {"lr", 0.002},
          {"supervised_tokens", 100},
          {"tokens", 400},
          {"tokens_per_second", 1234.0},
          {"seconds", 0.5},
          {"peak_rss_bytes", 2'500'000'000},
          {"grad_norm_by_group", {{"dag", 0.5}, {"router", 0.25}}}};
}

// Losses 3.0, 2.9, ...; validation 2.5 before and 1.75 after; one task.
std::string metrics_text(std::int64_t steps) {
  std::string text = Json{{"step", 0}, {"valid_loss", 2.5}, {"valid_supervised_tokens", 7}}.dump() + "\n";
  text += R"({"step":0,"scores":{"arc_easy":{"acc":0.46,"acc_stderr":0.0102}}})"
          "\n";
  for (std::int64_t step = 1; step <= steps; ++step)
    text += step_line(step, 3.1 - 0.1 * static_cast<double>(step)).dump() + "\n";
  text += Json{{"step", steps}, {"valid_loss", 1.75}, {"valid_supervised_tokens", 7}}.dump() + "\n";
  return text + str(R"({"step":)", steps, R"(,"scores":{"arc_easy":{"acc":0.4874,"acc_stderr":0.0103}}})", "\n");
}

Json edges_json(double strength, std::int64_t E) {
  std::vector<std::vector<double>> mean(static_cast<std::size_t>(E), std::vector<double>(static_cast<std::size_t>(E)));
  std::vector<std::vector<std::int64_t>> count(mean.size(), std::vector<std::int64_t>(mean.size(), 5));
  for (std::size_t i = 0; i < mean.size(); ++i) {
    for (std::size_t j = 0; j < mean.size(); ++j) mean[i][j] = strength * (1 + static_cast<double>(i == 1 && j == 2));
  }
  count[0][1] = count[1][0] = 0;
  return {{"tokens", 99810},
          {"layers",
           {{{"layer", 3},
             {"count", count},
             {"iterations",
              {{{"mean", mean},
                {"slots", {{1, 1}, {1, 1}}},
                {"symmetric_share", 0.9375},
                {"self_edge_share", 0.28125}}}}}}}};
}

void write_run(const std::filesystem::path& folder, const std::string& recipe = "seed: 17\nmodel: {path: m}\n") {
  write_text(folder / "metrics.jsonl", metrics_text(20));
  write_text(folder / "recipe.yaml", recipe);
  write_text(folder / "environment.json", R"({"dagmoe":"0.1.0","threads":2,"data_sha256":{"a.jsonl":"9f86d0"}})");
  std::string experts;
  for (int step = 1; step <= 20; ++step) {
    // Only steps 19 and 20, the last tenth, may be counted: 30 + 10 of 80, 40 of 80, and none.
    const char* counts = step == 19 ? "[[30,10,0,0]]" : step == 20 ? "[[0,30,0,10]]" : "[[1000,0,0,0]]";
    experts += str(R"({"step":)", step, R"(,"counts":)", counts, R"(,"layers":[3]})", "\n");
  }
  write_text(folder / "experts.jsonl", experts);
  write_text(
      folder / "analysis/groups.json",
      R"([{"group":"dag","tensors":10,"parameters":4976640,"trainable":4976640,"lr":0.002,"weight_decay":0,"bytes":69672960},
                 {"group":"experts","tensors":72,"parameters":637009920,"trainable":0,"lr":null,"weight_decay":null,"bytes":1274019840}])");
  write_text(folder / "analysis/samples.json",
             R"([{"source":"train.jsonl:17","tokens":61,"pieces":[{"text":"<|im_start|>user\nA & B","supervised":false},
                 {"text":"<b>\"C'\u0007</b>","supervised":true}]}])");
  write_text(folder / "analysis/edges.json",
             Json{{"before", edges_json(0.125, 4)}, {"after", edges_json(0.25, 4)}}.dump());
}

// Pixels' heights of a path "M x yL x y...".
std::vector<std::pair<double, double>> path_points(const std::string& path) {
  std::vector<std::pair<double, double>> points;
  static const std::regex pair(R"([ML](-?[0-9.]+) (-?[0-9.]+))");
  for (std::sregex_iterator at(path.begin(), path.end(), pair), end; at != end; ++at)
    points.emplace_back(std::stod((*at)[1]), std::stod((*at)[2]));
  return points;
}

}  // namespace

TEST_CASE("report: the numbers on the page are those of the files", "[finetune]") {
  const TemporaryFolder folder;
  write_run(folder / "alpaca");
  const std::string page = report_of(folder, {"alpaca"});
  REQUIRE(contains(page, "<h1>alpaca</h1>"));
  REQUIRE(contains(page, "2.5000 \xE2\x86\x92 1.7500"));  // validation loss
  REQUIRE(contains(page,
                   "\xE2\x88\x92"
                   "30.0 %, step 0 to 20"));  // its change
  REQUIRE(contains(page,
                   "<td class=\"n\">0.4600 \xC2\xB1 0.0102</td><td class=\"n\">0.4874 \xC2\xB1 0.0103</td>"
                   "<td class=\"n\">+0.0274</td>"));
  REQUIRE(contains(page, "<dt>Tokens</dt><dd>8,000<small>25.0 % of them supervised"));
  REQUIRE(contains(page, "<dt>Tokens per second</dt><dd>1,234<"));
  REQUIRE(contains(page, "<dt>Time in steps</dt><dd>0:10<"));
  REQUIRE(contains(page, "<dt>Peak memory</dt><dd>2.5 GB<"));
  // Groups: trained ones are bold and say "yes", so that nothing depends on colour.
  REQUIRE(contains(page, "<tr class=\"on\"><th scope=\"row\">dag</th><td>yes</td>"));
  REQUIRE(contains(page, "<tr class=\"off\"><th scope=\"row\">experts</th><td>frozen</td>"));
  REQUIRE(contains(page, "641,986,560"));  // the sum
  REQUIRE(contains(page, "0.78 %"));       // 4,976,640 of them
  // Curves.
  REQUIRE(contains(page, "20 values; first 3, last 1.1, lowest 1.1 at 20, highest 3 at 1."));
  REQUIRE(contains(page, "validation: 2 values; first 2.5, last 1.75"));
  for (const char* title : {"Learning rate", "Gradient norm", "Speed", "Balance loss", "Router z-loss"})
    REQUIRE(contains(page, std::string("aria-label=\"") + title + "\""));
  REQUIRE(contains(page, "router: 20 values; first 0.25"));
  // Experts: 30, 40, 0 and 10 of 80 assignments.
  REQUIRE(contains(page, "over steps 19 to 20; even use is 25 %"));
  REQUIRE(contains(page, ">37.5</text>"));
  REQUIRE(contains(page, ">50.0</text>"));
  REQUIRE(contains(page, ">12.5</text>"));
  REQUIRE(contains(page, "<li>layer 3: 2</li>"));
  // Edges.
  REQUIRE(contains(page, "99,810 tokens"));
  REQUIRE(contains(page, "0.25 \xE2\x86\x92 0.5"));                          // largest, before and after
  REQUIRE(contains(page, "2 \xE2\x86\x92 1: 0.25; 2 \xE2\x86\x92 1: 0.5"));  // strongest: source, then target
  REQUIRE(contains(page, "28.1 % \xE2\x86\x92 28.1 %"));
  REQUIRE(contains(page, "93.8 % \xE2\x86\x92 93.8 %"));
  REQUIRE(count_of(page, "data:image/png;base64,") == 3);  // experts, edges before and after
  REQUIRE(contains(page, "<code>9f86d0</code>"));
  REQUIRE(contains(page, "seed: 17\nmodel: {path: m}"));
}

TEST_CASE("report: text from the files is text on the page, and the page asks for nothing", "[finetune]") {
  const TemporaryFolder folder;
  write_run(folder / "a<img src=x>", "seed: 1\n# <script>alert('x')</script> & more\n");
  const std::string page = report_of(folder, {"a<img src=x>"});
  REQUIRE(contains(page, "<h1>a&lt;img src=x&gt;</h1>"));
  REQUIRE(contains(page, "# &lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; more"));
  REQUIRE(contains(page, "&lt;|im_start|&gt;user\nA &amp; B<mark>&lt;b&gt;&quot;C&#39;\xEF\xBF\xBD&lt;/b&gt;</mark>"));
  REQUIRE_FALSE(contains(page, "<script"));
  REQUIRE_FALSE(contains(page, "<img"));
  REQUIRE_FALSE(contains(page, "http:"));
  REQUIRE_FALSE(contains(page, "https:"));
  REQUIRE_FALSE(contains(page, "=\"//"));
  REQUIRE_FALSE(contains(page, "url("));
  REQUIRE_FALSE(contains(page, "@import"));
  REQUIRE(contains(page, "default-src 'none'"));
  REQUIRE(is_valid_utf8(page));
  REQUIRE(escape_html("caf\xC3\xA9\xFF") == "caf\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD");  // no UTF-8 as a whole
}

TEST_CASE("report: only metrics.jsonl must be there; the page names what is not", "[finetune]") {
  const TemporaryFolder folder;
  write_text(folder / "bare/metrics.jsonl", step_line(1, 2.0).dump() + "\n");
  const std::string page = report_of(folder, {"bare"});
  for (const char* file : {"experts.jsonl", "analysis/groups.json", "analysis/samples.json", "analysis/edges.json",
                           "environment.json", "recipe.yaml"})
    REQUIRE(contains(page, std::string("has no <code>") + file + "</code>"));
  REQUIRE(contains(page, "No validation loss"));
  REQUIRE(contains(page, "No task scores"));
  REQUIRE(contains(page, "aria-label=\"Loss\""));
  write_text(folder / "empty/metrics.jsonl", "");
  REQUIRE(contains(report_of(folder, {"empty"}), "No curves: metrics.jsonl has no finished step"));
}

TEST_CASE("report: a skipped step has no loss, is counted, and leaves its place empty", "[finetune]") {
  const TemporaryFolder folder;
  std::string text;
  for (std::int64_t step = 1; step <= 5; ++step) {
    Json line = step_line(step, 2.0);
    if (step == 3) line["loss"] = nullptr, line["skipped"] = true;
    text += line.dump() + "\n";
  }
  write_text(folder / "run/metrics.jsonl", text);
  const std::string page = report_of(folder, {"run"});
  REQUIRE(contains(page, "<dt>Steps</dt><dd>5<small>1 skipped"));
  REQUIRE(contains(page, "training: 4 values"));
}

TEST_CASE("report: a folder without metrics, a damaged line and a file of another form are errors with a place",
          "[finetune]") {
  const TemporaryFolder folder;
  std::filesystem::create_directories(folder / "none");
  REQUIRE(contains(message_of(folder, "none"), "found no metrics.jsonl, expected the folder of a run"));
  write_text(folder / "run/metrics.jsonl", metrics_text(3) + "{\"step\": 4, \"lo\n" + step_line(5, 1).dump() + "\n");
  REQUIRE(contains(message_of(folder, "run"), "metrics.jsonl:8: found broken JSON"));
  write_text(folder / "run/metrics.jsonl", metrics_text(3) + "{\"loss\": 4}\n");
  REQUIRE(contains(message_of(folder, "run"), "metrics.jsonl:8: found no object with an integer 'step'"));
  // What a killed process left is no error, and said.
  write_text(folder / "run/metrics.jsonl", metrics_text(3) + "{\"step\": 4, \"lo");
  const std::string page = report_of(folder, {"run"});
  REQUIRE(contains(page, "The last line of metrics.jsonl is not finished"));
  REQUIRE(contains(page, "<dt>Steps</dt><dd>3</dd>"));

  write_text(folder / "run/analysis/samples.json", R"([{"source": 3}])");
  REQUIRE(contains(message_of(folder, "run"), "samples.json: is not as finetune writes it"));
  std::filesystem::remove(folder / "run/analysis/samples.json");
  Json edges = edges_json(1, 3);
  edges["layers"][0]["count"][1] = {1, 2};
  write_text(folder / "run/analysis/edges.json", Json{{"after", edges}}.dump());
  REQUIRE(contains(message_of(folder, "run"), "expected a square matrix"));
  std::filesystem::remove(folder / "run/analysis/edges.json");
  write_text(folder / "run/experts.jsonl", "{\"step\":3,\"layers\":[0],\"counts\":[[1,2]]}\nx\n");
  REQUIRE(contains(message_of(folder, "run"), "experts.jsonl:2: found broken JSON"));
  const std::pair<const char*, const char*> broken[] = {
      {R"({"step":3,"layers":[0,1],"counts":[[1,2]]})", "step 3: found 1 rows of counts for 2 layers"},
      {R"({"step":3,"layers":[0,1],"counts":[[1,2],[3]]})", "all of the same length above 0"},
      {R"({"step":3,"layers":[0],"counts":[[]]})", "all of the same length above 0"},
      {R"({"step":3,"layers":"a","counts":[[1]]})", "is not as finetune writes it"}};
  for (const auto& [line, message] : broken) {
    write_text(folder / "run/experts.jsonl", str(line, "\n"));
    REQUIRE(contains(message_of(folder, "run"), message));
  }
  write_text(folder / "run/metrics.jsonl", metrics_text(30));
  write_text(folder / "run/experts.jsonl",
             "{\"step\":29,\"layers\":[0],\"counts\":[[1,2]]}\n{\"step\":30,\"layers\":[0],\"counts\":[[1,2,3]]}\n");
  REQUIRE(contains(message_of(folder, "run"), "change at step 29"));
  REQUIRE_FALSE(contains(read_text(folder / "page.html"), "broken"));  // the page of before stays
}

TEST_CASE("report: a comparison has the keys that differ, scores and losses side by side, and curves by tokens",
          "[finetune]") {
  const TemporaryFolder folder;
  write_run(folder / "one", "seed: 17\noptimizer: {lr: 0.002}\ntrainable: [dag]\n");
  write_run(folder / "two", "seed: 17\noptimizer: {lr: 0.0005}\ntrainable: [dag, router]\nsteps: 20\n");
  std::string text = metrics_text(20);
  text.replace(text.find("0.4874"), 6, "0.4500");
  text.replace(text.find("1.75,"), 5, "1.5,");
  write_text(folder / "two/metrics.jsonl", text);
  const std::string page = report_of(folder, {"one", "two"});
  REQUIRE(contains(page, "<h1>2 runs compared</h1>"));
  REQUIRE(contains(page, "A one \xC2\xB7 B two"));
  REQUIRE(contains(page, "<code>optimizer.lr</code></th><td><code>0.002</code></td><td><code>0.0005</code></td>"));
  REQUIRE(contains(page, "<code>trainable</code></th><td><code>[dag]</code></td><td><code>[dag, router]</code></td>"));
  REQUIRE(contains(page, "<code>steps</code></th><td>\xE2\x80\x93</td><td><code>20</code></td>"));
  REQUIRE_FALSE(contains(page, "<code>seed</code>"));
  REQUIRE(contains(page,
                   "0.4500 \xC2\xB1 0.0103</td><td class=\"n\">\xE2\x88\x92"
                   "0.0374</td>"));
  REQUIRE(contains(page,
                   "\xE2\x88\x92"
                   "0.2500"));                                             // validation loss, B minus A
  REQUIRE(contains(page, "lowest 1.5 at 8,000"));                          // by tokens
  REQUIRE(count_of(page, "aria-label=\"Training loss, smoothed\"") == 2);  // by steps and by tokens
  // Curves differ by their dashes, not by colour alone.
  const auto chart = page.substr(page.find("aria-label=\"Training loss, smoothed\""));
  const auto first = chart.substr(0, chart.find("</svg>"));
  REQUIRE(contains(first, "stroke=\"#174a7e\" stroke-width=\"1.7\" d="));
  REQUIRE(contains(first, "stroke=\"#b5450b\" stroke-width=\"1.7\" stroke-dasharray="));
}

TEST_CASE("report: a long run of a large model stays below 2 MB and is read in seconds", "[finetune]") {
  const TemporaryFolder folder;
  constexpr int kSteps = 20'000, kLayers = 30, kExperts = 64;
  std::string metrics, experts;
  for (int step = 1; step <= kSteps; ++step) {
    const double noise = std::fmod(step * 0.754877666, 1.0);
    Json line = step_line(step, 2 + noise);
    line["tokens_per_second"] = 2000 + 100 * noise, line["grad_norm"] = 1 + noise, line["aux_loss"] = 2 + noise / 7;
    line["z_loss"] = 5 + noise / 3, line["expert_load_max_over_mean"] = 1.5 + noise / 9, line["gemm_share"] = noise;
    line["dead_expert_fraction"] = noise / 50, line["lr"] = 1e-5 * noise;
    metrics += line.dump() + "\n";
  }
  std::vector<std::vector<int>> counts(kLayers, std::vector<int>(kExperts));
  for (int l = 0; l < kLayers; ++l) {
    for (int e = 0; e < kExperts; ++e) counts[l][e] = (l * 31 + e * 17) % 97;
  }
  std::vector<int> layers(kLayers);
  for (int l = 0; l < kLayers; ++l) layers[l] = l;
  const std::string tail = str(",\"counts\":", Json(counts).dump(), ",\"layers\":", Json(layers).dump(), "}\n");
  for (int step = kSteps - 2500; step <= kSteps; ++step) experts += str("{\"step\":", step, tail);
  Json edges = edges_json(0.5, kExperts);
  const Json layer = edges["layers"][0];
  edges["layers"] = Json::array();
  for (int l = 0; l < kLayers; ++l) {
    edges["layers"].push_back(layer);
    edges["layers"][l]["layer"] = l;
    edges["layers"][l]["iterations"].push_back(layer["iterations"][0]);
  }
  write_text(folder / "long/metrics.jsonl", metrics);
  write_text(folder / "long/experts.jsonl", experts);
  write_text(folder / "long/analysis/edges.json", Json{{"before", edges}, {"after", edges}}.dump());
  const auto begin = std::chrono::steady_clock::now();
  const std::string page = report_of(folder, {"long"});
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  INFO(page.size() << " bytes in " << seconds << " s");
  REQUIRE(page.size() < 2'000'000);
  REQUIRE(seconds < 30);  // about 2 s alone on the machine
  REQUIRE(count_of(page, "data:image/png;base64,") == 1 + 2 * 2 * kLayers);
  REQUIRE(contains(page, "over steps 18,001 to 20,000"));
  REQUIRE(contains(page, "20,000 values"));
}

TEST_CASE("report: reads what edge_strength_json writes", "[finetune]") {
  const TemporaryFolder folder;
  const Decoder model = tiny_model(tiny_config());
  const std::vector<ModelInput> batches{packed_input(at::arange(40), {25, 15})};
  const EdgeStrength edges = edge_strength(model, batches);
  write_text(folder / "run/metrics.jsonl", step_line(1, 2.0).dump() + "\n");
  write_text(folder / "run/analysis/edges.json",
             Json{{"before", nullptr}, {"after", edge_strength_json(edges)}}.dump());
  const std::string page = report_of(folder, {"run"});
  REQUIRE(contains(page, "After training: 40 tokens."));
  REQUIRE(count_of(page, "aria-label=\"iteration 2, after\"") == 2);  // one a layer
  const double self = self_edge_share(edges.layers[1].iterations[0].slot_KK);
  REQUIRE(contains(page, fixed(100 * self, 1) + " %</td>"));
}

TEST_CASE("report: more experts than cells are averaged in blocks, and that is said", "[finetune]") {
  const TemporaryFolder folder;
  write_text(folder / "run/metrics.jsonl", step_line(1, 2.0).dump() + "\n");
  write_text(folder / "run/analysis/edges.json", Json{{"after", edges_json(0.25, 130)}}.dump());
  const std::string page = report_of(folder, {"run"});
  REQUIRE(contains(page, "Each cell is the mean over 4 \xC3\x97 4 experts of the 130."));
  REQUIRE(contains(page, "iteration 1, after"));
  REQUIRE_FALSE(contains(page, "iteration 1, before"));
}

TEST_CASE("report: the command writes beside the run, or where it is told, and prints the path", "[finetune]") {
  const TemporaryFolder folder;
  write_run(folder / "one");
  write_run(folder / "two");
  const auto run = [&](const std::string& arguments) {
    const std::string command = str("cd ", folder.path().string(), " && ", DAGMOE_BINARY_DIR, "/dagmoe report ",
                                    arguments, " > out.txt 2> err.txt");
    return WEXITSTATUS(std::system(command.c_str()));
  };
  REQUIRE(run("one") == 0);
  REQUIRE(read_text(folder / "out.txt") == "one/report.html\n");
  REQUIRE(contains(read_text(folder / "one/report.html"), "<h1>one</h1>"));
  REQUIRE(run("one/ two") == 0);
  REQUIRE(read_text(folder / "out.txt") == "report.html\n");
  REQUIRE(contains(read_text(folder / "report.html"), "A one \xC2\xB7 B two"));
  REQUIRE(run("two --output page.html") == 0);
  REQUIRE(contains(read_text(folder / "page.html"), "<h1>two</h1>"));
  REQUIRE(run("absent") == 3);
  REQUIRE(contains(read_text(folder / "err.txt"), "absent: found no metrics.jsonl"));
  REQUIRE(run("one --output no/such/page.html") == 3);
  REQUIRE(run("") == 2);
}

TEST_CASE("report: a thinned curve keeps the lowest and highest of every stretch, in order", "[finetune]") {
  std::vector<double> x, y;
  for (int i = 0; i < 10'000; ++i) x.push_back(i), y.push_back(std::sin(i * 0.37));
  y[4321] = 50, y[7777] = -50;
  const Points points = thin_out(x, y, 1500);
  REQUIRE(points.x.size() <= 1500);
  REQUIRE(points.x.size() > 1400);
  REQUIRE(std::ranges::is_sorted(points.x));
  for (std::size_t i = 0; i < points.x.size(); ++i) REQUIRE(points.y[i] == y[static_cast<std::size_t>(points.x[i])]);
  REQUIRE(std::ranges::find(points.y, 50.0) != points.y.end());
  REQUIRE(std::ranges::find(points.y, -50.0) != points.y.end());
  REQUIRE(thin_out({1, 2, 3}, {4, 5, 6}, 1500).y == std::vector<double>{4, 5, 6});
}

TEST_CASE("report: a chart's points lie where its axis says", "[finetune]") {
  const Chart chart{"T", "step", "unit", {{"", {0, 5, 10}, {1.0, 3.0, 2.0}, CurveKind::kLine, 0}}};
  const std::string svg = chart_svg(chart);
  const auto points = path_points(svg.substr(svg.find("stroke-width=\"1.7\"")));
  REQUIRE(points.size() == 3);
  REQUIRE(std::abs(points[1].first - (points[0].first + points[2].first) / 2) < 0.11);
  // The tick labels 1.0 and 3.0 stand, a few pixels lower, beside the values 1 and 3.
  const auto tick_height = [&](const std::string& label) {
    static const std::regex text("<text x=\"[0-9.]+\" y=\"([0-9.]+)\" class=\"tick\" text-anchor=\"end\">([^<]*)<");
    for (std::sregex_iterator at(svg.begin(), svg.end(), text), end; at != end; ++at) {
      if ((*at)[2] == label) return std::stod((*at)[1]);
    }
    return -1.0;
  };
  REQUIRE(std::abs(tick_height("1.0") - 3.5 - points[0].second) < 0.11);
  REQUIRE(std::abs(tick_height("3.0") - 3.5 - points[1].second) < 0.11);
}

TEST_CASE("report: a spike is left outside the axis and counted", "[finetune]") {
  Curve curve;
  for (int i = 0; i < 500; ++i) curve.x.push_back(i), curve.y.push_back(2 + (i % 7) * 0.01);
  curve.y[100] = 900;
  const Chart chart{"Loss", "step", "nats", {curve}};
  const std::string svg = chart_svg(chart);
  REQUIRE(contains(svg, "1 value above the axis"));
  REQUIRE(contains(svg, "highest 900 at 100"));
  REQUIRE_FALSE(contains(svg, ">900<"));
}

TEST_CASE("report: a constant but for rounding has an axis of its own size", "[finetune]") {
  const Chart chart{"Z", "step", "unit", {{"", {1, 2, 3}, {5.5, 5.5 + 1e-15, 5.5}, CurveKind::kLine, 0}}};
  const std::string svg = chart_svg(chart);
  REQUIRE(svg.size() < 5000);
  REQUIRE(contains(svg, ">5.4</text>"));
}

TEST_CASE("report: smoothing has no lag, keeps a constant and averages noise", "[finetune]") {
  const std::vector<double> constant(50, 2.5);
  for (const double value : smoothed(constant, 5)) REQUIRE(std::abs(value - 2.5) < 1e-12);
  std::vector<double> line, direct;
  for (int i = 0; i < 101; ++i) line.push_back(i);
  REQUIRE(std::abs(smoothed(line, 4)[50] - 50) < 1e-9);
  const std::vector<double> values{3, 1, 4, 1, 5};
  for (int i = 0; i < 5; ++i) {
    double total = 0, weight = 0;
    for (int j = 0; j < 5; ++j) {
      const double w = std::exp(-std::abs(i - j) / 2.0);
      total += w * values[static_cast<std::size_t>(j)], weight += w;
    }
    REQUIRE(std::abs(smoothed(values, 2)[static_cast<std::size_t>(i)] - total / weight) < 1e-12);
  }
}

TEST_CASE("report: numbers and scales are round where people read them", "[finetune]") {
  REQUIRE(number_text(1234567) == "1,234,567");
  REQUIRE(number_text(0.00002) == "2e-5");
  REQUIRE(number_text(2.34567) == "2.346");
  REQUIRE(number_text(0) == "0");
  REQUIRE(signed_text(-0.25, 2) ==
          "\xE2\x88\x92"
          "0.25");
  REQUIRE(signed_text(1e-9, 4) ==
          "\xC2\xB1"
          "0.0000");
  REQUIRE(std::abs(scale_top(0.563) - 0.6) < 1e-12);
  REQUIRE(scale_top(33.1) == 40);
  REQUIRE(scale_top(0) == 1);
}
