#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <span>
#include <string>

namespace dagmoe {

/// The processes that train one model together, each with a copy of it ("ranks", as MPI has it). Every member function
/// is called by all of them in the same order, and each waits for the others; a single process does nothing in them.
/// What comes back has the same bytes everywhere: results are computed once and handed out.
class Ranks {
 public:
  virtual ~Ranks() = default;
  /// One process on its own.
  static Ranks& alone();
  /// The processes that mpirun started; alone without it, and nothing of MPI is touched then. Shares out the cores:
  /// each process takes its part of them as threads, unless OMP_NUM_THREADS is set. Throws ConfigError when mpirun
  /// started several and the program was built without MPI. Once per program.
  static std::unique_ptr<Ranks> join();

  std::int64_t number() const noexcept { return number_; }  ///< 0-based
  std::int64_t count() const noexcept { return count_; }
  bool is_first() const noexcept { return number_ == 0; }

  virtual void sum(std::span<float>) {}
  virtual void sum(std::span<double>) {}
  virtual void sum(std::span<std::int64_t>) {}
  virtual std::int64_t min(std::int64_t value) { return value; }
  /// The value of rank `owner`.
  virtual std::int64_t from(std::int64_t owner, std::int64_t value) { return owner == 0 ? value : 0; }
  virtual std::string from(std::int64_t owner, std::string text) { return owner == 0 ? text : ""; }
  /// At the end of a run that went well; after it nothing else may be called. A process that ends with an error does
  /// not come here: mpirun then ends the others.
  virtual void leave() {}

 protected:
  Ranks(std::int64_t number, std::int64_t count) : number_(number), count_(count) {}
  std::int64_t number_, count_;
};

/// Adds up a contiguous float or double tensor over all ranks, in place.
void sum_over(Ranks& ranks, const at::Tensor& tensor);

}  // namespace dagmoe
