#include "base/progress.h"

#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <array>
#include <string>

#include "base/log.h"
#include "tests/base/helpers.h"
#include "tests/support/catch.h"

using namespace dagmoe;
using namespace dagmoe::testing;

namespace {

// What `action` writes to stderr while that is a file.
std::string stderr_as_file(const std::function<void()>& action) {
  const TemporaryFolder folder;
  const int file = ::open((folder / "stderr").c_str(), O_WRONLY | O_CREAT, 0600);
  const auto result = run_in_child([&] {
    ::dup2(file, STDERR_FILENO);
    action();
    return std::string();
  });
  ::close(file);
  return read_text(folder / "stderr");
}

// What `action` writes to stderr while that is a terminal of `columns` columns. The terminal turns "\n" into "\r\n".
std::string stderr_as_terminal(unsigned short columns, const std::function<void()>& action) {
  const int terminal = ::posix_openpt(O_RDWR | O_NOCTTY);
  if (terminal < 0 || ::grantpt(terminal) != 0 || ::unlockpt(terminal) != 0) return "no terminal";
  const int other_end = ::open(::ptsname(terminal), O_RDWR | O_NOCTTY);
  const winsize size = {24, columns, 0, 0};
  ::ioctl(other_end, TIOCSWINSZ, &size);
  const auto result = run_in_child([&] {
    ::dup2(other_end, STDERR_FILENO);
    action();
    std::string text;
    std::array<char, 4096> buffer;
    // The kernel hands over what was written a little later.
    for (pollfd ready = {terminal, POLLIN, 0}; ::poll(&ready, 1, 200) == 1;) {
      const ssize_t count = ::read(terminal, buffer.data(), buffer.size());
      text.append(buffer.data(), count > 0 ? static_cast<std::size_t>(count) : 0);
    }
    return text;
  });
  ::close(other_end);
  ::close(terminal);
  return result.text;
}

}  // namespace

TEST_CASE("log: lines go to stderr and warnings are marked", "[base]") {
  CHECK(stderr_as_file([] {
          log_info("hello");
          log_warning("'x' has no effect");
        }) == "hello\nwarning: 'x' has no effect\n");
}

TEST_CASE("log: on a terminal a line first erases what stands there", "[base]") {
  const std::string text = stderr_as_terminal(80, [] { log_info("hello"); });
  if (text == "no terminal") DAGMOE_SKIP("the system gives no pseudo terminal");
  CHECK(text == "\r\x1b[Khello\r\n");
}

TEST_CASE("progress: in a file a short job leaves one line, at its end", "[base]") {
  CHECK(stderr_as_file([] {
          Progress progress("train", 200);
          for (int step = 1; step <= 200; ++step) progress.update(step, "loss 2.0");
          progress.finish("loss 1.5");
        }) == "train  200/200  100%  0:00  loss 1.5\n");
}

TEST_CASE("progress: without a total it counts, and without a finish it leaves a file alone", "[base]") {
  CHECK(stderr_as_file([] {
          Progress progress("read", 0);
          progress.update(7, "");
          progress.finish("");
        }) == "read  7  0:00\n");
  CHECK(stderr_as_file([] {
          Progress progress("read", 10);
          progress.update(7, "");
        }).empty());
}

TEST_CASE("progress: a terminal's line is redrawn in place and closed by finish", "[base]") {
  const std::string text = stderr_as_terminal(100, [] {
    Progress progress("train", 4);
    progress.update(1, "loss 2.0");
    ::usleep(150'000);
    progress.update(2, "loss 1.8");
    progress.update(3, "too soon to be drawn");
    progress.finish("loss 1.5");
  });
  if (text == "no terminal") DAGMOE_SKIP("the system gives no pseudo terminal");
  CHECK(text ==
        "\r\x1b[Ktrain  [######..................]  1/4  25%  0:00  ETA 0:00  loss 2.0"
        "\r\x1b[Ktrain  [############............]  2/4  50%  0:00  ETA 0:00  loss 1.8"
        "\r\x1b[Ktrain  [##################......]  3/4  75%  0:00  loss 1.5\r\n");
}

TEST_CASE("progress: a line is cut to the terminal's width", "[base]") {
  const std::string text = stderr_as_terminal(20, [] {
    Progress progress("\xC3\xA9tape", 4);
    progress.update(1, "loss 2.0");
  });
  if (text == "no terminal") DAGMOE_SKIP("the system gives no pseudo terminal");
  CHECK(text == "\r\x1b[K\xC3\xA9tape  [######.....\r\n");
}
