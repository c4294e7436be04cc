// Prompts in the scheduler: beginnings that are shared, calls that are shared, whose turn it is.

#include <gtest/gtest.h>

#include <algorithm>

#include "inference/prefix_cache.h"
#include "inference/scheduler.h"
#include "tests/unit/scheduler_test_util.h"

namespace rwkv {
namespace {

using namespace test;  // NOLINT: the tools of these tests

TEST(Scheduler, SharedBeginningsAreComputedOnce) {
  const std::string system = std::string(50, 's') + "the rules";
  const auto request = [&](const std::string& question) {
    GenerationRequest r{.prompt = bytes(system + question), .max_tokens = 6};
    r.shared = {std::ssize(system)};
    return r;
  };
  Service cold(random_bytes(), 8, {.cache_bytes = 0});
  std::vector<std::string> want;
  for (int i = 0; i < 8; ++i) want.push_back(cold.run(request(str("question ", i)))[0].text);
  EXPECT_EQ(cold->stats().cached_tokens, 0U);

  // All at once: the first computes what the others wait for.
  Service warm(random_bytes(), 8);
  std::vector<std::shared_ptr<Generation>> running;
  for (int i = 0; i < 8; ++i) running.push_back(warm->submit(request(str("question ", i))));
  for (size_t i = 0; i < 8; ++i) EXPECT_EQ(collect(*running[i])[0].text, want[i]) << i;
  EXPECT_EQ(warm->stats().cached_tokens, 7 * system.size());
  EXPECT_EQ(warm->stats().cache_entries, 1U);
  const auto later = warm->submit(request("another"));
  collect(*later);
  EXPECT_EQ(later->cached_tokens(), std::ssize(system));

  // Without a hint a beginning is kept when it comes for the second time.
  Service plain(random_bytes(), 8, {.cut_tokens = 20});
  GenerationRequest r{.prompt = test::random_ids(1, 70, 257), .max_tokens = 3};
  const auto first = plain.run(r)[0];
  EXPECT_EQ(plain->stats().cache_entries, 0U);
  EXPECT_EQ(plain.run(r)[0].text, first.text);
  EXPECT_EQ(plain->stats().cached_tokens, 0U);
  EXPECT_EQ(plain.run(r)[0].text, first.text);
  EXPECT_EQ(plain->stats().cached_tokens, 60U);
}

TEST(Scheduler, PrefillNeverHoldsUpRunningTextsForLong) {
  FakeRunner runner(6, 16);
  ByteTokenizer tokenizer;
  Scheduler scheduler(runner, tokenizer, {.prefill_budget = 32, .cut_tokens = 100});
  const auto steady = scheduler.submit({.prompt = bytes("x"), .max_tokens = 100000});
  ASSERT_TRUE(steady->wait(kPatience).has_value());
  std::vector<std::shared_ptr<Generation>> late;
  for (int i = 0; i < 4; ++i)
    late.push_back(scheduler.submit(
        {.prompt = test::random_ids(static_cast<uint64_t>(i), 1000 - i, 257), .max_tokens = 2}));
  // Four long prompts and a short one, which overtakes them.
  const auto small = scheduler.submit({.prompt = bytes("hi"), .max_tokens = 1});
  collect(*small);
  EXPECT_EQ(scheduler.stats().ended[static_cast<size_t>(GenerationEnd::kLength)], 1U);
  for (const auto& g : late) collect(*g);
  steady->cancel();
  const auto calls = runner.calls();
  int64_t since = 0, most = 0, decodes = 0;
  for (const auto& c : calls) {
    if (c.decode) {
      most = std::max(most, since);
      since = 0;
      ++decodes;
    } else {
      since += c.tokens;
    }
  }
  EXPECT_LE(most, 32 + 15);
  EXPECT_GE(decodes, 4000 / (32 + 15));
}

/// Prompts of many lengths side by side: everybody gets what they get alone.
TEST(Scheduler, PromptsShareCalls) {
  ByteTokenizer tokenizer;
  const auto requests = [] {
    auto all = mixed_requests(40);
    for (size_t i = 0; i < all.size(); ++i) {
      // Some have beginnings in common, some are long.
      if (i % 5 == 0) all[i].prompt.insert(all[i].prompt.begin(), 21, 7), all[i].shared = {9, 21};
      if (i % 7 == 3) all[i].prompt = test::random_ids(i, 400, 257);
    }
    return all;
  }();
  std::vector<std::vector<Sample>> want;
  {
    FakeRunner runner(3, 16);
    Scheduler scheduler(runner, tokenizer, {.cut_tokens = 50});
    for (const auto& r : requests)
      want.push_back(collect(*scheduler.submit(r), static_cast<size_t>(r.samples)));
    for (const auto& c : runner.calls()) EXPECT_EQ(c.decode || c.sequences == 1, true);
  }
  for (const int64_t batch : {2, 5, 64}) {
    FakeRunner runner(90, 16, batch);
    Scheduler scheduler(runner, tokenizer, {.cut_tokens = 50});
    for (int round = 0; round < 2; ++round) {
      std::vector<std::shared_ptr<Generation>> running;
      for (const auto& r : requests) running.push_back(scheduler.submit(r));
      for (size_t i = 0; i < requests.size(); ++i) {
        const auto got = collect(*running[i], want[i].size());
        for (size_t s = 0; s < got.size(); ++s) {
          EXPECT_EQ(got[s].text, want[i][s].text) << batch << ", request " << i << ", sample " << s;
          EXPECT_EQ(got[s].end, want[i][s].end);
          EXPECT_EQ(got[s].error, want[i][s].error);
        }
      }
    }
    int64_t most = 0;
    for (const auto& c : runner.calls())
      if (!c.decode) most = std::max(most, c.sequences);
    EXPECT_GE(most, 2);
    const SchedulerStats stats = scheduler.stats();
    EXPECT_LT(stats.prefill_calls, stats.prefill_pieces);
    EXPECT_GT(stats.cached_tokens, 0U);
  }
}

/// A crowd of short prompts neither starves a long one nor holds running texts up.
TEST(Scheduler, SharedCallsKeepTheBudgetAndTheTurns) {
  constexpr int64_t kBatch = 8;
  FakeRunner runner(60, 16, kBatch);
  ByteTokenizer tokenizer;
  Scheduler scheduler(runner, tokenizer, {.prefill_budget = 40, .cut_tokens = 1000});
  const auto steady = scheduler.submit({.prompt = bytes("x"), .max_tokens = 100000});
  ASSERT_TRUE(steady->wait(kPatience).has_value());
  std::vector<std::shared_ptr<Generation>> late = {
      scheduler.submit({.prompt = test::random_ids(1, 200, 257), .max_tokens = 1})};
  for (uint64_t i = 0; i < 50; ++i)
    late.push_back(
        scheduler.submit({.prompt = test::random_ids(2 + i, 9 + static_cast<int64_t>(i) % 4, 257),
                          .max_tokens = 1}));
  // The crowd goes by in shared calls while the long prompt takes its turns.
  for (const auto& g : late) EXPECT_EQ(collect(*g)[0].end, GenerationEnd::kLength);
  steady->cancel();
  collect(*steady);
  int64_t since = 0, most = 0, calls = 0, shared = 0;
  for (const auto& c : runner.calls()) {
    if (c.decode) {
      most = std::max(most, since);
      since = 0;
      continue;
    }
    since += c.tokens;
    ++calls;
    shared += c.sequences > 1 ? 1 : 0;
  }
  // A budget of 40 and one piece of 16 that begins within it.
  EXPECT_LE(most, 40 + 15);
  // How many go together depends on when they come; one call each would be 1 + 13 + 50.
  EXPECT_GE(shared, 5);
  EXPECT_LE(calls, 1 + 13 + 50 - 5);
}

/// Requests that leave while their prompts are computed side by side with others.
TEST(Scheduler, CancelledPromptsLeaveTheirNeighboursAlone) {
  ByteTokenizer tokenizer;
  constexpr size_t kCount = 12;
  const auto request = [](size_t i) {
    return GenerationRequest{.prompt = test::random_ids(i, 3000, 257), .max_tokens = 3};
  };
  FakeRunner lonely(1, 16);
  std::vector<std::string> want;
  {
    Scheduler scheduler(lonely, tokenizer, {});
    for (size_t i = 0; i < kCount; ++i)
      want.push_back(collect(*scheduler.submit(request(i)))[0].text);
  }
  FakeRunner runner(kCount, 16, 8);
  Scheduler scheduler(runner, tokenizer, {});
  std::vector<std::shared_ptr<Generation>> running;
  for (size_t i = 0; i < kCount; ++i) running.push_back(scheduler.submit(request(i)));
  wait_until([&] { return runner.calls().size() >= 20; });
  for (size_t i = 0; i < kCount; i += 3) running[i]->cancel();
  for (size_t i = 0; i < kCount; ++i) {
    const Sample s = collect(*running[i])[0];
    if (i % 3 == 0) {
      EXPECT_EQ(s.end, GenerationEnd::kCancelled) << i;
      EXPECT_EQ(s.tokens, 0);
    } else {
      EXPECT_EQ(s.text, want[i]) << i;
    }
  }
  wait_until([&] { return scheduler.stats().free_slots == static_cast<int64_t>(kCount); });
  // Their slots serve others.
  EXPECT_EQ(collect(*scheduler.submit(request(5)))[0].text, want[5]);
  runner.break_down();
  EXPECT_EQ(collect(*scheduler.submit(request(1)))[0].end, GenerationEnd::kError);
  EXPECT_EQ(scheduler.drain(kPatience), 0);
}

/// A chat of short messages: every turn finds nearly all of the one before.
TEST(Scheduler, TurnsOfAChatGoOnWhereTheLastOneWas) {
  Service service(random_bytes(), 4);
  const auto ids = test::random_ids(1, 600, 257);
  int64_t known = 0;
  for (int64_t n = 30; n <= 600; n += 30) {
    GenerationRequest r{.prompt = {ids.begin(), ids.begin() + n}, .max_tokens = 1};
    for (int64_t end = 15; end < n; end += 15) r.shared.push_back(end);
    const auto g = service->submit(std::move(r));
    collect(*g);
    EXPECT_GE(g->cached_tokens(), known) << n;
    known = n - 15 - 63;  // of the last end
  }
}

TEST(PrefixCache, KeepsTheLastUsedWithinItsBytes) {
  const std::vector<std::byte> state(1000);
  const auto ids = test::random_ids(1, 40, 257);
  const auto cut_at = [](const std::vector<int32_t>& all, const std::vector<int64_t>& cuts) {
    return PrefixCache::Prefix{PrefixCache::keys(all, cuts).back(),
                               std::span(all).first(static_cast<size_t>(cuts.back())), cuts};
  };
  const std::vector<int64_t> c10 = {10}, c20 = {20}, c30 = {30}, c40 = {40}, c5_10 = {5, 10};
  PrefixCache cache(4000);
  for (const auto* cuts : {&c10, &c20, &c30}) EXPECT_TRUE(cache.put(cut_at(ids, *cuts), state));
  EXPECT_EQ(cache.entries(), 3U);
  EXPECT_LE(cache.bytes(), 4000U);
  EXPECT_EQ(cache.find(cut_at(ids, c10)).size(), 1000U);
  EXPECT_TRUE(cache.put(cut_at(ids, c40), state));
  EXPECT_EQ(cache.entries(), 3U);
  EXPECT_EQ(cache.evictions(), 1U);
  EXPECT_TRUE(cache.find(cut_at(ids, c20)).empty());
  EXPECT_FALSE(cache.find(cut_at(ids, c10)).empty());
  // Other cuts are another entry; so are other ids, even if the keys were equal.
  EXPECT_TRUE(cache.find(cut_at(ids, c5_10)).empty());
  auto other = ids;
  other[3] ^= 1;
  EXPECT_TRUE(cache.find(cut_at(other, c10)).empty());
  PrefixCache::Prefix collides = cut_at(other, c10);
  collides.key = cut_at(ids, c10).key;
  EXPECT_TRUE(cache.find(collides).empty());
  // What is there already, and what is too large, is not news.
  EXPECT_FALSE(cache.put(cut_at(ids, c10), std::vector<std::byte>(5000)));
  EXPECT_FALSE(cache.put(cut_at(ids, c20), std::vector<std::byte>(5000)));
  EXPECT_EQ(cache.find(cut_at(ids, c10)).size(), 1000U);
  PrefixCache none(0);
  EXPECT_FALSE(none.put(cut_at(ids, c10), state));
  EXPECT_EQ(none.entries(), 0U);
  EXPECT_FALSE(none.seen_before(cut_at(ids, c10)));
  EXPECT_FALSE(none.seen_before(cut_at(ids, c10)));
}

/// Keys of a beginning do not depend on what follows; one pass makes those of all cuts.
TEST(PrefixCache, KeysOfAllCutsInOnePass) {
  const auto ids = test::random_ids(1, 200000, 257);
  std::vector<int64_t> cuts;
  for (int64_t at = 2; at < std::ssize(ids); at += 2) cuts.push_back(at);
  const double start = now_seconds();
  const std::vector<uint64_t> keys = PrefixCache::keys(ids, cuts);
  EXPECT_LT(now_seconds() - start, 5);  // milliseconds; 100000 passes take half a minute
  ASSERT_EQ(keys.size(), cuts.size());
  for (const size_t i : {size_t{0}, size_t{1}, size_t{700}}) {
    const auto at = static_cast<size_t>(cuts[i]);
    EXPECT_EQ(PrefixCache::keys(std::span(ids).first(at), std::span(cuts).first(i + 1)).back(),
              keys[i]);
  }
  auto sorted = keys;
  std::ranges::sort(sorted);
  EXPECT_EQ(std::ranges::unique(sorted).size(), 0U);
  EXPECT_NE(sorted[0], 0U);
}

TEST(PromptCuts, AreAFunctionOfTheRequest) {
  const auto cuts = [](int64_t n, std::vector<int64_t> shared, int64_t every) {
    const PromptCuts c(n, shared, every);
    std::vector<int64_t> all;
    for (size_t i = 0; i < c.size(); ++i) all.push_back(c.at(i));
    return all;
  };
  using V = std::vector<int64_t>;
  EXPECT_EQ(cuts(10, {}, 20), V{});
  EXPECT_EQ(cuts(20, {}, 20), V{});
  EXPECT_EQ(cuts(41, {}, 20), (V{20, 40}));
  EXPECT_EQ(cuts(50, {7}, 20), (V{7, 27, 47}));
  EXPECT_EQ(cuts(150, {25, 89}, 20), (V{20, 25, 45, 65, 85, 89, 109, 129, 149}));
  EXPECT_EQ(cuts(150, {25, 88}, 50), (V{25, 75, 125}));  // 63 tokens behind: not taken
  EXPECT_EQ(cuts(50, {-1, 0, 9, 9, 3, 50, 99}, 100), V{9});
  // Short messages make few cuts, and a longer chat is cut where a shorter one was.
  V ends, before;
  for (int64_t end = 6; end < 32768; end += 6) ends.push_back(end);
  EXPECT_LE(cuts(32768, ends, 512).size(), 32768U / 64);
  for (const int64_t n : {10, 70, 100, 500, 2000}) {
    const V longer = cuts(n, ends, 512);
    EXPECT_GE(std::ssize(longer), std::ssize(before));
    EXPECT_TRUE(std::equal(before.begin(), before.end(), longer.begin())) << n;
    EXPECT_GT(longer.back(), n - 6 - 64) << n;
    before = longer;
  }
  const PromptCuts c(220, V{5, 70, 140}, 79);
  EXPECT_TRUE(c.outermost(0));
  EXPECT_FALSE(c.outermost(1));
  EXPECT_TRUE(c.outermost(2));
  EXPECT_FALSE(c.outermost(3));
}

}  // namespace
}  // namespace rwkv
