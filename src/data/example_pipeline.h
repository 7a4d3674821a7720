#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "data/example_stream.h"

namespace dagmoe {

/// What a stream is made of, in order: an example, a sample that the length rule drops, or the end of an epoch. `after`
/// is the position behind it.
struct PreparedExample {
  enum class Kind { kExample, kDropped, kEnd };
  Kind kind = Kind::kEnd;
  StreamExample example;
  StreamPosition after;
};

/// Which record of which source stands at each place of each epoch. An epoch has `draws` places of each source, in one
/// random order; a source whose draws are not one pass over its records goes through all of them, in a random order of
/// its own, before it begins again, across the ends of epochs too.
class EpochPlan {
 public:
  EpochPlan(const std::vector<RecordSource>& sources, std::vector<std::int64_t> draws, bool shuffle,
            std::uint64_t seed);
  std::int64_t size() const { return size_; }
  struct Draw {
    std::size_t source = 0;
    std::int64_t pass = 0, index = 0;  ///< of a pass over the source's records
  };
  /// Places of one epoch are asked for in ascending order, or from anywhere after begin().
  Draw draw(std::int64_t epoch, std::int64_t place);
  void begin() { order_epoch_ = -1; }

 private:
  void begin_epoch(std::int64_t epoch);
  std::int64_t slot_at(std::int64_t place) const;
  std::size_t source_of(std::int64_t slot) const;

  const std::vector<RecordSource>& sources_;
  std::vector<std::int64_t> draws_, first_;
  bool shuffle_;
  std::uint64_t seed_;
  std::int64_t size_ = 0;
  std::int64_t order_epoch_ = -1, next_place_ = 0;
  std::vector<std::uint32_t> short_order_;  ///< of order_epoch_, where its size allows
  std::vector<std::int64_t> order_;         ///< else; both are empty without shuffling
  std::vector<std::int64_t> num_drawn_;     ///< of each source, before next_place_
};

/// Reads and tokenizes a stream's samples with several threads, in blocks that are handed out in order. A thread that
/// is too far ahead waits.
class ExamplePipeline {
 public:
  ExamplePipeline(const std::vector<RecordSource>& sources, std::vector<std::int64_t> draws, const Tokenizer& tokenizer,
                  const ExampleStreamOptions& options);
  ~ExamplePipeline();
  /// The next one from the position of restart(), at first of the beginning. Throws what making it threw; then
  /// restart() has to come before the next take().
  PreparedExample take();
  void restart(StreamPosition position);

 private:
  struct Slot {
    EpochPlan::Draw draw;
    std::optional<FetchedRecord> fetched;  ///< of a sequential source
  };
  struct Job {
    std::uint64_t generation = 0, number = 0;
    StreamPosition from;
    std::vector<Slot> slots;
    bool ends_epoch = false;
    std::exception_ptr error;  ///< behind the slots
  };
  struct Block {
    std::deque<PreparedExample> made;
    std::exception_ptr error;  ///< behind them
  };
  class Worker;

  void work();
  Job claim();
  void claim_slots(Job& job);

  const std::vector<RecordSource>& sources_;
  const Tokenizer& tokenizer_;
  ExampleStreamOptions options_;
  EpochPlan plan_;
  std::vector<std::unique_ptr<SequentialReader>> sequential_;  ///< by source; nullptr for the others

  Block block_;  ///< being handed out

  std::mutex mutex_;  ///< guards what follows, plan_ and sequential_
  std::condition_variable room_, done_;
  std::map<std::uint64_t, Block> blocks_;  ///< made and not taken, by number
  std::uint64_t generation_ = 0, next_claim_ = 0, next_take_ = 0, max_ahead_;
  StreamPosition claim_position_;
  bool stops_ = false;
  std::vector<std::thread> threads_;  ///< last, and started with the first take()
};

}  // namespace dagmoe
