#include <zlib.h>
#include <zstd.h>

#include <fstream>

#include "base/error.h"
#include "base/text.h"
#include "data/byte_stream.h"
#include "data/data_files.h"
#include "data/json_lines.h"
#include "tests/support/catch.h"
#include "tests/support/text_file.h"

namespace dagmoe {
namespace {

using Catch::Matchers::Contains;
using Catch::Matchers::Equals;

std::string gzip(const std::string& text) {
  z_stream state{};
  REQUIRE(deflateInit2(&state, 6, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY) == Z_OK);
  std::string packed(deflateBound(&state, text.size()), '\0');
  state.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
  state.avail_in = static_cast<uInt>(text.size());
  state.next_out = reinterpret_cast<Bytef*>(packed.data());
  state.avail_out = static_cast<uInt>(packed.size());
  REQUIRE(deflate(&state, Z_FINISH) == Z_STREAM_END);
  packed.resize(state.total_out);
  deflateEnd(&state);
  return packed;
}

std::string zstd(const std::string& text) {
  std::string packed(ZSTD_compressBound(text.size()), '\0');
  const std::size_t size = ZSTD_compress(packed.data(), packed.size(), text.data(), text.size(), 3);
  REQUIRE_FALSE(ZSTD_isError(size));
  packed.resize(size);
  return packed;
}

// "line=first field" of every record, "line!" of a bad one.
std::vector<std::string> outline(RecordReader& reader) {
  std::vector<std::string> lines;
  RawRecord record;
  std::unique_ptr<BadRecord> bad;
  while (reader.next(record, bad))
    lines.push_back(bad ? str(bad->line, "!") : str(record.line, "=", record.fields.at(0).text));
  return lines;
}

std::string many_records(int count) {
  std::string text = "\xEF\xBB\xBF";
  for (int i = 0; i < count; ++i)
    text +=
        str("{\"a\":\"", i, " ", std::string(static_cast<std::size_t>(i % 97), 'x'), "\"}\r\n", i % 5 == 0 ? "\n" : "");
  return text;
}

TEST_CASE("compressed: .gz and .zst hold the same records as the plain file, lines included", "[data]") {
  const std::string text = many_records(20000), half = text.substr(0, text.size() / 2), rest = text.substr(half.size());
  const TextFile plain("a.jsonl", text);
  const auto expected = outline(*RecordReader::open(plain.path()));
  REQUIRE(expected.size() == 20000);
  // Members and frames that follow each other are one text, as gunzip and zstd have it.
  for (const auto& [name, packed] :
       {std::pair{"a.jsonl.gz", gzip(text)}, std::pair{"a.jsonl.gz", gzip(half) + gzip(rest)},
        std::pair{"a.jsonl.zst", zstd(text)}, std::pair{"a.jsonl.zst", zstd(half) + zstd(rest)}}) {
    const TextFile file(name, packed);
    const auto reader = RecordReader::open(file.path());
    CHECK((outline(*reader) == expected));
    reader->rewind();
    CHECK((outline(*reader) == expected));
  }
  const std::string array = "[\n{\"a\":1},\n{\"a\":2}]";
  CHECK(outline(*RecordReader::open(TextFile("a.json.gz", gzip(array)).path())) ==
        std::vector<std::string>{"2=1", "3=2"});
  CHECK(outline(*RecordReader::open(TextFile("a.json.zst", zstd(array)).path())) ==
        std::vector<std::string>{"2=1", "3=2"});
  CHECK(outline(*RecordReader::open(TextFile("a.jsonl.gz", gzip("")).path())).empty());
  CHECK(outline(*RecordReader::open(TextFile("a.jsonl.zst", zstd("")).path())).empty());
}

TEST_CASE("compressed: a reader goes back to a record by its unpacked offset", "[data]") {
  const std::string text = many_records(3000);
  for (const auto& [name, packed] : {std::pair{"a.jsonl.gz", gzip(text)}, std::pair{"a.jsonl.zst", zstd(text)}}) {
    const TextFile file(name, packed);
    const auto reader = RecordReader::open(file.path());
    RawRecord record;
    std::unique_ptr<BadRecord> bad;
    for (int i = 0; i < 1000; ++i) reader->next(record, bad);
    const std::uint64_t offset = reader->offset();
    const std::int64_t line = reader->line();
    const auto rest = outline(*reader);
    reader->seek(offset, line);
    CHECK((outline(*reader) == rest));
    CHECK(rest.size() == 2000);
  }
}

TEST_CASE("compressed: a damaged or cut file is an error that names it, never a shorter one", "[data]") {
  const std::string text = many_records(20000);
  for (const auto& [name, packed] : {std::pair{"a.jsonl.gz", gzip(text)}, std::pair{"a.jsonl.zst", zstd(text)}}) {
    const TextFile cut(name, packed.substr(0, packed.size() - 20));
    CHECK_THROWS_WITH(outline(*RecordReader::open(cut.path())),
                      Contains(cut.name() + ": the ") && Contains("ends early"));
    std::string broken = packed;
    for (std::size_t i = broken.size() / 2; i < broken.size() / 2 + 50; ++i) broken[i] = static_cast<char>(~broken[i]);
    const TextFile damaged(name, broken);
    CHECK_THROWS_AS(outline(*RecordReader::open(damaged.path())), InputError);
    const TextFile plain(name, text);
    CHECK_THROWS_WITH(outline(*RecordReader::open(plain.path())), Contains(plain.name() + ": damaged "));
  }
}

TEST_CASE("json lines: a line of 64 MiB and more is one record, and memory for it is not kept", "[data]") {
  const std::string line = "{\"a\":\"" + std::string((std::size_t{64} << 20) + 5, 'x') + "\"}";
  const TextFile file("a.jsonl", "{\"a\":1}\n" + line + "\n{\"a\":2}\n" + line.substr(0, line.size() - 1));
  const auto reader = RecordReader::open(file.path());
  RawRecord record;
  std::unique_ptr<BadRecord> bad;
  REQUIRE(reader->next(record, bad));
  REQUIRE(reader->next(record, bad));
  REQUIRE(bad == nullptr);
  CHECK(record.fields[0].text.size() == line.size() - 8);
  CHECK(record.line == 2);
  REQUIRE(reader->next(record, bad));
  CHECK(record.fields[0].text == "2");
  REQUIRE(reader->next(record, bad));
  REQUIRE(bad);
  CHECK(bad->line == 4);
  CHECK_FALSE(reader->next(record, bad));
}

TEST_CASE("data files: a path is a file, a folder's files or those of a glob", "[data]") {
  const TextFile file("b.jsonl", "{}");
  const std::filesystem::path folder = file.path().parent_path();
  for (const std::string name : {"a.json", "c.jsonl.gz", "d.json.zst", "e.txt", "f.jsonl.bz2"})
    std::ofstream(folder / name) << "x";
  std::filesystem::create_directory(folder / "sub.json");
  const auto names = [](const std::filesystem::path& path) {
    std::vector<std::string> found;
    for (const auto& each : data_files(path)) found.push_back(each.filename().string());
    return found;
  };
  using Names = std::vector<std::string>;
  CHECK(names(file.path()) == Names{"b.jsonl"});
  CHECK(names(folder) == Names{"a.json", "b.jsonl", "c.jsonl.gz", "d.json.zst"});
  CHECK(names(folder / "*.json*") == Names{"a.json", "b.jsonl", "c.jsonl.gz", "d.json.zst", "f.jsonl.bz2"});
  CHECK(names(folder / "[ab].json*") == Names{"a.json", "b.jsonl"});
  CHECK_THROWS_WITH(data_files(folder / "*.csv"), Contains("*.csv: no file matches"));
  CHECK_THROWS_WITH(data_files(folder / "x.jsonl"), Contains("x.jsonl: no such file"));
  CHECK_THROWS_WITH(data_files(folder / "sub.json"), Contains("no .json or .jsonl file in this folder"));
}

}  // namespace
}  // namespace dagmoe
