#include "base/atomic_file.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/types.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/text.h"

namespace dagmoe {
namespace {

namespace fs = std::filesystem;

std::string reason_and_hint(int error) {
  std::string hint;
  if (error == ENOSPC || error == EDQUOT) hint = "; free some space";
  if (error == EACCES || error == EPERM || error == EROFS) hint = "; check the folder's permissions";
  return std::generic_category().message(error) + hint;
}

[[noreturn]] void throw_unwritable(const fs::path& path, int error) {
  const std::string hint = error == ENOENT ? "; create the folder first" : "";
  throw InputError(str(path.string(), ": cannot write: ", reason_and_hint(error), hint));
}

// "runs/final/" names the same folder as "runs/final", but its last component is empty.
fs::path without_trailing_separator(const fs::path& path) { return path.has_filename() ? path : path.parent_path(); }

struct Descriptor {
  int number = -1;
  ~Descriptor() {
    if (number >= 0) ::close(number);
  }
};

fs::path folder_of(const fs::path& target) { return target.has_parent_path() ? target.parent_path() : fs::path("."); }

// What is being written beside `target` is called ".<name>.tmp-<pid>", then "-1" and so on when that name is taken.
std::string temporary_prefix(const fs::path& target) { return "." + target.filename().string() + ".tmp-"; }

fs::path temporary_path(const fs::path& target, int attempt) {
  std::string name = temporary_prefix(target) + std::to_string(::getpid());
  if (attempt > 0) name += "-" + std::to_string(attempt);
  return folder_of(target) / name;
}

// Held by whoever writes under a temporary name; the system lets go of it however the process ends.
bool try_lock(int descriptor) { return ::flock(descriptor, LOCK_EX | LOCK_NB) == 0; }

bool can_be_locked(const fs::path& path) {
  const Descriptor opened{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
  return opened.number >= 0 && try_lock(opened.number);
}

// The process id alone does not tell: in a container every run tends to get the same one.
bool is_left_by_dead_process(const fs::path& path, const std::string& prefix) {
  const std::string name = path.filename().string();
  if (!name.starts_with(prefix)) return false;
  pid_t pid = 0;
  const char* const end = name.data() + name.size();
  const auto [stop, error] = std::from_chars(name.data() + prefix.size(), end, pid);
  if (error != std::errc{} || pid <= 0 || (stop != end && *stop != '-')) return false;
  if (pid == ::getpid()) return can_be_locked(path);
  return ::kill(pid, 0) != 0 && errno == ESRCH;
}

// A process that was killed while writing leaves its temporary file or folder, which can be as large as a model.
void remove_stale(const fs::path& target) {
  const std::string prefix = temporary_prefix(target);
  std::vector<fs::path> stale;
  std::error_code error;
  for (fs::directory_iterator entry(folder_of(target), error), end; !error && entry != end; entry.increment(error)) {
    if (is_left_by_dead_process(entry->path(), prefix)) stale.push_back(entry->path());
  }
  for (const auto& path : stale) fs::remove_all(path, error);
}

void sync_path(const fs::path& path, int flags) {
  const Descriptor opened{::open(path.c_str(), O_RDONLY | O_CLOEXEC | flags)};
  if (opened.number < 0) throw_unwritable(path, errno);
  // Some file systems cannot sync a folder and say so with EINVAL.
  if (::fsync(opened.number) != 0 && errno != EINVAL) throw_unwritable(path, errno);
}

void sync_folder(const fs::path& folder) { sync_path(folder, O_DIRECTORY); }

// Children before their folder, so that a folder's entries are on disk only when what they name is.
void sync_tree(const fs::path& folder) {
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.is_symlink()) continue;
    if (entry.is_directory()) sync_tree(entry.path());
    if (entry.is_regular_file()) sync_path(entry.path(), 0);
  }
  sync_folder(folder);
}

fs::path make_temporary_folder(const fs::path& target) {
  for (int attempt = 0;; ++attempt) {
    const fs::path folder = temporary_path(target, attempt);
    std::error_code error;
    if (fs::create_directory(folder, error)) return folder;
    if (error) throw_unwritable(target, error.value());
  }
}

// Puts the finished folder in the place of the one at `target` and returns where that one is now.
fs::path swap_folders(const fs::path& finished, const fs::path& target) {
  if (::renameat2(AT_FDCWD, finished.c_str(), AT_FDCWD, target.c_str(), RENAME_EXCHANGE) == 0) return finished;
  if (errno != EINVAL && errno != ENOSYS) throw_unwritable(target, errno);
  // Network file systems do not know the exchange. Between the two renames the target is absent, so the old folder gets
  // a name that nobody takes for a leftover.
  const fs::path old = folder_of(target) / str(".", target.filename().string(), ".old-", ::getpid());
  if (::rename(target.c_str(), old.c_str()) != 0) throw_unwritable(target, errno);
  if (::rename(finished.c_str(), target.c_str()) != 0) {
    const int error = errno;
    ::rename(old.c_str(), target.c_str());
    throw_unwritable(target, error);
  }
  return old;
}

void check_folder_target(const fs::path& target, FolderOptions options) {
  std::error_code error;
  const bool exists = fs::exists(target, error);
  if (error) throw_unwritable(target, error.value());
  if (!exists) return;
  if (!options.replace) throw InputError(target.string() + ": exists already; choose another name or remove it first");
  if (!fs::is_directory(target)) throw InputError(target.string() + ": found a file, expected a folder to replace");
}

void place_folder(const fs::path& finished, const fs::path& target, FolderOptions options) {
  sync_tree(finished);
  // Another process may have made it meanwhile.
  check_folder_target(target, options);
  if (!fs::exists(target)) {
    if (::rename(finished.c_str(), target.c_str()) != 0) throw_unwritable(target, errno);
    return sync_folder(folder_of(target));
  }
  const fs::path old = swap_folders(finished, target);
  sync_folder(folder_of(target));
  fs::remove_all(old);
}

}  // namespace

