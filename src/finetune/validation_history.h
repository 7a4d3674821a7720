#pragma once

#include <cstdint>
#include <limits>
#include <optional>

namespace dagmoe {

/// The validation losses of a run so far: which was best, and whether it is time to stop.
class ValidationHistory {
 public:
  /// `min_delta`: nats per token by which a loss must fall below the best one to count as an improvement.
  explicit ValidationHistory(double min_delta) : min_delta_(min_delta) {}
  void add(std::int64_t step, double loss) {
    if (loss < best_loss_) best_loss_ = loss, best_step_ = step;
    num_without_improvement_ = loss < reference_ - min_delta_ ? 0 : num_without_improvement_ + 1;
    if (num_without_improvement_ == 0) reference_ = loss;
  }
  std::optional<std::int64_t> best_step() const { return best_step_; }
  double best_loss() const { return best_loss_; }
  /// Validations in a row that were no improvement.
  std::int64_t num_without_improvement() const { return num_without_improvement_; }

 private:
  double min_delta_, best_loss_ = std::numeric_limits<double>::infinity(), reference_ = best_loss_;
  std::optional<std::int64_t> best_step_;
  std::int64_t num_without_improvement_ = 0;
};

}  // namespace dagmoe
