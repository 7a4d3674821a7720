// Several processes that train one model give what one process gives. They are started with mpirun; the tests marked
// [.] are what it starts of this program.
#include "finetune/ranks.h"

#include <ATen/ATen.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "base/error.h"
#include "base/text.h"
#include "finetune/checkpoints.h"
#include "finetune/run.h"
#include "finetune/run_data.h"
#include "finetune/run_setup.h"
#include "tests/support/catch.h"
#include "tests/support/compare.h"
#include "tests/support/run_fixture.h"

using namespace dagmoe;
using namespace dagmoe::testing;

namespace {

std::string on_path(const std::string& program) {
  const char* path = std::getenv("PATH");
  for (const std::string& folder : split(path == nullptr ? "" : path, ':')) {
    if (::access((folder + "/" + program).c_str(), X_OK) == 0) return folder + "/" + program;
  }
  return "";
}

std::string program(const char* name) { return std::string(DAGMOE_BINARY_DIR) + "/" + name; }

void require_mpirun() {
#ifndef DAGMOE_WITH_MPI
  DAGMOE_SKIP("built without MPI");
#endif
  if (on_path("mpirun").empty()) DAGMOE_SKIP("mpirun is not installed");
  if (!std::filesystem::exists(program("dagmoe"))) DAGMOE_SKIP("the dagmoe program is not built");
}

// `mpirun -n COUNT COMMAND...` as a process of its own.
class Mpirun {
 public:
  Mpirun(int count, const std::vector<std::string>& command, std::filesystem::path log) : log_(std::move(log)) {
    std::vector<std::string> words = {
        on_path("mpirun"), "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-n", std::to_string(count)};
    words.insert(words.end(), command.begin(), command.end());
    std::vector<char*> arguments;
    for (std::string& word : words) arguments.push_back(word.data());
    arguments.push_back(nullptr);
    pid_ = fork();
    if (pid_ != 0) return;
    const int file = ::open(log_.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0666);
    if (file < 0 || dup2(file, STDERR_FILENO) < 0 || dup2(file, STDOUT_FILENO) < 0) _exit(1);
    execv(arguments[0], arguments.data());
    _exit(1);
  }
  ~Mpirun() {
    if (pid_ > 0) send(SIGTERM), wait();
  }
  Mpirun(const Mpirun&) = delete;
  Mpirun& operator=(const Mpirun&) = delete;
  void send(int signal) const { kill(pid_, signal); }
  int wait() {
    int status = 0;
    waitpid(std::exchange(pid_, 0), &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }
  std::string log() const { return read_text(log_); }

 private:
  std::filesystem::path log_;
  pid_t pid_ = 0;
};

// The run of a fixture's recipe by `count` processes, into a folder of its name.
struct RankedRun {
  Mpirun mpirun;
  RankedRun(const TinyRun& run, const std::string& name, int count, std::vector<std::string> more = {})
      : mpirun(count, command(run, name, std::move(more)), run.folder / (name + ".log")) {}
  static std::vector<std::string> command(const TinyRun& run, const std::string& name, std::vector<std::string> more) {
    std::vector<std::string> words = {program("dagmoe"), "finetune", (run.folder / "a.yaml").string(),
                                      "output_dir=" + (run.folder / name).string()};
    words.insert(words.end(), more.begin(), more.end());
    return words;
  }
  void require_done() {
    const int code = mpirun.wait();
    INFO(mpirun.log());
    REQUIRE(code == 0);
  }
};

// Every number of metrics.jsonl, to `tolerance` of its size.
void require_close_metrics(const std::filesystem::path& a, const std::filesystem::path& b, double tolerance) {
  const auto lines_a = metrics_of(a), lines_b = metrics_of(b);
  REQUIRE(lines_a.size() == lines_b.size());
  for (std::size_t i = 0; i < lines_a.size(); ++i) {
    INFO(lines_a[i] << "\n" << lines_b[i]);
    const Json x = Json::parse(lines_a[i]).flatten(), y = Json::parse(lines_b[i]).flatten();
    REQUIRE(x.size() == y.size());
    for (const auto& [key, value] : x.items()) {
      INFO(key);
      REQUIRE(y.contains(key));
      // How many samples share their beginning depends on which lie in one micro batch.
      if (!value.is_number() || key == "/computed_tokens") continue;
      const double expected = value.get<double>(), got = y[key].get<double>();
      REQUIRE(std::abs(got - expected) <= tolerance * std::max(std::abs(expected), 1e-3));
    }
  }
}

// The largest difference of any tensor's elements, relative to the largest element of it.
double worst_difference(const std::filesystem::path& folder_a, const std::filesystem::path& folder_b) {
  Decoder a = load_decoder(Checkpoint::open(folder_a), {}), b = load_decoder(Checkpoint::open(folder_b), {});
  const auto parameters_a = a.parameters(), parameters_b = b.parameters();
  double worst = 0.0;
  for (std::size_t i = 0; i < parameters_a.size(); ++i) {
    const at::Tensor x = parameters_a[i].tensor->to(at::kDouble), y = parameters_b[i].tensor->to(at::kDouble);
    const double scale = x.abs().max().item<double>();
    if (scale > 0) worst = std::max(worst, (x - y).abs().max().item<double>() / scale);
  }
  return worst;
}

std::size_t num_lines(const std::filesystem::path& file) {
  if (!std::filesystem::exists(file)) return 0;
  const std::string text = read_text(file);
  return static_cast<std::size_t>(std::count(text.begin(), text.end(), '\n'));
}

// Uneven lengths, several micro batches a step, every term of the objective and clipping. Momentum without Adam's
// division: a sign that rounding decides would be no difference of the gradients.
const std::string kEverything =
    "steps: 6\noptimizer: {name: sgd, lr: 0.05, momentum: 0.9}\nmax_grad_norm: 0.5\nlabel_smoothing: 0.1\n"
    "router_aux_loss_coef: 0.1\nrouter_z_loss_coef: 0.01\nrouter_bias_update_rate: 0.01\neval: {every_steps: 3}\n";

struct UnevenRun : TinyRun {
  explicit UnevenRun(const std::string& more) : TinyRun("steps: 1\n") {
    std::string text = recipe_text(folder.path());
    const std::string plain = "optimizer: {lr: 0.02}\n";
    text.erase(text.find(plain), plain.size());
    write_text(folder / "a.yaml", text + more);
    std::string records;
    for (int i = 0; i < 40; ++i) {
      std::string output;
      for (int n = 0; n <= (i * i) % 11; ++n) output += "ab " + std::to_string(i + n) + " ";
      records += Json{{"instruction", "Say " + std::string(static_cast<std::size_t>(i % 9), 'x')},
                      {"input", ""},
                      {"output", output}}
                     .dump() +
                 "\n";
    }
    write_text(folder / "train.jsonl", records);
  }
};

}  // namespace

TEST_CASE("ranks: one process alone keeps its values", "[finetune]") {
  Ranks& ranks = Ranks::alone();
  REQUIRE(ranks.count() == 1);
  REQUIRE(ranks.is_first());
  double value = 3.0;
  ranks.sum(std::span(&value, 1));
  REQUIRE(value == 3.0);
  REQUIRE(ranks.min(7) == 7);
  REQUIRE(ranks.from(0, std::string("x")) == "x");
  REQUIRE(Ranks::join()->count() == 1);  // nobody started this program with mpirun
}

TEST_CASE("ranks: exchange under mpirun", "[.ranks]") {
  if (std::getenv("OMPI_COMM_WORLD_SIZE") == nullptr) DAGMOE_SKIP("another test starts this one with mpirun");
  const auto ranks = Ranks::join();
  const std::int64_t count = ranks->count(), number = ranks->number();
  REQUIRE(count == 3);
  std::vector<std::int64_t> counts = {number, 1, 1LL << 40};
  ranks->sum(counts);
  REQUIRE(counts == std::vector<std::int64_t>{3, 3, 3LL << 40});
  // Sums in which the order of adding shows have the same bytes everywhere.
  at::Tensor values = at::arange(100'000, at::kFloat).mul(0.1).add(0.3).pow(number + 1);
  sum_over(*ranks, values);
  const at::Tensor expected = at::arange(100'000, at::kFloat).mul(0.1).add(0.3).to(at::kDouble);
  const at::Tensor sum = expected + expected.pow(2) + expected.pow(3);
  REQUIRE(((values.to(at::kDouble) - sum).abs() / sum).max().item<double>() < 1e-5);
  const std::string bytes(static_cast<const char*>(values.const_data_ptr()), values.nbytes());
  REQUIRE((ranks->from(0, bytes) == bytes));
  double small = 0.25;
  ranks->sum(std::span(&small, 1));
  REQUIRE(small == 0.75);
  REQUIRE(ranks->min(number == 1 ? -5 : number) == -5);
  REQUIRE(ranks->from(2, number) == 2);
  REQUIRE(ranks->from(1, str("rank ", number)) == "rank 1");
  REQUIRE_THROWS_AS(sum_over(*ranks, at::zeros({4, 4}).t().slice(0, 1, 3)), InternalError);
  ranks->leave();
}

TEST_CASE("ranks: copies that differ are noticed", "[.differ]") {
  if (std::getenv("OMPI_COMM_WORLD_SIZE") == nullptr) DAGMOE_SKIP("another test starts this one with mpirun");
  const auto ranks = Ranks::join();
  const TinyRun run;
  const Recipe recipe = run.recipe();
  const RunSetup setup = prepare_run(recipe);
  RunData data = open_data(recipe);
  Decoder model = load_decoder(setup.source, load_options(recipe, setup));
  TrainConfig config = train_config(recipe, setup);
  config.num_steps = 3;
  Trainer trainer(model, data.train, config, *ranks);
  trainer.step();
  REQUIRE_NOTHROW(trainer.check_equal_ranks());
  if (ranks->number() == 1) {
    for (const auto& [name, tensor] : model.parameters()) {
      if (tensor->requires_grad()) tensor->detach().view(-1)[0] += 1e-6;
    }
  }
  REQUIRE_THROWS_WITH(trainer.check_equal_ranks(), Catch::Contains("the processes no longer agree on"));
  ranks->leave();
}

TEST_CASE("ranks: sums, copies and their comparison, in three processes", "[finetune]") {
  require_mpirun();
  const TemporaryFolder folder;
  for (const char* name : {"ranks: exchange under mpirun", "ranks: copies that differ are noticed"}) {
    Mpirun mpirun(3, {program("finetune_tests"), name}, folder / "log");
    const int code = mpirun.wait();
    INFO(mpirun.log());
    REQUIRE(code == 0);
    REQUIRE_THAT(mpirun.log(), Catch::Contains("All tests passed"));
  }
}

TEST_CASE("ranks: two and three processes give the losses and weights of one", "[finetune]") {
  require_mpirun();
  const UnevenRun run(kEverything);
  for (const char* trained : {"trainable=[full]", "trainable=[dag, router]"}) {
    for (const char* tokens : {"batch.tokens=1500", "batch.sequences=2"}) {  // two samples: one rank of three is idle
      const std::string name = str("one ", trained, tokens);
      run_finetune(run.into(name, {trained, tokens}), {});
      for (int count : {2, 3}) {
        INFO(count << " processes, " << trained << ", " << tokens);
        const std::string ranked = name + std::to_string(count);
        RankedRun(run, ranked, count, {trained, tokens}).require_done();
        require_close_metrics(run.folder / name, run.folder / ranked, 1e-5);
        REQUIRE(worst_difference(run.folder / name / "final", run.folder / ranked / "final") < 1e-5);
        REQUIRE(read_text(run.folder / name / "experts.jsonl") == read_text(run.folder / ranked / "experts.jsonl"));
        REQUIRE(num_lines(run.folder / ranked / "metrics.jsonl") == num_lines(run.folder / name / "metrics.jsonl"));
      }
    }
  }
}

TEST_CASE("ranks: killed and resumed they end as if nothing had happened, and one process may go on", "[finetune]") {
  require_mpirun();
  const UnevenRun run("steps: 30\noptimizer: {lr: 0.02}\ncheckpoint: {every_steps: 1, keep_last: 2}\n");
  RankedRun(run, "whole", 2).require_done();
  {
    RankedRun killed(run, "killed", 2);
    for (int i = 0; i < 4000 && num_lines(run.folder / "killed" / "metrics.jsonl") < 8; ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    killed.mpirun.send(SIGKILL);
    killed.mpirun.wait();
  }
  // The processes notice the death of mpirun a moment later.
  std::this_thread::sleep_for(std::chrono::seconds(2));
  REQUIRE(newest_checkpoint(run.folder / "killed").has_value());
  RankedRun(run, "killed", 2, {"--resume"}).require_done();
  REQUIRE(metrics_of(run.folder / "killed") == metrics_of(run.folder / "whole"));
  REQUIRE(changed_tensors(run.folder / "whole" / "final", run.folder / "killed" / "final").empty());

  RankedRun(run, "alone", 2, {"steps=10", "schedule.kind=constant"}).require_done();
  std::filesystem::remove_all(run.folder / "alone" / "final");
  run_finetune(run.into("alone"), {.resume = true});
  require_close_metrics(run.folder / "whole", run.folder / "alone", 1e-3);  // Adam's division enlarges rounding
}

TEST_CASE("ranks: a value that is not finite on one of them stops all, with exit code 4", "[finetune]") {
  require_mpirun();
  const UnevenRun run("steps: 30\noptimizer: {lr: 0.02}\n");
  ModelConfig untied = tiny_folder_config();
  untied.tie_word_embeddings = false;  // or every token would have a broken logit
  write_tiny_folder(run.folder / "model", untied);
  // One letter that a single record has, and whose embedding is broken.
  const Checkpoint source = Checkpoint::open(run.folder / "model");
  const TensorInfo& info = *source.find("model.embed_tokens.weight");
  std::vector<std::byte> bytes(source.bytes(info.name).begin(), source.bytes(info.name).end());
  const auto id = static_cast<std::size_t>(load_tokenizer(run.folder / "model")->encode("Z").front());
  const float nan = std::nanf("");
  const std::size_t width = static_cast<std::size_t>(info.shape[1]);
  for (std::size_t i = 0; i < width; ++i) std::memcpy(&bytes[(id * width + i) * sizeof nan], &nan, sizeof nan);
  std::vector<TensorSource> tensors;
  for (const TensorInfo* tensor : source.tensors()) {
    tensors.push_back({tensor->name, tensor->dtype, tensor->shape, [&, name = tensor->name] {
                         return name == info.name ? std::span<const std::byte>(bytes) : source.bytes(name);
                       }});
  }
  write_safetensors(run.folder / "broken.safetensors", std::move(tensors));
  std::filesystem::rename(run.folder / "broken.safetensors", run.folder / "model" / "model.safetensors");
  std::string records = read_text(run.folder / "train.jsonl");
  const std::size_t place = records.rfind("Say x");
  records.replace(place, 5, "Say Z");
  write_text(run.folder / "train.jsonl", records);

  RankedRun ranked(run, "run", 2, {"data.valid=[]"});
  const int code = ranked.mpirun.wait();
  INFO(ranked.mpirun.log());
  REQUIRE(code == 4);
  REQUIRE_THAT(ranked.mpirun.log(), Catch::Contains("the output of model.embed_tokens is not finite"));
  REQUIRE(newest_checkpoint(run.folder / "run").has_value());
  // Skipped where that is allowed, by all of them: they still agree at the end.
  RankedRun(run, "skips", 2, {"data.valid=[]", "epochs=1", "max_skipped_steps=3"}).require_done();
  REQUIRE_THAT(read_text(run.folder / "skips" / "metrics.jsonl"), Catch::Contains("\"skipped\":true"));
}

TEST_CASE("ranks: a signal that mpirun passes on ends the run after a clean checkpoint", "[finetune]") {
  require_mpirun();
  const UnevenRun run("steps: 2000\noptimizer: {lr: 0.02}\n");
  RankedRun ranked(run, "run", 2);
  for (int i = 0; i < 4000 && num_lines(run.folder / "run" / "metrics.jsonl") < 5; ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  ranked.mpirun.send(SIGUSR1);  // which mpirun passes on to all
  const int code = ranked.mpirun.wait();
  INFO(ranked.mpirun.log());
  REQUIRE(code == 128 + SIGUSR1);
  REQUIRE_THAT(ranked.mpirun.log(), Catch::Contains("interrupted after step"));
  const auto found = newest_checkpoint(run.folder / "run");
  REQUIRE(found.has_value());
  REQUIRE(found->step < 2000);
}

TEST_CASE("ranks: a mistake in the recipe is one message and its exit code", "[finetune]") {
  require_mpirun();
  const TinyRun run;
  RankedRun ranked(run, "run", 2, {"optimizer.lrr=1"});
  const int code = ranked.mpirun.wait();
  const std::string log = ranked.mpirun.log();
  INFO(log);
  REQUIRE(code == 2);
  const std::size_t first = log.find("optimizer.lrr: unknown key");
  REQUIRE(first != std::string::npos);
  REQUIRE(log.find("optimizer.lrr: unknown key", first + 1) == std::string::npos);
}
