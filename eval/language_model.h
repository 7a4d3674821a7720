#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

namespace dagmoe {

/// log P(continuation | context). The space between the two belongs to the continuation.
struct LogLikelihoodRequest {
  std::string context, continuation;  ///< empty context: the prefix token (bos, else eos)
};
struct LogLikelihood {
  double log_prob = 0.0;        ///< nats, summed over the continuation's tokens
  bool is_greedy = false;       ///< every token was the argmax
  std::int64_t num_tokens = 0;  ///< of the continuation
};

struct GenerateRequest {
  std::string prompt;
  std::vector<std::string> stop;
  std::int64_t max_new_tokens = 256;
  double temperature = 0.0;  ///< 0: greedy
  double top_p = 1.0;
  std::uint64_t seed = 0;
};

/// Called as requests finish: how many of how many.
using ProgressHook = std::function<void(std::int64_t done, std::int64_t total)>;

/// All that a task needs of a model. Results are in request order and, in fp32, independent of batching.
class LanguageModel {
 public:
  virtual ~LanguageModel() = default;
  virtual std::vector<LogLikelihood> log_likelihood(std::span<const LogLikelihoodRequest> requests, const ProgressHook& on_progress) = 0;
  virtual std::vector<std::string> generate(std::span<const GenerateRequest> requests) = 0;
};

}  // namespace dagmoe