AtomicFile::AtomicFile(fs::path target) : target_(std::move(target)) {
  remove_stale(target_);
  for (int attempt = 0; descriptor_ < 0; ++attempt) {
    temporary_ = temporary_path(target_, attempt);
    descriptor_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (descriptor_ < 0 && errno != EEXIST) throw_unwritable(target_, errno);
  }
  try_lock(descriptor_);
}

AtomicFile::~AtomicFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
}

void AtomicFile::write(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(descriptor_, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) throw_unwritable(target_, errno);
    bytes = bytes.subspan(static_cast<std::size_t>(written));
  }
}

void AtomicFile::write(std::string_view text) { write(std::as_bytes(std::span(text))); }

void AtomicFile::commit() {
  if (::fsync(descriptor_) != 0) throw_unwritable(target_, errno);
  if (::close(std::exchange(descriptor_, -1)) != 0) throw_unwritable(target_, errno);
  if (::rename(temporary_.c_str(), target_.c_str()) != 0) throw_unwritable(target_, errno);
  temporary_.clear();
  sync_folder(folder_of(target_));
}

void write_file_atomically(const fs::path& target, std::string_view text) {
  AtomicFile file(target);
  file.write(text);
  file.commit();
}

void write_folder_atomically(const fs::path& given_target, FolderOptions options,
                             const std::function<void(const fs::path&)>& fill) {
  const fs::path target = without_trailing_separator(given_target);
  check_folder_target(target, options);
  std::error_code error;
  fs::create_directories(folder_of(target), error);
  if (error) throw_unwritable(target, error.value());
  remove_stale(target);
  const fs::path temporary = make_temporary_folder(target);
  const Descriptor lock{::open(temporary.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECTORY)};
  try_lock(lock.number);
  try {
    fill(temporary);
    place_folder(temporary, target, options);
  } catch (const fs::filesystem_error& problem) {
    fs::remove_all(temporary, error);
    throw InputError(str(target.string(), ": cannot write: ", problem.path1().string(), ": ",
                         reason_and_hint(problem.code().value())));
  } catch (...) {
    fs::remove_all(temporary, error);
    throw;
  }
}

}  // namespace dagmoe
