#include "base/atomic_file.h"

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <string>

#include "base/text.h"
#include "tests/base/helpers.h"
#include "tests/support/catch.h"

using namespace dagmoe;
using namespace dagmoe::testing;
namespace fs = std::filesystem;

namespace {

constexpr FolderOptions kReplace = {.replace = true};

using Names = std::vector<std::string>;

// No process has this id: the kernel's largest is 2^22.
constexpr const char* kDeadPid = "99999999";

// From here on renameat2 fails in this process as it does on file systems without exchange.
void forbid_renameat2() {
  std::array<sock_filter, 4> filter = {{BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),  // the system call's number
                                        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_renameat2, 0, 1),
                                        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EINVAL),
                                        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)}};
  const sock_fprog program = {static_cast<unsigned short>(filter.size()), filter.data()};
  ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
  ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}

// Makes `folder` a file system of 64 KiB that only this process sees; false when the system does not let us.
bool mount_tiny_file_system(const fs::path& folder) {
  if (::unshare(CLONE_NEWNS) != 0 && ::unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0) return false;
  ::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr);
  return ::mount("tmpfs", folder.c_str(), "tmpfs", 0, "size=64k") == 0;
}

}  // namespace

TEST_CASE("atomic file: the target appears with commit and nothing else stays", "[base]") {
  const TemporaryFolder folder;
  AtomicFile file(folder / "x.txt");
  file.write("one ");
  file.write(std::as_bytes(std::span("two", 3)));
  CHECK_FALSE(fs::exists(folder / "x.txt"));
  file.commit();
  CHECK(read_text(folder / "x.txt") == "one two");
  CHECK(names_in(folder.path()) == Names{"x.txt"});
}

TEST_CASE("atomic file: without commit the old file stays and the temporary one goes", "[base]") {
  const TemporaryFolder folder;
  write_text(folder / "x.txt", "old");
  {
    AtomicFile file(folder / "x.txt");
    file.write("new");
    CHECK(names_in(folder.path()).size() == 2);
  }
  CHECK(read_text(folder / "x.txt") == "old");
  CHECK(names_in(folder.path()) == Names{"x.txt"});
}

TEST_CASE("atomic file: an existing file is replaced as a whole, also by a shorter and an empty one", "[base]") {
  const TemporaryFolder folder;
  for (const char* const text : {"long text", "short", ""}) {
    write_file_atomically(folder / "x.txt", text);
    CHECK(read_text(folder / "x.txt") == text);
  }
}

TEST_CASE("atomic file: two writers of one target do not disturb each other", "[base]") {
  const TemporaryFolder folder;
  AtomicFile first(folder / "x.txt"), second(folder / "x.txt");
  first.write("first");
  second.write("second");
  first.commit();
  CHECK(read_text(folder / "x.txt") == "first");
  second.commit();
  CHECK(read_text(folder / "x.txt") == "second");
  CHECK(names_in(folder.path()) == Names{"x.txt"});
}

TEST_CASE("atomic file: the leftover of a dead process is removed, that of a living one is not", "[base]") {
  const TemporaryFolder folder;
  write_text(folder / (std::string(".x.txt.tmp-") + kDeadPid), "dead");
  write_text(folder / (std::string(".x.txt.tmp-") + kDeadPid + "-1"), "dead");
  write_text(folder / ".x.txt.tmp-1", "alive");
  write_text(folder / ".x.txt.tmp-abc", "not ours");
  write_text(folder / (std::string(".y.txt.tmp-") + kDeadPid), "another target");
  write_file_atomically(folder / "x.txt", "new");
  CHECK(names_in(folder.path()) ==
        Names{".x.txt.tmp-1", ".x.txt.tmp-abc", std::string(".y.txt.tmp-") + kDeadPid, "x.txt"});
}

TEST_CASE("atomic file: a leftover with our own process id is removed unless somebody holds it", "[base]") {
  const TemporaryFolder folder;
  write_text(folder / str(".x.txt.tmp-", ::getpid()), "from an earlier container");
  AtomicFile file(folder / "x.txt");
  write_file_atomically(folder / "x.txt", "other");
  file.write("mine");
  file.commit();
  CHECK(read_text(folder / "x.txt") == "mine");
  CHECK(names_in(folder.path()) == Names{"x.txt"});
}

TEST_CASE("atomic file: a missing folder is an input error that says what to do", "[base]") {
  const TemporaryFolder folder;
  CHECK(message_of<InputError>([&] { write_file_atomically(folder / "none/x.txt", ""); }) ==
        (folder / "none/x.txt").string() + ": cannot write: No such file or directory; create the folder first");
}

TEST_CASE("atomic file: a folder at the target's place is an input error and leaves no temporary file", "[base]") {
  const TemporaryFolder folder;
  fs::create_directory(folder / "x");
  CHECK(message_of<InputError>([&] { write_file_atomically(folder / "x", "text"); }) ==
        (folder / "x").string() + ": cannot write: Is a directory");
  CHECK(names_in(folder.path()) == Names{"x"});
}

