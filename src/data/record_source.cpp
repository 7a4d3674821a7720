#include "data/record_source.h"

#include <algorithm>

#include "base/error.h"
#include "base/text.h"
#include "data/byte_stream.h"
#include "data/data_files.h"
#include "data/epoch_order.h"

namespace dagmoe {
namespace {

// More text of bad records than this is not kept in a cache.
constexpr std::size_t kMaxCachedBadBytes = std::size_t{16} << 20;
constexpr ContentHash kNone = {};

}  // namespace

std::vector<PromptPiece> sample_pieces(const SourceConfig& config, RawRecord& raw) {
  rename_fields(config.columns, raw);
  return sample_text(read_record(config.format, raw), config.chat, config.loss);
}

bool SeenRecords::add(ContentHash hash) {
  if (hash == kNone) hash.low = 1;
  const auto slot_of = [this](const ContentHash& wanted) {
    const std::size_t mask = table_.size() - 1;
    std::size_t slot = wanted.low & mask;
    while (table_[slot] != kNone && table_[slot] != wanted) slot = (slot + 1) & mask;
    return slot;
  };
  if (4 * (static_cast<std::size_t>(count_) + 1) > 3 * table_.size()) {
    std::vector<ContentHash> before = std::move(table_);
    table_.assign(std::max<std::size_t>(1024, 2 * before.size()), kNone);
    for (const ContentHash& entry : before) {
      if (entry != kNone) table_[slot_of(entry)] = entry;
    }
  }
  ContentHash& entry = table_[slot_of(hash)];
  if (entry == hash) return false;
  entry = hash;
  ++count_;
  return true;
}

bool is_validation_record(ContentHash hash, double fraction) {
  constexpr double kTwoTo53 = 9007199254740992.0;
  return static_cast<double>(hash.high >> 11) < fraction * kTwoTo53;
}

RecordSource::RecordSource(SourceConfig config) : config_(std::move(config)), files_(data_files(config_.path)) {
  is_sequential_ = std::ranges::any_of(files_, is_compressed);
}

// All that decides which records of a file are good.
std::string RecordSource::how_read() const {
  const ChatFormat& chat = config_.chat;
  std::string text = str("format ", field_names(config_.format).front(), " ", static_cast<int>(config_.format),
                         "\ntemplate ", name_of(chat.form), "\nsystem ", chat.knows_system, " ", chat.default_system,
                         "\nlast ", config_.loss.last_turn_only, "\n");
  for (const auto& [ours, theirs] : config_.columns) text += str(ours, "=", theirs, "\n");
  return text;
}

FileScan RecordSource::scan_file(std::size_t file, const ScanOptions& options, SeenRecords* seen, BadRecords& bad_log) {
  const auto reader = RecordReader::open(files_[file]);
  const bool needs_hash = seen != nullptr || options.split != DataSplit::kAll;
  FileScan scan;
  RawRecord raw;
  std::unique_ptr<BadRecord> bad;
  RecordPlace place{reader->offset(), reader->line()};
  std::int64_t last_line = 0;
  std::size_t bad_bytes = 0;
  const auto report = [&](std::int64_t line, const std::string& reason, std::string_view text) {
    bad_log.add(files_[file], line, reason, text);
    bad_bytes += text.size();
    if (bad_bytes <= kMaxCachedBadBytes) scan.bad.push_back({line, reason, std::string(text)});
  };
  for (; options.limit == 0 || num_records_ + scan.num_records < options.limit; ++scan.num_records) {
    if (!reader->next(raw, bad)) break;
    // In an array on one line the line says nothing.
    const std::int64_t line = bad ? bad->line : raw.line;
    const std::string which = line == last_line ? str("record ", scan.num_records + 1, ": ") : "";
    last_line = line;
    bool is_used = false;
    if (bad) {
      report(line, which + bad->reason, bad->text);
    } else {
      try {
        rename_fields(config_.columns, raw);
        const Record record = read_record(config_.format, raw);
        sample_text(record, config_.chat, config_.loss);
        const ContentHash hash = needs_hash ? content_hash(record) : ContentHash{};
        is_used = options.split == DataSplit::kAll ||
                  is_validation_record(hash, options.valid_fraction) == (options.split == DataSplit::kValid);
        if (is_used && seen != nullptr && !seen->add(hash)) {
          is_used = false;
          ++num_duplicates_;
        }
      } catch (const InputError& error) {
        report(line, which + error.what(), reader->text());
      }
    }
    if (is_sequential_) {
      kept_[file].push_back(is_used);
      size_ += is_used;
    } else if (is_used) {
      scan.index.add(place);
    }
    place = {reader->offset(), reader->line()};
  }
  if (bad_bytes > kMaxCachedBadBytes) scan.bad.clear();
  return scan;
}

void RecordSource::scan(const ScanOptions& options, SeenRecords* seen, BadRecords& bad) {
  const IndexCache cache(options.index_folder);
  const bool may_cache = !options.index_folder.empty() && options.limit == 0 && options.split == DataSplit::kAll &&
                         seen == nullptr && !is_sequential_;
  kept_.resize(files_.size());
  for (std::size_t file = 0; file < files_.size(); ++file) {
    const auto num_bytes = static_cast<std::uint64_t>(std::filesystem::file_size(files_[file]));
    const bool caches = may_cache && static_cast<std::int64_t>(num_bytes) >= options.index_min_bytes;
    std::optional<FileScan> scan = caches ? cache.find(files_[file], how_read()) : std::nullopt;
    if (scan) {
      for (const BadRecordEntry& entry : scan->bad) bad.add(files_[file], entry.line, entry.reason, entry.text);
    } else {
      const std::int64_t num_bad_before = bad.count();
      scan = scan_file(file, options, seen, bad);
      const bool is_complete = static_cast<std::int64_t>(scan->bad.size()) == bad.count() - num_bad_before;
      if (caches && is_complete) cache.keep(files_[file], how_read(), *scan);
    }
    num_records_ += scan->num_records;
    first_.push_back(size_);
    if (!is_sequential_) size_ += scan->index.size();
    num_bytes_.push_back(num_bytes);
    indexes_.push_back(std::move(scan->index));
  }
  first_.push_back(size_);
}

RecordSource::Place RecordSource::place(std::int64_t index) const {
  const auto file =
      static_cast<std::size_t>(std::upper_bound(first_.begin(), first_.end() - 1, index) - first_.begin()) - 1;
  const RecordIndex& places = indexes_[file];
  const std::int64_t within = index - first_[file];
  const RecordPlace found = places[within];
  const std::uint64_t end = within + 1 < places.size() ? places[within + 1].offset : num_bytes_[file];
  return {file, found, static_cast<std::int64_t>(end - std::min(end, found.offset))};
}

SequentialReader::SequentialReader(const RecordSource& source, bool shuffle, std::uint64_t seed,
                                   std::int64_t chunk_records)
    : source_(source), shuffle_(shuffle), seed_(seed), chunk_records_(chunk_records) {}

FetchedRecord SequentialReader::next_record() {
  RawRecord raw;
  std::unique_ptr<BadRecord> bad;
  while (true) {
    if (!reader_) {
      if (file_ == source_.files().size())
        throw InputError(str(source_.config().path.string(), ": has changed since it was opened; start again"));
      reader_ = RecordReader::open(source_.files()[file_]);
      record_ = 0;
    }
    if (!reader_->next(raw, bad)) {
      reader_.reset();
      ++file_;
      continue;
    }
    if (!source_.uses(file_, record_++)) continue;
    if (bad) {
      throw InputError(str(source_.files()[file_].string(), ":", bad->line,
                           ": the file has changed since it was opened; start again"));
    }
    ++next_index_;
    FetchedRecord record{file_, raw.line, std::string(reader_->text())};
    record.text.append(RecordParser::kPadding, ' ');
    return record;
  }
}

void SequentialReader::load(std::int64_t pass, std::int64_t chunk) {
  const std::int64_t first = chunk * chunk_records_, end = std::min(first + chunk_records_, source_.size());
  if (next_index_ > first || pass != pass_) {
    reader_.reset();
    file_ = 0;
    next_index_ = 0;
  }
  chunk_texts_.clear();
  while (next_index_ < first) next_record();
  while (next_index_ < end) chunk_texts_.push_back(next_record());
  const std::uint64_t chunk_seed = seed_ + static_cast<std::uint64_t>(chunk) * 0x9E3779B97F4A7C15ULL;
  if (shuffle_) chunk_order_ = epoch_order(end - first, chunk_seed, pass);
  pass_ = pass;
  chunk_ = chunk;
}

FetchedRecord SequentialReader::fetch(std::int64_t pass, std::int64_t index) {
  const std::int64_t chunk = index / chunk_records_;
  if (pass != pass_ || chunk != chunk_) load(pass, chunk);
  const auto within = static_cast<std::size_t>(index - chunk * chunk_records_);
  return chunk_texts_[shuffle_ ? static_cast<std::size_t>(chunk_order_[within]) : within];
}

}  // namespace dagmoe
