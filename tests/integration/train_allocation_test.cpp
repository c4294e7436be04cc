// A training step allocates nothing once the first ones are done: neither arenas nor the heap.

#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <new>

#include "kernels/core/arena.h"
#include "tests/unit/trainer_test_util.h"
#include "trainer/data_source.h"
#include "trainer/train_step.h"
#include "trainer/trainer.h"

namespace {

std::atomic<uint64_t> g_news{0};

void* counted(std::size_t bytes, std::size_t alignment) {
  ++g_news;
  void* p = alignment <= alignof(std::max_align_t)
                ? std::malloc(bytes == 0 ? 1 : bytes)
                : std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
  if (p == nullptr) throw std::bad_alloc();
  return p;
}

}  // namespace

// The whole program's operator new: every container and string goes through here.
void* operator new(std::size_t n) {
  return counted(n, 0);
}
void* operator new[](std::size_t n) {
  return counted(n, 0);
}
void* operator new(std::size_t n, std::align_val_t a) {
  return counted(n, static_cast<std::size_t>(a));
}
void* operator new[](std::size_t n, std::align_val_t a) {
  return counted(n, static_cast<std::size_t>(a));
}
void operator delete(void* p) noexcept {
  std::free(p);
}
void operator delete[](void* p) noexcept {
  std::free(p);
}
void operator delete(void* p, std::size_t) noexcept {
  std::free(p);
}
void operator delete[](void* p, std::size_t) noexcept {
  std::free(p);
}
void operator delete(void* p, std::align_val_t) noexcept {
  std::free(p);
}
void operator delete[](void* p, std::align_val_t) noexcept {
  std::free(p);
}
void operator delete(void* p, std::size_t, std::align_val_t) noexcept {
  std::free(p);
}
void operator delete[](void* p, std::size_t, std::align_val_t) noexcept {
  std::free(p);
}

namespace rwkv {
namespace {

class Allocation : public testing::TestWithParam<const char*> {};

TEST_P(Allocation, StepsAllocateNothing) {
  const test::ScratchDir dir("train_allocation");
  test::write_token_file(dir / "train.h5", 5000, 1);
  const TrainConfig c = test::small_config(dir / "train.h5", dir / "run",
                                           {"train.micro_batches=2", "eval.every=1", "data.valid=x",
                                            std::string("train.grad_checkpointing=") + GetParam()});
  TrainStep step(c.model, step_options(c, Device::kCpu));
  step.allocate();
  step.model().init_params(step.values(), {});
  const TrainData data = open_train_data(c.data.train, c);
  ValidationSet valid(data.source, c.train.batch, c.train.context, 2);
  // Batches are copied beforehand: the loader's thread reads HDF5 in its own time.
  const auto loader = make_loader(data, c, 0);
  const Batch batch = loader->next();
  const auto one_step = [&] {
    for (int64_t m = 0; m < 2; ++m) {
      std::ranges::copy(batch.x, step.tokens().begin());
      std::ranges::copy(batch.y, step.targets().begin());
      step.accumulate(m);
    }
    step.finish(1e-3);
    std::ranges::copy(batch.x, step.eval_tokens().begin());
    std::ranges::copy(batch.y, step.eval_targets().begin());
    step.evaluate();
  };
  one_step();
  one_step();
  const uint64_t arenas = arena_allocation_count(), news = g_news;
  for (int i = 0; i < 3; ++i) one_step();
  EXPECT_EQ(arena_allocation_count(), arenas);
  EXPECT_EQ(g_news, news);
  // And the counter counts.
  void* p = ::operator new(4);
  EXPECT_EQ(g_news, news + 1);
  ::operator delete(p);
}

INSTANTIATE_TEST_SUITE_P(Modes, Allocation, testing::Values("none", "block"),
                         [](const auto& i) { return std::string(i.param); });

}  // namespace
}  // namespace rwkv
