// One broken file and what a user's command does with it: the outcome, the memory it took, the form of the refusal.
#pragma once
#include <malloc.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <new>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/text.h"
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

namespace dagmoe::testing {

/// What operator new handed out since reset(), without LibTorch's own memory for weights; under a sanitizer all that
/// malloc did.
struct AllocationMeter {
  std::atomic<std::int64_t> live{0}, peak{0}, largest{0};

  void reset() { live = 0, peak = 0, largest = 0; }
  void add(std::int64_t bytes) {
    const std::int64_t now = live.fetch_add(bytes, std::memory_order_relaxed) + bytes;
    if (now > peak.load(std::memory_order_relaxed)) peak.store(now, std::memory_order_relaxed);
    if (bytes > largest.load(std::memory_order_relaxed)) largest.store(bytes, std::memory_order_relaxed);
  }
  void remove(std::int64_t bytes) { live.fetch_sub(bytes, std::memory_order_relaxed); }
};
inline AllocationMeter allocation_meter;

/// A parsed document costs up to some 50 bytes a byte of its text: 16 bytes a value and as much again while its vector
/// grows, 32 and more a string, once more in the structure that is made of it. What does not grow with the file
/// (tables of characters, a token vocabulary's hash tables, a decoder's list of layers) stays well below the constant.
inline std::int64_t allowed_bytes(std::int64_t file_bytes) { return 64 * file_bytes + (std::int64_t{32} << 20); }

#ifdef __SANITIZE_ADDRESS__
inline constexpr double kMaxSeconds = 12.0;
#else
inline constexpr double kMaxSeconds = 2.0;
#endif
inline constexpr unsigned kHangSeconds = 120;  ///< by the clock, on a busy machine
inline constexpr std::size_t kMaxLineBytes = 2000, kMaxLines = 24;

/// What a case gives to the program. `call` does what a command would do and throws what it would print; `use` goes on
/// with what was accepted.
struct HostileSubject {
  std::filesystem::path path;  ///< a message's lines begin with it: the file, or its folder
  std::int64_t bytes = 0;      ///< of the broken file and those beside it
  std::function<void()> call, use = [] {};
};

struct HostileOutcome {
  bool is_accepted = false;
  std::string message;  ///< of the refusal
  std::string fault;    ///< what is wrong with the outcome; empty when nothing is
  std::int64_t peak = 0, largest = 0;
  double seconds = 0.0;
};

/// Why the message of a refusal is not one printable line a problem, each with a file and a reason; "" when it is.
inline std::string message_fault(const std::string& message, const std::string& path) {
  const std::vector<std::string> lines = split(message, '\n');
  if (lines.size() > kMaxLines) return str("the message has ", lines.size(), " lines");
  for (const std::string& line : lines) {
    if (line.size() > kMaxLineBytes) return str("a line has ", line.size(), " bytes");
    if (!line.starts_with(path) || line.size() < path.size() + 4) return "a line does not begin with the path";
    if (!is_valid_utf8(line)) return "a line is not valid UTF-8";
    for (std::size_t i = 0; i < line.size(); ++i) {
      const auto byte = static_cast<unsigned char>(line[i]);
      const bool is_c1 = byte == 0xC2 && static_cast<unsigned char>(line[i + 1]) < 0xA0;
      if (byte < 0x20 || byte == 0x7F || is_c1) return "a line has a control character";
    }
  }
  return "";
}

inline double thread_seconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

/// The case that runs, for whoever ends the program in its midst: a sanitizer's report or the alarm clock.
inline std::array<char, 128> running_case{};
inline void print_running_case() {
  constexpr std::string_view kText = "\nhostile file, replay with DAGMOE_HOSTILE=";
  [[maybe_unused]] ssize_t written = ::write(STDERR_FILENO, kText.data(), kText.size());
  written = ::write(STDERR_FILENO, running_case.data(), std::string_view(running_case.data()).size());
  written = ::write(STDERR_FILENO, "\n", 1);
}

inline void watch_case(const std::string& name) {
  running_case.fill('\0');
  name.copy(running_case.data(), running_case.size() - 1);
  ::signal(SIGALRM, [](int) {
    print_running_case();
    ::_exit(1);
  });
  ::alarm(kHangSeconds);
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_set_death_callback(print_running_case);
#endif
}

inline HostileOutcome run_hostile(const HostileSubject& subject) {
  HostileOutcome outcome;
  const double start = thread_seconds();
  allocation_meter.reset();
  try {
    subject.call();
    outcome.is_accepted = true;
  } catch (const InputError& error) {
    outcome.message = error.what();
    outcome.fault = message_fault(outcome.message, subject.path.string());
    if (static_cast<int>(error.exit_code()) != 3) outcome.fault = "the exit code is not 3";
  } catch (const std::exception& error) {
    outcome.message = error.what();
    outcome.fault = "the exception is no InputError";
  }
  outcome.peak = allocation_meter.peak, outcome.largest = allocation_meter.largest;
  outcome.seconds = thread_seconds() - start;
  if (outcome.fault.empty() && outcome.peak > allowed_bytes(subject.bytes)) {
    outcome.fault = str("took ", outcome.peak, " bytes of memory for a file of ", subject.bytes);
  }
  if (outcome.fault.empty() && outcome.seconds > kMaxSeconds) outcome.fault = str("took ", outcome.seconds, " s");
  if (!outcome.is_accepted) return outcome;
  try {
    subject.use();
  } catch (const std::exception& error) {
    outcome.message = error.what();
    outcome.fault = "what was accepted cannot be used";
  }
  return outcome;
}

}  // namespace dagmoe::testing
