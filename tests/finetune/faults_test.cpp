// What can go wrong outside the program: it is killed, interrupted, or the disk has no room. Each time a good
// checkpoint is found, and the resumed run equals one that nothing happened to, bit for bit.
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zstd.h>

#include <chrono>
#include <random>
#include <thread>

#include "base/error.h"
#include "finetune/checkpoints.h"
#include "finetune/run.h"
#include "tests/support/catch.h"
#include "tests/support/run_fixture.h"

using namespace dagmoe;
using namespace dagmoe::testing;

namespace {

std::string program() { return std::string(DAGMOE_BINARY_DIR) + "/dagmoe"; }

void require_program() {
  if (!std::filesystem::exists(program())) DAGMOE_SKIP("the dagmoe program is not built");
}

// `dagmoe finetune RECIPE --resume output_dir=...` as a process of its own. `file_limit`: no file may grow beyond so
// many bytes, as on a full disk.
class Child {
 public:
  Child(const TinyRun& run, const std::string& name, std::uint64_t file_limit = 0)
      : log_(run.folder / (name + ".log")) {
    const std::string recipe = (run.folder / "a.yaml").string(), output = "output_dir=" + (run.folder / name).string();
    pid_ = fork();
    if (pid_ != 0) return;
    const int log = ::open(log_.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0666);
    if (log < 0 || dup2(log, STDERR_FILENO) < 0 || dup2(log, STDOUT_FILENO) < 0) _exit(1);
    if (file_limit > 0) {
      const rlimit limit{file_limit, file_limit};
      if (setrlimit(RLIMIT_FSIZE, &limit) != 0) _exit(1);
    }
    execl(program().c_str(), "dagmoe", "finetune", recipe.c_str(), "--resume", output.c_str(),
          static_cast<char*>(nullptr));
    _exit(1);
  }
  ~Child() {
    if (pid_ > 0) send(SIGKILL), wait();
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;
  void send(int signal) const { kill(pid_, signal); }
  /// The exit code; 128 + signal for a killed one.
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

std::size_t num_lines(const std::filesystem::path& file) {
  if (!std::filesystem::exists(file)) return 0;
  const std::string text = read_text(file);
  return static_cast<std::size_t>(std::count(text.begin(), text.end(), '\n'));
}

void wait_for_lines(const std::filesystem::path& file, std::size_t count) {
  for (int i = 0; i < 3000 && num_lines(file) < count; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  REQUIRE(num_lines(file) >= count);
}

void require_equal_runs(const std::filesystem::path& a, const std::filesystem::path& b) {
  REQUIRE(metrics_of(a) == metrics_of(b));
  REQUIRE(read_text(a / "experts.jsonl") == read_text(b / "experts.jsonl"));
  REQUIRE(changed_tensors(a / "final", b / "final").empty());
}

// Nothing but what interface.md lists: no temporary file or folder.
void require_no_leftovers(const std::filesystem::path& run_folder) {
  for (const auto& entry : std::filesystem::recursive_directory_iterator(run_folder)) {
    INFO(entry.path());
    REQUIRE_FALSE(entry.path().filename().string().starts_with("."));
  }
}

void write_mixture(const TinyRun& run) {
  std::string texts, questions;
  for (int i = 0; i < 30; ++i) {
    const auto length = static_cast<std::size_t>(20 + (i * 37) % 300);
    texts += Json{{"text", std::to_string(i) + std::string(length, static_cast<char>('a' + i % 26))}}.dump() + "\n";
  }
  for (int i = 0; i < 60; ++i) {
    const std::string answer(static_cast<std::size_t>(1 + (i * i) % 90), static_cast<char>('a' + i % 26));
    questions += Json{{"query", "Question " + std::to_string(i)}, {"response", answer}}.dump() + "\n";
  }
  write_text(run.folder / "texts.jsonl", texts);
  std::string packed(ZSTD_compressBound(questions.size()), '\0');
  packed.resize(ZSTD_compress(packed.data(), packed.size(), questions.data(), questions.size(), 3));
  write_text(run.folder / "questions.jsonl.zst", packed);
}

// The recipe's own source, of weight 1, and the two of write_mixture.
Recipe mixture_recipe(const TinyRun& run) {
  Recipe recipe = run.recipe();
  recipe.data.max_seq_len = 200;
  recipe.data.shuffle_buffer = 16;
  recipe.data.train[0].weight = 1.0;
  DataRecipe texts, questions;
  texts.path = (run.folder / "texts.jsonl").string(), texts.format = RecordFormat::kText, texts.weight = 1.5;
  questions.path = (run.folder / "questions.jsonl.zst").string(), questions.format = RecordFormat::kMetaMath;
  questions.prompt_template = "chatml", questions.weight = 0.75;
  recipe.data.train.push_back(texts);
  recipe.data.train.push_back(questions);
  return recipe;
}

}  // namespace

TEST_CASE("faults: killed at 20 random moments, the run ends as if nothing had happened", "[finetune]") {
  require_program();
  const TinyRun run("steps: 40\ncheckpoint: {every_steps: 1, keep_last: 2}\neval: {every_steps: 7}\n");
  run_finetune(run.into("whole"), {});
  std::mt19937 random(20);
  std::uniform_int_distribution<int> milliseconds(150, 900);
  for (int i = 0; i < 20; ++i) {
    const int moment = milliseconds(random);
    INFO("kill " << i << " after " << moment << " ms");
    Child child(run, "killed");
    std::this_thread::sleep_for(std::chrono::milliseconds(moment));
    child.send(SIGKILL);
    child.wait();
    const auto found = newest_checkpoint(run.folder / "killed");
    if (!found) continue;
    REQUIRE_NOTHROW(load_decoder(Checkpoint::open(found->path), {}));
  }
  Child last(run, "killed");
  const int code = last.wait();
  INFO(last.log());
  REQUIRE(code == 0);
  require_equal_runs(run.folder / "whole", run.folder / "killed");
  require_no_leftovers(run.folder / "killed");
}

// Three sources by weight, one of them compressed, one of texts that come in parts; the position is inside an epoch.
TEST_CASE("faults: killed behind step 83 of 200 over three sources, the run ends as if nothing had happened",
          "[finetune]") {
  require_program();
  const TinyRun run("steps: 200\ncheckpoint: {every_steps: 83}\n");
  write_mixture(run);
  Recipe recipe = mixture_recipe(run);
  for (const int num_threads : {1, 4}) {
    recipe.data.tokenizer_threads = num_threads;
    write_text(run.folder / "a.yaml", to_yaml(recipe));
    const std::string killed = "killed" + std::to_string(num_threads), whole = "whole" + std::to_string(num_threads);
    run_finetune(run.into(whole), {});
    {
      Child child(run, killed);
      for (int i = 0; i < 6000 && !std::filesystem::exists(run.folder / killed / "checkpoint-83"); ++i)
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
      child.send(SIGKILL);
      REQUIRE(child.wait() == 128 + SIGKILL);
    }
    const Json state = Json::parse(read_text(run.folder / killed / "checkpoint-83" / "trainer_state.json"));
    REQUIRE(state.at("next_index") > 0);
    REQUIRE_FALSE(state.at("taken").empty());
    Child last(run, killed);
    const int code = last.wait();
    INFO(last.log());
    REQUIRE(code == 0);
    REQUIRE_THAT(last.log(), Catch::Contains("at step 83"));
    require_equal_runs(run.folder / whole, run.folder / killed);
    require_equal_runs(run.folder / "whole1", run.folder / whole);
  }
}

TEST_CASE("faults: SIGINT and SIGTERM finish the step, save, and exit 130 and 143", "[finetune]") {
  require_program();
  const TinyRun run("steps: 300\neval: {every_steps: 50}\n");
  run_finetune(run.into("whole"), {});
  for (const auto& [signal, expected] : {std::pair{SIGINT, 130}, {SIGTERM, 143}}) {
    const std::string name = "interrupted" + std::to_string(signal);
    Child child(run, name);
    wait_for_lines(run.folder / name / "metrics.jsonl", 5);
    child.send(signal);
    const int code = child.wait();
    INFO(child.log());
    REQUIRE(code == expected);
    REQUIRE_THAT(child.log(), Catch::Contains("interrupted after step") && Catch::Contains("go on with --resume"));
    REQUIRE(newest_checkpoint(run.folder / name).has_value());
    REQUIRE(Child(run, name).wait() == 0);
    require_equal_runs(run.folder / "whole", run.folder / name);
  }
}

TEST_CASE("faults: without room for a checkpoint the run stops with one line, and the last one stays", "[finetune]") {
  require_program();
  const TinyRun run("steps: 12\ncheckpoint: {every_steps: 4, keep_last: 1}\n");
  run_finetune(run.into("whole"), {});
  int steps = 0;
  run_finetune(run.into("full"), {.should_stop = [&steps] { return ++steps == 5; }});
  const auto before = newest_checkpoint(run.folder / "full");
  REQUIRE(before->step == 5);
  const auto smallest = std::filesystem::file_size(before->path / "trainer_state.safetensors") / 2;
  Child child(run, "full", smallest);
  const int code = child.wait();
  INFO(child.log());
  REQUIRE(code == 3);
  REQUIRE_THAT(child.log(), Catch::Contains("checkpoint-8") && Catch::Contains("File too large"));
  REQUIRE(newest_checkpoint(run.folder / "full")->step == 5);
  require_no_leftovers(run.folder / "full");
  REQUIRE(Child(run, "full").wait() == 0);
  require_equal_runs(run.folder / "whole", run.folder / "full");
}

TEST_CASE("faults: a folder that cannot be written is refused before the first step", "[finetune]") {
  const TinyRun run("steps: 2\n");
  write_text(run.folder / "file", "");
  for (const std::string& folder : {std::string("/proc/dagmoe/run"), (run.folder / "file" / "run").string()}) {
    try {
      run_finetune(run.recipe({"output_dir=" + folder}), {});
      FAIL("expected InputError");
    } catch (const InputError& error) {
      REQUIRE_THAT(error.what(), Catch::Contains(folder) && Catch::Contains("cannot be created"));
    }
  }
}

TEST_CASE("faults: a damaged newest checkpoint is named and the one before it used", "[finetune]") {
  const TinyRun run("steps: 8\ncheckpoint: {every_steps: 2, keep_last: 3}\n");
  run_finetune(run.into("whole"), {});
  const std::vector<std::string> files{"model.safetensors", "trainer_state.safetensors", "trainer_state.json",
                                       "config.json"};
  for (const auto& file : files) {
    INFO(file);
    const std::string name = "damaged_" + file;
    int steps = 0;
    run_finetune(run.into(name), {.should_stop = [&steps] { return ++steps == 7; }});
    const auto damaged = run.folder / name / "checkpoint-7" / file;
    std::filesystem::resize_file(damaged, std::filesystem::file_size(damaged) / 2);
    REQUIRE_THAT(*checkpoint_damage(damaged.parent_path()), Catch::Contains(file));
    REQUIRE(newest_checkpoint(run.folder / name)->step == 6);
    REQUIRE(run_finetune(run.into(name), {.resume = true}).steps == 8);
    require_equal_runs(run.folder / "whole", run.folder / name);
  }
  // A missing list of files is damage too, and with nothing whole left the run does not silently start over.
  std::filesystem::remove_all(run.folder / "whole" / "checkpoint-2");
  std::filesystem::remove_all(run.folder / "whole" / "checkpoint-4");
  std::filesystem::remove(run.folder / "whole" / "checkpoint-6" / "checkpoint.json");
  REQUIRE_THROWS_WITH(run_finetune(run.into("whole"), {.resume = true}),
                      Catch::Contains("checkpoint-6 is damaged") && Catch::Contains("remove the folder to start over"));
}

TEST_CASE("faults: resuming on other data is refused, with other settings it is said aloud", "[finetune]") {
  const TinyRun run("steps: 6\n");
  int steps = 0;
  run_finetune(run.recipe(), {.should_stop = [&steps] { return ++steps == 3; }});
  write_records(run.folder / "train.jsonl", 41);
  REQUIRE_THROWS_WITH(run_finetune(run.recipe(), {.resume = true}),
                      Catch::Contains("train.jsonl: is not the file that this run began with"));
  write_records(run.folder / "train.jsonl", 40);
  // Another set of parameters is another run.
  REQUIRE_THROWS_WITH(run_finetune(run.recipe({"trainable=[router]"}), {.resume = true}),
                      Catch::Contains("trained other parameters or used another optimizer"));
  REQUIRE(run_finetune(run.recipe(), {.resume = true}).steps == 6);
}
