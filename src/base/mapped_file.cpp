#include "base/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <string>
#include <system_error>
#include <utility>

#include "base/error.h"
#include "base/text.h"

namespace dagmoe {
namespace {

[[noreturn]] void throw_unreadable(const std::filesystem::path& path, int error) {
  const std::string hint = error == ENOENT ? "; check the path" : "";
  throw InputError(str(path.string(), ": cannot read: ", std::generic_category().message(error), hint));
}

/// Closes the descriptor; a mapping made from it lives on.
struct Descriptor {
  int number = -1;
  ~Descriptor() {
    if (number >= 0) ::close(number);
  }
};

}  // namespace

MappedFile::MappedFile(std::filesystem::path path, std::span<const std::byte> bytes)
    : path_(std::move(path)), bytes_(bytes) {}

MappedFile::~MappedFile() {
  // munmap takes a pointer to non-const although it writes nothing.
  if (!bytes_.empty()) ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}

void MappedFile::release_pages() const noexcept {
  if (!bytes_.empty()) ::madvise(const_cast<std::byte*>(bytes_.data()), bytes_.size(), MADV_DONTNEED);
}

std::shared_ptr<const MappedFile> MappedFile::open(const std::filesystem::path& path) {
  // make_shared needs a public constructor.
  struct Opened : MappedFile {
    Opened(std::filesystem::path opened_path, std::span<const std::byte> bytes)
        : MappedFile(std::move(opened_path), bytes) {}
  };
  // Opening a pipe without O_NONBLOCK would wait for a writer.
  const Descriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
  if (file.number < 0) throw_unreadable(path, errno);
  struct stat status {};
  if (::fstat(file.number, &status) != 0) throw_unreadable(path, errno);
  if (S_ISDIR(status.st_mode)) throw InputError(path.string() + ": found a folder, expected a file");
  if (!S_ISREG(status.st_mode)) throw InputError(path.string() + ": found no regular file, expected one");
  const std::size_t size = static_cast<std::size_t>(status.st_size);
  if (size == 0) return std::make_shared<const Opened>(path, std::span<const std::byte>());
  void* const address = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file.number, 0);
  if (address == MAP_FAILED) throw_unreadable(path, errno);
  return std::make_shared<const Opened>(path, std::span(static_cast<const std::byte*>(address), size));
}

}  // namespace dagmoe
