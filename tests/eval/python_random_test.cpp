// Values from CPython 3.11's random module, contracts.md 4.4.
#include "eval/python_random.h"

#include <algorithm>
#include <vector>

#include "tests/support/catch.h"

namespace dagmoe {
namespace {

using Indices = std::vector<std::size_t>;

TEST_CASE("python random: the first words of seed 1234 are CPython's", "[eval]") {
  PythonRandom random(1234);
  CHECK(random.next_word() == 4150886329u);
  CHECK(random.next_word() == 3342196574u);
  CHECK(random.next_word() == 1892932127u);
  CHECK(random.next_word() == 501869158u);
}

TEST_CASE("python random: a sample of a large pool draws until indices differ", "[eval]") {
  PythonRandom random(1234);
  CHECK(random.sample(7473, 5) == Indices{6374, 3610, 957, 61, 742});
  CHECK(random.sample(7473, 5) == Indices{7462, 6610, 4769, 286, 5501});
  CHECK(random.sample(7473, 5) == Indices{5677, 687, 806, 6279, 2905});
}

TEST_CASE("python random: a sample of up to 21 swaps within the pool", "[eval]") {
  PythonRandom random(1234);
  CHECK(random.sample(21, 5) == Indices{14, 3, 0, 2, 1});
  CHECK(random.sample(21, 5) == Indices{2, 3, 11, 7, 0});
}

TEST_CASE("python random: a pool of 22 is large for five draws", "[eval]") {
  PythonRandom random(1234);
  CHECK(random.sample(22, 5) == Indices{14, 3, 0, 2, 18});
  CHECK(random.sample(22, 5) == Indices{1, 21, 2, 3, 11});
}

TEST_CASE("python random: more than five draws raise the limit of the small method", "[eval]") {
  CHECK(PythonRandom(7).sample(30, 10) == Indices{10, 4, 12, 20, 1, 2, 17, 3, 11, 18});
}

TEST_CASE("python random: choices and shuffle are CPython's", "[eval]") {
  CHECK(PythonRandom(1234).choices(10, 10) == Indices{9, 4, 0, 9, 9, 5, 6, 0, 7, 2});
  CHECK(PythonRandom(1234).shuffled(10) == Indices{2, 8, 3, 5, 6, 4, 9, 0, 1, 7});
}

TEST_CASE("python random: a sample of everything is a permutation and a sample of nothing is empty", "[eval]") {
  Indices all = PythonRandom(0).sample(12, 12);
  std::sort(all.begin(), all.end());
  CHECK(all == Indices{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11});
  CHECK(PythonRandom(0).sample(12, 0).empty());
}

TEST_CASE("python random: seeds above 32 bits and draws above 32 bits use two words", "[eval]") {
  PythonRandom random(0x123456789ABCDEFULL);
  CHECK(random.bits(64) == 6428395620130440615ULL);
  CHECK(random.bits(40) == 306631493740ULL);
  CHECK(random.uniform() == 0.8628102057466185);
}

TEST_CASE("python random: sums of choices are those of single draws", "[eval]") {
  std::vector<double> values;
  for (int i = 0; i < 1000; ++i) values.push_back(1.0 / (i + 1));
  PythonRandom one(7), other(7);
  for (int round = 0; round < 5; ++round) {
    double sum = 0.0;
    for (const std::size_t i : one.choices(values.size(), values.size())) sum += values[i];
    CHECK(other.sum_of_choices(values) == sum);
    if (round == 2) CHECK(one.next_word() == other.next_word());  // from here on draws straddle blocks
  }
}

}  // namespace
}  // namespace dagmoe