TEST_CASE("atomic file: a folder without write permission is an input error", "[base]") {
  const TemporaryFolder folder;
  fs::permissions(folder.path(),
                  fs::perms::owner_read | fs::perms::owner_exec | fs::perms::others_read | fs::perms::others_exec);
  const auto result = run_in_child([&] {
    // For root permissions do not count; 65534 is "nobody".
    if (::geteuid() == 0 && ::seteuid(65534) != 0) throw InternalError("seteuid failed");
    write_file_atomically(folder / "x.txt", "text");
    return std::string("(nothing was thrown)");
  });
  CHECK(result.text ==
        (folder / "x.txt").string() + ": cannot write: Permission denied; check the folder's permissions");
}

TEST_CASE("atomic file: a full disk is an input error, the old file stays and the temporary one goes", "[base]") {
  const TemporaryFolder folder;
  const auto result = run_in_child([&]() -> std::string {
    if (!mount_tiny_file_system(folder.path())) return "cannot mount";
    write_file_atomically(folder / "x.txt", "old");
    const std::string message =
        message_of<InputError>([&] { write_file_atomically(folder / "x.txt", std::string(1'000'000, 'x')); });
    return message + " | " + read_text(folder / "x.txt") + " | " + str(names_in(folder.path()).size());
  });
  if (result.text == "cannot mount") DAGMOE_SKIP("no permission to mount a small file system");
  CHECK(result.text ==
        (folder / "x.txt").string() + ": cannot write: No space left on device; free some space | old | 1");
}

TEST_CASE("atomic file: a write that fails half way leaves the old file and no temporary one", "[base]") {
  const TemporaryFolder folder;
  write_text(folder / "x.txt", "old");
  const auto result = run_in_child([&] {
    ::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit = {1000, 1000};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    write_file_atomically(folder / "x.txt", std::string(5000, 'x'));
    return std::string("(nothing was thrown)");
  });
  CHECK(result.text == (folder / "x.txt").string() + ": cannot write: File too large");
  CHECK(read_text(folder / "x.txt") == "old");
  CHECK(names_in(folder.path()) == Names{"x.txt"});
}

TEST_CASE("atomic file: a mapping of the old file keeps its bytes while the file is replaced", "[base]") {
  const TemporaryFolder folder;
  write_text(folder / "x.txt", "old");
  std::ifstream old(folder / "x.txt");
  write_file_atomically(folder / "x.txt", "new");
  CHECK(std::string(std::istreambuf_iterator<char>(old), {}) == "old");
}

TEST_CASE("atomic folder: it appears whole, with nested folders, under its name", "[base]") {
  const TemporaryFolder folder;
  write_folder_atomically(folder / "run/final/", {}, [&](const fs::path& inside) {
    CHECK_FALSE(fs::exists(folder / "run/final"));
    write_text(inside / "a", "1");
    fs::create_directory(inside / "sub");
    write_text(inside / "sub/b", "2");
    fs::create_symlink("a", inside / "link");
  });
  CHECK(read_text(folder / "run/final/a") == "1");
  CHECK(read_text(folder / "run/final/sub/b") == "2");
  CHECK(read_text(folder / "run/final/link") == "1");
  CHECK(names_in(folder / "run") == Names{"final"});
}

TEST_CASE("atomic folder: a relative target lands in the working folder", "[base]") {
  const TemporaryFolder folder;
  const auto result = run_in_child([&] {
    fs::current_path(folder.path());
    write_folder_atomically("out", {}, [](const fs::path& inside) { write_text(inside / "a", "1"); });
    return read_text("out/a");
  });
  CHECK(result.text == "1");
}

TEST_CASE("atomic folder: an existing one is refused before anything is filled", "[base]") {
  const TemporaryFolder folder;
  fs::create_directory(folder / "out");
  bool was_filled = false;
  CHECK(message_of<InputError>([&] {
          write_folder_atomically(folder / "out", {}, [&](const fs::path&) { was_filled = true; });
        }) == (folder / "out").string() + ": exists already; choose another name or remove it first");
  CHECK_FALSE(was_filled);
}

TEST_CASE("atomic folder: one that somebody else makes during fill is not replaced either", "[base]") {
  const TemporaryFolder folder;
  CHECK(message_of<InputError>([&] {
          write_folder_atomically(folder / "out", {}, [&](const fs::path&) {
            fs::create_directory(folder / "out");
            write_text(folder / "out/theirs", "1");
          });
        }) == (folder / "out").string() + ": exists already; choose another name or remove it first");
  CHECK(names_in(folder / "out") == Names{"theirs"});
  CHECK(names_in(folder.path()) == Names{"out"});
}

TEST_CASE("atomic folder: with replace the new content takes the place of all the old", "[base]") {
  const TemporaryFolder folder;
  fs::create_directory(folder / "out");
  write_text(folder / "out/old", "1");
  write_folder_atomically(folder / "out", kReplace, [&](const fs::path& inside) {
    CHECK(read_text(folder / "out/old") == "1");
    write_text(inside / "new", "2");
  });
  CHECK(names_in(folder / "out") == Names{"new"});
  CHECK(names_in(folder.path()) == Names{"out"});
}

