#pragma once
/// The embedded corpus: short problems whose answers can be checked, made from a seed.
///
/// Every problem is one line; characters are bytes of the byte tokenizer. After every 8 lines comes
/// the end-of-document id, so both a line end and an end of document are followed by new problems.
///
///   reverse   R0471=1740          1 to 8 digits, leading zeros allowed
///   recall    Kd3a7l0g7?l0        4 to 8 different keys (a to l) with a digit each; '?' asks for
///   one
///             Kd3a7l0g7*l0d3g7a7  '*' asks for all, in random order: more to learn from per line.
///                                 Two thirds of the training lines, none of the held-out problems
///   add       A7+85=92            two numbers from 0 to 99
///   permute   Pxzy=cadb           "abcd" after 1 to 8 swaps of neighbours: x swaps places 1 and 2,
///                                 y 2 and 3, z 3 and 4
///
/// Training and held-out problems are disjoint by construction: a hash of the content decides which
/// part a problem belongs to (one in eight is held out), whatever the seed. The content is the
/// digit string; the set of key-digit pairs in any order; the two numbers in any order; the swaps.
/// So a held-out digit string is never trained as a reversal of its own, though it may occur inside
/// a longer one, and of the 10 strings of one digit only 1 is held out, of the 100 of two
/// digits 14.

#include <cstdint>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/core/rng.h"

namespace rwkv {

enum class TaskSplit : uint8_t { kTrain, kHeldOut };

struct Problem {
  std::string task;    ///< "reverse", "recall", "add", "permute"
  std::string prompt;  ///< "R0471=", "Kd3a7l0g7?l"
  std::string answer;  ///< what has to follow, up to the line end: "1740", "0"
  std::string line;    ///< the line for training, with its line end
};

/// Share of each task among the problems (not among the tokens).
struct TaskMix {
  double reverse = 4, recall = 4, add = 1, permute = 1;
};
/// "reverse=4,recall=3": tasks that are not named get 0. Throws ConfigError.
TaskMix parse_task_mix(std::string_view text);

/// An endless stream of problems, the same for the same arguments.
class TaskGenerator {
 public:
  /// Throws ConfigError for negative shares or all zero.
  TaskGenerator(uint64_t seed, TaskSplit split, const TaskMix& mix = {});
  Problem next();

 private:
  Problem reverse();
  Problem recall();
  Problem add();
  Problem permute();
  bool wanted(std::string_view task, std::string_view content) const;
  int64_t between(int64_t low, int64_t high);

  Rng rng_;
  TaskSplit split_;
  TaskMix mix_;
};

/// Writes a token file (byte tokenizer, 8 problems per document) with at least `tokens` tokens.
/// Returns the number of problems.
int64_t write_task_tokens(const std::string& path, TaskGenerator generator, uint64_t seed,
                          int64_t tokens);

/// `per_task` different problems of every task with a positive share, as JSON lines
/// {"task", "prompt", "answer"}. A problem is solved if the most probable continuation of the
/// prompt starts with the answer. Returns the number of lines.
int64_t write_task_problems(const std::string& path, uint64_t seed, TaskSplit split,
                            const TaskMix& mix, int64_t per_task);

}  // namespace rwkv
