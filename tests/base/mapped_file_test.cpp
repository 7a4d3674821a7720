#include "base/mapped_file.h"

#include <sys/stat.h>

#include <filesystem>
#include <string>

#include "tests/base/helpers.h"
#include "tests/support/catch.h"

using namespace dagmoe;
using namespace dagmoe::testing;

TEST_CASE("mapped file: bytes and text are those of the file", "[base]") {
  const TemporaryFolder folder;
  const std::string content("ab\0c\xFF", 5);
  write_text(folder / "x", content);
  const auto file = MappedFile::open(folder / "x");
  CHECK(file->text() == content);
  CHECK(file->bytes().size() == 5);
  CHECK(file->path() == folder / "x");
}

TEST_CASE("mapped file: an empty file is an empty span", "[base]") {
  const TemporaryFolder folder;
  write_text(folder / "empty", "");
  CHECK(MappedFile::open(folder / "empty")->text().empty());
}

TEST_CASE("mapped file: the mapping outlives a file that is replaced and removed", "[base]") {
  const TemporaryFolder folder;
  write_text(folder / "x", "old");
  const auto file = MappedFile::open(folder / "x");
  std::filesystem::remove(folder / "x");
  write_text(folder / "x", "new");
  CHECK(file->text() == "old");
}

TEST_CASE("mapped file: a missing file, a folder and a pipe are input errors", "[base]") {
  const TemporaryFolder folder;
  const std::string name = folder.path().string();
  CHECK(message_of<InputError>([&] { MappedFile::open(folder / "none"); }) ==
        name + "/none: cannot read: No such file or directory; check the path");
  CHECK(message_of<InputError>([&] { MappedFile::open(folder.path()); }) == name + ": found a folder, expected a file");
  REQUIRE(::mkfifo((folder / "pipe").c_str(), 0600) == 0);
  CHECK(message_of<InputError>([&] { MappedFile::open(folder / "pipe"); }) ==
        name + "/pipe: found no regular file, expected one");
}