TEST_CASE("atomic folder: replace also works on file systems that cannot exchange two names", "[base]") {
  const TemporaryFolder folder;
  fs::create_directory(folder / "out");
  write_text(folder / "out/old", "1");
  const auto result = run_in_child([&] {
    forbid_renameat2();
    write_folder_atomically(folder / "out", kReplace, [&](const fs::path& inside) { write_text(inside / "new", "2"); });
    return std::string("done");
  });
  CHECK(result.text == "done");
  CHECK(names_in(folder / "out") == Names{"new"});
  CHECK(names_in(folder.path()) == Names{"out"});
}

TEST_CASE("atomic folder: a file at the target's place is never replaced by a folder", "[base]") {
  const TemporaryFolder folder;
  write_text(folder / "out", "file");
  CHECK(message_of<InputError>([&] { write_folder_atomically(folder / "out", kReplace, [](const fs::path&) {}); }) ==
        (folder / "out").string() + ": found a file, expected a folder to replace");
  CHECK(read_text(folder / "out") == "file");
}

TEST_CASE("atomic folder: when fill throws, its exception passes and nothing is left behind", "[base]") {
  const TemporaryFolder folder;
  CHECK(message_of<NumericsError>([&] {
          write_folder_atomically(folder / "out", {}, [](const fs::path& inside) {
            write_text(inside / "a", "1");
            throw NumericsError("loss is nan");
          });
        }) == "loss is nan");
  CHECK(names_in(folder.path()).empty());
}

TEST_CASE("atomic folder: a file system error in fill becomes an input error", "[base]") {
  const TemporaryFolder folder;
  CHECK(message_of<InputError>([&] {
          write_folder_atomically(folder / "out", {},
                                  [&](const fs::path&) { fs::copy_file(folder / "none", folder / "other"); });
        }) ==
        (folder / "out").string() + ": cannot write: " + (folder / "none").string() + ": No such file or directory");
  CHECK(names_in(folder.path()).empty());
}

TEST_CASE("atomic folder: a parent that is a file is an input error", "[base]") {
  const TemporaryFolder folder;
  write_text(folder / "file", "");
  CHECK(message_of<InputError>([&] { write_folder_atomically(folder / "file/out", {}, [](const fs::path&) {}); }) ==
        (folder / "file/out").string() + ": cannot write: Not a directory");
}

TEST_CASE("atomic folder: a target in a folder that may not be entered is an input error", "[base]") {
  const TemporaryFolder folder;
  fs::permissions(folder.path(), fs::perms::none);
  const auto result = run_in_child([&] {
    if (::geteuid() == 0 && ::seteuid(65534) != 0) throw InternalError("seteuid failed");
    write_folder_atomically(folder / "out", {}, [](const fs::path&) {});
    return std::string("(nothing was thrown)");
  });
  CHECK(result.text == (folder / "out").string() + ": cannot write: Permission denied; check the folder's permissions");
}

TEST_CASE("atomic folder: killed while it fills, the target is as it was and the next write cleans up", "[base]") {
  const TemporaryFolder folder;
  fs::create_directory(folder / "out");
  write_text(folder / "out/weights", "old");
  const auto result = run_in_child([&] {
    write_folder_atomically(folder / "out", kReplace, [&](const fs::path& inside) {
      write_text(inside / "weights", "half of the n");
      ::kill(::getpid(), SIGKILL);
    });
    return std::string();
  });
  CHECK(WIFSIGNALED(result.status));
  CHECK(names_in(folder / "out") == Names{"weights"});
  CHECK(read_text(folder / "out/weights") == "old");
  CHECK(names_in(folder.path()).size() == 2);

  write_folder_atomically(folder / "out", kReplace,
                          [](const fs::path& inside) { write_text(inside / "weights", "new"); });
  CHECK(read_text(folder / "out/weights") == "new");
  CHECK(names_in(folder.path()) == Names{"out"});
}

TEST_CASE("atomic folder: a full disk is an input error and the old folder stays", "[base]") {
  const TemporaryFolder folder;
  const auto result = run_in_child([&]() -> std::string {
    if (!mount_tiny_file_system(folder.path())) return "cannot mount";
    const auto fill_with = [](std::size_t size) {
      return [size](const fs::path& inside) { write_file_atomically(inside / "weights", std::string(size, 'x')); };
    };
    write_folder_atomically(folder / "out", {}, fill_with(100));
    const std::string message =
        message_of<InputError>([&] { write_folder_atomically(folder / "out", kReplace, fill_with(1'000'000)); });
    const bool names_space = message.ends_with("/weights: cannot write: No space left on device; free some space");
    return str(names_space, " ", fs::file_size(folder / "out/weights"), " ", names_in(folder.path()).size());
  });
  if (result.text == "cannot mount") DAGMOE_SKIP("no permission to mount a small file system");
  CHECK(result.text == "1 100 1");
}
