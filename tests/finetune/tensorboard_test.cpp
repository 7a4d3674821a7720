#include "finetune/tensorboard.h"

#include "base/error.h"
#include "tests/support/catch.h"
#include "tests/support/tiny_model.h"

using namespace dagmoe;
using namespace dagmoe::testing;

namespace {

std::string from_hex(std::string_view hex) {
  std::string bytes;
  for (std::size_t i = 0; i < hex.size(); i += 2)
    bytes.push_back(static_cast<char>(std::stoi(std::string(hex.substr(i, 2)), nullptr, 16)));
  return bytes;
}

std::uint32_t unmasked(std::uint32_t masked) {
  const std::uint32_t rotated = masked - 0xA282EAD8U;
  return (rotated >> 17) | (rotated << 15);
}

// One event a step: the loss is the step.
void write_steps(TensorBoardWriter& writer, std::int64_t first, std::int64_t last) {
  for (std::int64_t step = first; step <= last; ++step) {
    writer.scalar("loss", step, static_cast<double>(step), 1000.0 + static_cast<double>(step));
    writer.flush();
  }
}

std::string expected_steps(std::int64_t last) {
  std::string bytes;
  for (std::int64_t step = 1; step <= last; ++step)
    bytes += tfrecord(scalar_event("loss", step, static_cast<double>(step), 1000.0 + static_cast<double>(step)));
  return bytes;
}

// The first record holds the version and the time it was written at.
std::string without_first_record(const std::string& bytes) {
  const auto records = read_tfrecords(bytes);
  REQUIRE_FALSE(records.empty());
  REQUIRE(records[0].substr(9) == from_hex("1a0d627261696e2e4576656e743a32"));  // field 3: brain.Event:2
  return bytes.substr(tfrecord(records[0]).size());
}

}  // namespace

TEST_CASE("tensorboard: CRC-32C agrees with its published vectors", "[finetune]") {
  REQUIRE(unmasked(masked_crc32c("123456789")) == 0xE3069283U);
  REQUIRE(unmasked(masked_crc32c(std::string(32, '\0'))) == 0x8A9136AAU);  // RFC 3720, B.4
  REQUIRE(unmasked(masked_crc32c(std::string(32, '\xFF'))) == 0x62A8AB43U);
  REQUIRE(unmasked(masked_crc32c("")) == 0);
}

TEST_CASE("tensorboard: a scalar has the bytes of protocol buffers inside a TFRecord frame", "[finetune]") {
  const std::string event = scalar_event("loss", 300, 0.25, 1.5);
  REQUIRE(event == from_hex("09"
                            "000000000000f83f"  // field 1, double 1.5
                            "10ac02"            // field 2, varint 300
                            "2a0d"              // field 5, 13 bytes: the summary
                            "0a0b"              // its field 1, 11 bytes: the value
                            "0a046c6f7373"      // its field 1: "loss"
                            "150000803e"));     // its field 2, float 0.25
  // TensorBoard's own RecordWriter writes the same bytes around it.
  REQUIRE(tfrecord(event) == from_hex("1b000000000000001a0d9e13") + event + from_hex("9908deed"));
  REQUIRE(scalar_event("x", 0, 0, 0) == from_hex("090000000000000000"
                                                 "2a0a0a08"
                                                 "0a0178"
                                                 "1500000000"));
}

TEST_CASE("tensorboard: records end at the first broken one", "[finetune]") {
  const std::string one = tfrecord("one"), two = tfrecord("two"), both = one + two;
  REQUIRE(read_tfrecords(both) == std::vector<std::string_view>{"one", "two"});
  for (std::size_t size = one.size(); size < both.size(); ++size)
    REQUIRE(read_tfrecords(std::string_view(both).substr(0, size)).size() == 1);
  for (std::size_t place = one.size(); place < both.size(); ++place) {
    std::string damaged = both;
    damaged[place] ^= 0x10;
    REQUIRE(read_tfrecords(damaged).size() == 1);
  }
}

TEST_CASE("tensorboard: a resumed run shows no step twice and drops a torn record", "[finetune]") {
  const TemporaryFolder folder;
  std::filesystem::path path;
  {
    TensorBoardWriter writer = TensorBoardWriter::create(folder.path());
    path = writer.path();
    REQUIRE(path.filename().string().starts_with("events.out.tfevents."));
    write_steps(writer, 1, 7);
  }
  REQUIRE(without_first_record(read_text(path)) == expected_steps(7));
  const std::string whole = read_text(path);
  write_text(path, whole + tfrecord(scalar_event("loss", 8, 8, 1008)).substr(0, 20));
  {
    TensorBoardWriter writer = TensorBoardWriter::reopen(folder.path(), 4);
    REQUIRE(writer.path() == path);
    REQUIRE(without_first_record(read_text(path)) == expected_steps(4));
    write_steps(writer, 5, 9);
  }
  REQUIRE(without_first_record(read_text(path)) == expected_steps(9));
  // Nothing to drop: the file stays as it is.
  const std::string before = read_text(path);
  { const TensorBoardWriter writer = TensorBoardWriter::reopen(folder.path(), 9); }
  REQUIRE(read_text(path) == before);
}

TEST_CASE("tensorboard: a run resumed without an event file, or with an empty one, begins one", "[finetune]") {
  const TemporaryFolder folder;
  const auto path = TensorBoardWriter::reopen(folder.path(), 3).path();
  REQUIRE(without_first_record(read_text(path)).empty());
  write_text(path, "not a record");
  REQUIRE(TensorBoardWriter::reopen(folder.path(), 3).path() == path);
  REQUIRE(without_first_record(read_text(path)).empty());
}

TEST_CASE("tensorboard: a line of metrics.jsonl becomes a scalar for each of its numbers", "[finetune]") {
  const TemporaryFolder folder;
  TensorBoardWriter writer = TensorBoardWriter::create(folder.path());
  writer.metrics_line(
      {{"step", 3}, {"loss", 1.5}, {"skipped", true}, {"z_loss", nullptr}, {"scores", {{"copa", {{"acc", 0.75}}}}}}, 8);
  writer.flush();
  REQUIRE(without_first_record(read_text(writer.path())) ==
          tfrecord(scalar_event("loss", 3, 1.5, 8)) + tfrecord(scalar_event("scores/copa/acc", 3, 0.75, 8)));
}

TEST_CASE("tensorboard: a folder that is not there is an error", "[finetune]") {
  const TemporaryFolder folder;
  REQUIRE_THROWS_AS(TensorBoardWriter::create(folder / "missing"), InputError);
}
