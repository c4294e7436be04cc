#include "data/tasks.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <nlohmann/json.hpp>

#include "data/dataset.h"
#include "data/io/atomic_file.h"
#include "kernels/core/error.h"

namespace rwkv {
namespace {

constexpr uint64_t kHeldOutOneIn = 8;
constexpr int kProblemsPerDocument = 8;
// Twelve keys, so that a model sees each often enough to learn recall within some million tokens.
constexpr const char* kKeys = "abcdefghijkl";

/// Uniform over all contents, and fixed for ever: files made by different versions stay disjoint.
uint64_t content_hash(std::string_view task, std::string_view content) {
  const Rng rng(hash_name(content), hash_name(task));
  return rng.u64(0);
}

}  // namespace

TaskMix parse_task_mix(std::string_view text) {
  TaskMix mix{0, 0, 0, 0};
  for (std::string_view rest = text; !rest.empty();) {
    const std::string_view part = rest.substr(0, rest.find(','));
    rest.remove_prefix(std::min(part.size() + 1, rest.size()));
    const size_t equal = part.find('=');
    const std::string_view name = part.substr(0, equal);
    double* share = name == "reverse"   ? &mix.reverse
                    : name == "recall"  ? &mix.recall
                    : name == "add"     ? &mix.add
                    : name == "permute" ? &mix.permute
                                        : nullptr;
    RWKV_CHECK(share != nullptr, ConfigError, "task mix \"", text, "\": unknown task \"", name,
               "\"; known are reverse, recall, add, permute");
    double value = 1;
    if (equal != std::string_view::npos) {
      const std::string_view number = part.substr(equal + 1);
      const auto [end, error] =
          std::from_chars(number.data(), number.data() + number.size(), value);
      RWKV_CHECK(error == std::errc{} && end == number.data() + number.size() && value >= 0,
                 ConfigError, "task mix \"", text, "\": the share of ", name,
                 " must be a number of at least 0");
    }
    *share = value;
  }
  return mix;
}

TaskGenerator::TaskGenerator(uint64_t seed, TaskSplit split, const TaskMix& mix)
    : rng_(seed, hash_name(split == TaskSplit::kTrain ? "tasks, train" : "tasks, held out")),
      split_(split),
      mix_(mix) {
  const double total = mix.reverse + mix.recall + mix.add + mix.permute;
  RWKV_CHECK(std::min({mix.reverse, mix.recall, mix.add, mix.permute}) >= 0 && total > 0,
             ConfigError, "task mix: shares must not be negative, and one must be positive");
}

bool TaskGenerator::wanted(std::string_view task, std::string_view content) const {
  const bool held_out = content_hash(task, content) % kHeldOutOneIn == 0;
  return held_out == (split_ == TaskSplit::kHeldOut);
}

int64_t TaskGenerator::between(int64_t low, int64_t high) {
  return low + static_cast<int64_t>(rng_.next_below(static_cast<uint64_t>(high - low + 1)));
}

Problem TaskGenerator::next() {
  double at = rng_.next_uniform() * (mix_.reverse + mix_.recall + mix_.add + mix_.permute);
  if ((at -= mix_.reverse) < 0) return reverse();
  if ((at -= mix_.recall) < 0) return recall();
  if ((at -= mix_.add) < 0) return add();
  // Rounding can carry `at` past the end of a mix without permutations.
  return mix_.permute > 0 ? permute() : mix_.reverse > 0 ? reverse() : recall();
}

Problem TaskGenerator::reverse() {
  std::string digits;
  do {
    digits.resize(static_cast<size_t>(between(1, 8)));
    for (char& c : digits) c = static_cast<char>('0' + between(0, 9));
  } while (!wanted("reverse", digits));
  const std::string answer(digits.rbegin(), digits.rend());
  return {"reverse", "R" + digits + "=", answer, "R" + digits + "=" + answer + "\n"};
}

Problem TaskGenerator::recall() {
  std::vector<std::string> pairs;
  std::string content;
  const auto shuffle = [&] {
    for (size_t i = pairs.size(); i > 1; --i) std::swap(pairs[i - 1], pairs[rng_.next_below(i)]);
  };
  do {
    std::string letters = kKeys;
    pairs.resize(static_cast<size_t>(between(4, 8)));
    for (size_t i = 0; i < pairs.size(); ++i) {
      std::swap(letters[i], letters[i + rng_.next_below(letters.size() - i)]);
      pairs[i] = {letters[i], static_cast<char>('0' + between(0, 9))};
    }
    auto sorted = pairs;
    std::sort(sorted.begin(), sorted.end());
    content.clear();
    for (const auto& p : sorted) content += p;
  } while (!wanted("recall", content));
  std::string given = "K", asked;
  for (const auto& p : pairs) given += p;
  shuffle();
  for (const auto& p : pairs) asked += p;
  const Problem one{"recall", given + "?" + pairs[0][0], std::string(1, pairs[0][1]),
                    given + "?" + pairs[0] + "\n"};
  if (split_ == TaskSplit::kHeldOut || between(1, 3) == 1) return one;
  return {one.task, one.prompt, one.answer, given + "*" + asked + "\n"};
}

Problem TaskGenerator::add() {
  int64_t a = 0, b = 0;
  do {
    a = between(0, 99);
    b = between(0, 99);
  } while (!wanted("add", str(std::min(a, b), "+", std::max(a, b))));
  const std::string question = str("A", a, "+", b, "="), answer = str(a + b);
  return {"add", question, answer, question + answer + "\n"};
}

Problem TaskGenerator::permute() {
  std::string swaps;
  do {
    swaps.resize(static_cast<size_t>(between(1, 8)));
    for (char& c : swaps) c = static_cast<char>('x' + between(0, 2));
  } while (!wanted("permute", swaps));
  std::string order = "abcd";
  for (const char c : swaps) {
    const auto place = static_cast<size_t>(c - 'x');
    std::swap(order[place], order[place + 1]);
  }
  return {"permute", "P" + swaps + "=", order, "P" + swaps + "=" + order + "\n"};
}

int64_t write_task_tokens(const std::string& path, TaskGenerator generator, uint64_t seed,
                          int64_t tokens) {
  RWKV_CHECK(tokens > 0, ConfigError, "making tasks: ", tokens, " tokens; ask for at least 1");
  const nlohmann::ordered_json created = {{"program", "rwkv-data make-tasks"}, {"seed", seed}};
  const auto tokenizer = std::make_shared<ByteTokenizer>();
  TokenFileWriter out(path, tokenizer, created.dump(1));
  std::vector<int32_t> ids;
  int64_t problems = 0;
  for (; out.tokens() < tokens; problems += kProblemsPerDocument) {
    ids.clear();
    for (int i = 0; i < kProblemsPerDocument; ++i) tokenizer->encode_to(generator.next().line, ids);
    ids.push_back(kEndOfDocument);
    out.add_document(ids);
  }
  out.finish();
  return problems;
}

int64_t write_task_problems(const std::string& path, uint64_t seed, TaskSplit split,
                            const TaskMix& mix, int64_t per_task) {
  const std::array<std::pair<double, TaskMix>, 4> tasks = {{{mix.reverse, {1, 0, 0, 0}},
                                                            {mix.recall, {0, 1, 0, 0}},
                                                            {mix.add, {0, 0, 1, 0}},
                                                            {mix.permute, {0, 0, 0, 1}}}};
  std::string out;
  int64_t lines = 0;
  for (const auto& [share, only] : tasks) {
    if (share <= 0) continue;
    TaskGenerator generator(seed, split, only);
    std::set<std::string> seen;
    // The rarest kind, held-out additions, has about 1250 different problems.
    for (int64_t tries = 0; static_cast<int64_t>(seen.size()) < per_task; ++tries) {
      const Problem p = generator.next();
      RWKV_CHECK(tries < 50 * per_task + 1000, ConfigError, "making ", per_task,
                 " different problems: the task ", p.task, " has only ", seen.size());
      if (!seen.insert(p.prompt).second) continue;
      const nlohmann::ordered_json line = {
          {"task", p.task}, {"prompt", p.prompt}, {"answer", p.answer}};
      out += line.dump() + "\n";
      ++lines;
    }
  }
  write_file_atomic(path, out);
  return lines;
}

}  // namespace rwkv
