#include "finetune/ranks.h"

#include <ATen/Parallel.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>

#include "base/error.h"
#include "base/log.h"
#include "base/text.h"

#ifdef DAGMOE_WITH_MPI
#include <mpi.h>
#endif

namespace dagmoe {
namespace {

class OneRank : public Ranks {
 public:
  OneRank() : Ranks(0, 1) {}
};

// How many processes a launcher says that it started; 0 without one. Open MPI, MPICH and its relatives.
std::int64_t launched_processes() {
  for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE"}) {
    if (const char* value = std::getenv(name)) return std::atoll(value);
  }
  return 0;
}

#ifdef DAGMOE_WITH_MPI

// MPI counts in int.
constexpr std::size_t kMostElements = std::size_t{1} << 28;

void check(int code, const char* what) {
  if (code != MPI_SUCCESS) throw InternalError(str("MPI: ", what, " failed with code ", code));
}

class MpiRanks : public Ranks {
 public:
  MpiRanks() : Ranks(0, 1) {
    int number = 0, count = 1;
    check(MPI_Comm_rank(MPI_COMM_WORLD, &number), "MPI_Comm_rank");
    check(MPI_Comm_size(MPI_COMM_WORLD, &count), "MPI_Comm_size");
    number_ = number, count_ = count;
  }
  void sum(std::span<float> values) override { sum_all(values, MPI_FLOAT); }
  void sum(std::span<double> values) override { sum_all(values, MPI_DOUBLE); }
  void sum(std::span<std::int64_t> values) override { sum_all(values, MPI_INT64_T); }
  std::int64_t min(std::int64_t value) override {
    reduce(&value, 1, MPI_INT64_T, MPI_MIN);
    return value;
  }
  std::int64_t from(std::int64_t owner, std::int64_t value) override {
    check(MPI_Bcast(&value, 1, MPI_INT64_T, static_cast<int>(owner), MPI_COMM_WORLD), "MPI_Bcast");
    return value;
  }
  std::string from(std::int64_t owner, std::string text) override {
    text.resize(static_cast<std::size_t>(from(owner, static_cast<std::int64_t>(text.size()))));
    check(MPI_Bcast(text.data(), static_cast<int>(text.size()), MPI_CHAR, static_cast<int>(owner), MPI_COMM_WORLD),
          "MPI_Bcast");
    return text;
  }
  void leave() override { check(MPI_Finalize(), "MPI_Finalize"); }

 private:
  // To the first and back from it: MPI only recommends that an all-reduce gives everyone the same bytes.
  void reduce(void* values, int count, MPI_Datatype type, MPI_Op operation) {
    const void* source = is_first() ? MPI_IN_PLACE : values;
    check(MPI_Reduce(source, is_first() ? values : nullptr, count, type, operation, 0, MPI_COMM_WORLD), "MPI_Reduce");
    check(MPI_Bcast(values, count, type, 0, MPI_COMM_WORLD), "MPI_Bcast");
  }
  template <class T>
  void sum_all(std::span<T> values, MPI_Datatype type) {
    for (std::size_t begin = 0; begin < values.size(); begin += kMostElements) {
      const std::size_t count = std::min(kMostElements, values.size() - begin);
      reduce(values.data() + begin, static_cast<int>(count), type, MPI_SUM);
    }
  }
};

// Cores that this process may run on.
int allowed_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
}

// The ranks of one machine share its cores. mpirun itself binds a process to one core or socket unless told not to.
void share_out_cores(const Ranks& ranks) {
  MPI_Comm machine = MPI_COMM_NULL;
  check(MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &machine), "MPI_Comm_split_type");
  int num_here = 1;
  check(MPI_Comm_size(machine, &num_here), "MPI_Comm_size");
  check(MPI_Comm_free(&machine), "MPI_Comm_free");
  const int online = static_cast<int>(::sysconf(_SC_NPROCESSORS_ONLN)), allowed = allowed_cores();
  const int share = std::max(1, online / num_here);
  if (ranks.is_first() && allowed < share) {
    log_warning(str("mpirun binds each process to ", allowed, " of ", online, " cores, so that only ",
                    allowed * num_here, " are used; start it with --bind-to none"));
  }
  if (std::getenv("OMP_NUM_THREADS") == nullptr) at::set_num_threads(std::min(share, allowed));
}

std::unique_ptr<Ranks> join_mpi() {
  int provided = 0;  // data is read by a second thread, which calls nothing of MPI
  check(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided), "MPI_Init_thread");
  auto ranks = std::make_unique<MpiRanks>();
  share_out_cores(*ranks);
  return ranks;
}

#endif

}  // namespace

Ranks& Ranks::alone() {
  static OneRank rank;
  return rank;
}

std::unique_ptr<Ranks> Ranks::join() {
  const std::int64_t launched = launched_processes();
#ifdef DAGMOE_WITH_MPI
  if (launched > 0) return join_mpi();
#else
  if (launched > 1) {
    throw ConfigError(str("mpirun started ", launched, " processes, and this dagmoe was built without MPI; install ",
                          "libopenmpi-dev and build again, or start it without mpirun"));
  }
#endif
  return std::make_unique<OneRank>();
}

void sum_over(Ranks& ranks, const at::Tensor& tensor) {
  if (!tensor.is_contiguous()) throw InternalError("sum_over: the tensor is not contiguous");
  const auto count = static_cast<std::size_t>(tensor.numel());
  switch (tensor.scalar_type()) {
    case at::kFloat:
      return ranks.sum(std::span(tensor.mutable_data_ptr<float>(), count));
    case at::kDouble:
      return ranks.sum(std::span(tensor.mutable_data_ptr<double>(), count));
    default:
      throw InternalError("sum_over: expected float or double");
  }
}

}  // namespace dagmoe
