#include "finetune/tensorboard.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <functional>
#include <optional>
#include <utility>

#include "base/atomic_file.h"
#include "base/environment.h"
#include "base/error.h"
#include "base/mapped_file.h"
#include "base/text.h"

namespace dagmoe {
namespace {

constexpr std::string_view kPrefix = "events.out.tfevents.";
constexpr std::size_t kHeaderSize = 12, kFooterSize = 4;  // of a frame: length and its checksum; checksum of the bytes

// Wire types of protocol buffers.
enum Wire : std::uint64_t { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

constexpr std::array<std::uint32_t, 256> make_crc_table() {
  std::array<std::uint32_t, 256> table{};
  for (std::uint32_t byte = 0; byte < 256; ++byte) {
    std::uint32_t crc = byte;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0x82F63B78U : 0U);
    table[byte] = crc;
  }
  return table;
}

template <class Number>
void append_little_endian(std::string& out, Number value) {
  std::array<char, sizeof value> bytes;
  std::memcpy(bytes.data(), &value, sizeof value);  // the build is for x86-64 alone
  out.append(bytes.data(), bytes.size());
}

template <class Number>
Number little_endian(std::string_view bytes) {
  Number value;
  std::memcpy(&value, bytes.data(), sizeof value);
  return value;
}

void append_varint(std::string& out, std::uint64_t value) {
  for (; value >= 0x80; value >>= 7) out.push_back(static_cast<char>((value & 0x7F) | 0x80));
  out.push_back(static_cast<char>(value));
}

void append_key(std::string& out, std::uint64_t field, Wire wire) { append_varint(out, field << 3 | wire); }

void append_bytes(std::string& out, std::uint64_t field, std::string_view bytes) {
  append_key(out, field, kBytes);
  append_varint(out, bytes.size());
  out.append(bytes);
}

std::optional<std::uint64_t> take_varint(std::string_view& bytes) {
  std::uint64_t value = 0;
  for (int shift = 0; shift < 64 && !bytes.empty(); shift += 7) {
    const auto byte = static_cast<unsigned char>(bytes.front());
    bytes.remove_prefix(1);
    value |= static_cast<std::uint64_t>(byte & 0x7F) << shift;
    if (byte < 0x80) return value;
  }
  return std::nullopt;
}

// Event.step, 0 where it is left out; nullopt when the message is broken.
std::optional<std::int64_t> step_of(std::string_view event) {
  std::int64_t step = 0;
  while (!event.empty()) {
    const auto key = take_varint(event);
    if (!key) return std::nullopt;
    std::uint64_t size = 0;
    switch (*key & 7) {
      case kVarint: {
        const auto value = take_varint(event);
        if (!value) return std::nullopt;
        if (*key >> 3 == 2) step = static_cast<std::int64_t>(*value);
        break;
      }
      case kFixed64:
        size = 8;
        break;
      case kFixed32:
        size = 4;
        break;
      case kBytes: {
        const auto length = take_varint(event);
        if (!length) return std::nullopt;
        size = *length;
        break;
      }
      default:
        return std::nullopt;
    }
    if (size > event.size()) return std::nullopt;
    event.remove_prefix(size);
  }
  return step;
}

std::string version_event(double wall_time) {
  std::string event;
  append_key(event, 1, kFixed64);
  append_little_endian(event, wall_time);
  append_bytes(event, 3, "brain.Event:2");
  return event;
}

std::string host_name() {
  std::array<char, 256> name{};
  if (::gethostname(name.data(), name.size() - 1) != 0 || name[0] == '\0') return "localhost";
  return name.data();
}

std::vector<std::filesystem::path> event_files(const std::filesystem::path& folder) {
  std::vector<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.is_regular_file() && entry.path().filename().string().starts_with(kPrefix)) files.push_back(entry.path());
  }
  std::ranges::sort(files);
  return files;
}

std::string kept_records(std::string_view bytes, std::int64_t resume_step) {
  std::string kept;
  for (const std::string_view record : read_tfrecords(bytes)) {
    const auto step = step_of(record);
    if (!step) break;
    if (*step <= resume_step) kept += tfrecord(record);
  }
  return kept;
}

}  // namespace

std::uint32_t masked_crc32c(std::string_view bytes) {
  static constexpr auto table = make_crc_table();
  std::uint32_t crc = 0xFFFFFFFFU;
  for (const char byte : bytes) crc = (crc >> 8) ^ table[(crc ^ static_cast<unsigned char>(byte)) & 0xFF];
  crc = ~crc;
  return ((crc >> 15) | (crc << 17)) + 0xA282EAD8U;
}

std::string tfrecord(std::string_view payload) {
  std::string record;
  append_little_endian(record, static_cast<std::uint64_t>(payload.size()));
  append_little_endian(record, masked_crc32c(record));
  record.append(payload);
  append_little_endian(record, masked_crc32c(payload));
  return record;
}

std::vector<std::string_view> read_tfrecords(std::string_view bytes) {
  std::vector<std::string_view> payloads;
  while (bytes.size() >= kHeaderSize + kFooterSize) {
    const auto size = little_endian<std::uint64_t>(bytes);
    if (little_endian<std::uint32_t>(bytes.substr(8)) != masked_crc32c(bytes.substr(0, 8))) break;
    if (size > bytes.size() - kHeaderSize - kFooterSize) break;
    const std::string_view payload = bytes.substr(kHeaderSize, size);
    if (little_endian<std::uint32_t>(bytes.substr(kHeaderSize + size)) != masked_crc32c(payload)) break;
    payloads.push_back(payload);
    bytes.remove_prefix(kHeaderSize + size + kFooterSize);
  }
  return payloads;
}

std::string scalar_event(std::string_view tag, std::int64_t step, double value, double wall_time) {
  std::string summary_value, summary, event;
  append_bytes(summary_value, 1, tag);
  append_key(summary_value, 2, kFixed32);
  append_little_endian(summary_value, static_cast<float>(value));
  append_bytes(summary, 1, summary_value);

  append_key(event, 1, kFixed64);
  append_little_endian(event, wall_time);
  if (step != 0) {  // proto3 leaves a default out
    append_key(event, 2, kVarint);
    append_varint(event, static_cast<std::uint64_t>(step));
  }
  append_bytes(event, 5, summary);
  return event;
}

TensorBoardWriter::TensorBoardWriter(std::filesystem::path path) : path_(std::move(path)) {
  file_.open(path_, std::ios::binary | std::ios::app);
  if (!file_) throw InputError(str(path_.string(), ": cannot be opened for writing"));
  if (std::filesystem::file_size(path_) == 0) pending_ = tfrecord(version_event(seconds_since_1970()));
  flush();
}

TensorBoardWriter TensorBoardWriter::create(const std::filesystem::path& folder) {
  const auto seconds = static_cast<std::int64_t>(seconds_since_1970());
  return TensorBoardWriter(folder / str(kPrefix, seconds, ".", host_name(), ".", ::getpid()));
}

TensorBoardWriter TensorBoardWriter::reopen(const std::filesystem::path& folder, std::int64_t resume_step) {
  const auto files = event_files(folder);
  for (const auto& path : files) {
    const auto file = MappedFile::open(path);
    const std::string kept = kept_records(file->text(), resume_step);
    if (kept.size() != file->text().size()) write_file_atomically(path, kept);
  }
  return files.empty() ? create(folder) : TensorBoardWriter(files.back());
}

void TensorBoardWriter::scalar(std::string_view tag, std::int64_t step, double value, double wall_time) {
  pending_ += tfrecord(scalar_event(tag, step, value, wall_time));
}

void TensorBoardWriter::metrics_line(const Json& line, double wall_time) {
  const auto step = line.at("step").get<std::int64_t>();
  const std::function<void(const std::string&, const Json&)> add = [&](const std::string& prefix, const Json& object) {
    for (const auto& [key, value] : object.items()) {
      if (value.is_object()) add(prefix + key + "/", value);
      if (value.is_number() && prefix + key != "step") scalar(prefix + key, step, value.get<double>(), wall_time);
    }
  };
  add("", line);
}

void TensorBoardWriter::flush() {
  file_ << pending_ << std::flush;
  if (!file_) throw InputError(str(path_.string(), ": cannot be written; is the disk full?"));
  pending_.clear();
}

}  // namespace dagmoe
