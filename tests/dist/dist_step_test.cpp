// Training steps on several ranks: the forty steps of the reference files whatever the number of
// ranks, the same bits whatever the ranks divide among them, and the collectives by themselves.
// mpirun -n 2 dist_step_test; skipped in a single process.

#include <array>
#include <cmath>
#include <cstring>

#include "kernels/core/arena.h"
#include "kernels/core/bf16.h"
#include "kernels/core/gemm.h"
#include "kernels/core/launch_graph.h"
#include "tests/dist/copying_communicator.h"
#include "tests/dist/rank_test_main.h"
#include "tests/golden/golden_util.h"
#include "trainer/gemm_choices.h"
#include "trainer/schedule.h"
#include "trainer/trace_file.h"
#include "trainer/train_step.h"

namespace rwkv {
namespace {

using test::kTestDevice;

/// What a run leaves; the stores on rank 0 only.
struct Trace {
  std::vector<double> loss, norm;
  std::vector<float> values, m, v;
  bool operator==(const Trace&) const = default;
};

struct Variation {
  ZeroStage zero = ZeroStage::kOptimizer;
  DType exchange = DType::kF32;
  int64_t micro_batches = 1;
  DType dtype = DType::kF32;
  int64_t move_after = -1;  ///< steps after which the run moves to a new TrainStep, as by a file
  int64_t steps = -1;       ///< -1: all
  bool checkpointing = false, overlap = true;
  int32_t early_parcels = -1;
  bool copy_engines = true;
  Communicator* comm = nullptr;  ///< null: that of the test
};

class Ranks : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    if (test::test_ranks() == nullptr) GTEST_SKIP() << "one process: start it with mpirun -n 2";
    comm_ = test::test_ranks();
  }

  Communicator* comm_ = nullptr;
};

class TrainFile : public Ranks {
 protected:
  TrainFile() : file_(Hdf5File::open(golden::path(str(GetParam(), "_train.h5")))) {
    config_ = golden::model_config(file_);
    batch_ = golden::scalar(file_, "config/B");
    tokens_ = golden::scalar(file_, "config/T");
    steps_ = golden::scalar(file_, "config/steps");
    stream_ = file_.read<int32_t>("tokens/stream");
  }
  double recipe(const std::string& name) const {
    const std::string n = str("recipe/", name);
    return file_.type(n) == H5Type::kI64 ? static_cast<double>(file_.read_scalar<int64_t>(n))
                                         : file_.read_scalar<double>(n);
  }
  Schedule schedule() const {
    const bool v4 = config_.architecture == "rwkv4";
    Schedule s{.kind = v4 ? ScheduleKind::kExponential : ScheduleKind::kCosine,
               .lr = recipe("lr_init"),
               .lr_final = recipe("lr_final"),
               .warmup = static_cast<int64_t>(recipe("warmup")),
               .warmup_start = v4 ? 0.2 : 0.01,
               .tokens_per_step = batch_ * tokens_};
    s.exit_tokens =
        static_cast<int64_t>(v4 ? recipe("total_steps") * static_cast<double>(s.tokens_per_step)
                                : recipe("exit_tokens"));
    return s;
  }

  TrainStepOptions options(const Variation& how) const {
    TrainStepOptions o;
    o.micro_batches = how.micro_batches;
    o.batch = batch_ / comm_->size() / how.micro_batches;
    o.tokens = tokens_;
    o.l2wrap = recipe("l2wrap") != 0;
    o.optimizer = {.beta1 = recipe("beta1"),
                   .beta2 = recipe("beta2"),
                   .eps = recipe("eps"),
                   .weight_decay = recipe("weight_decay"),
                   .clip = recipe("clip")};
    o.device = kTestDevice;
    o.dtype = how.dtype;
    if (how.checkpointing) o.grad_checkpointing = GradCheckpointing::kBlock;
    o.comm = how.comm != nullptr ? how.comm : comm_;
    o.copy_engines = how.copy_engines;
    o.zero = how.zero;
    o.overlap = how.overlap;
    o.exchange = how.exchange;
    o.early_parcels = how.early_parcels;
    return o;
  }

  /// As the trainer does it: rank 0 chooses the algorithms of products for all.
  void prepare(TrainStep& step) const {
    const auto quiet = [](const std::string&) {};
    std::string known;
    if (comm_->rank() == 0) known = prepare_step(step, "", quiet);
    known = comm_->group().broadcast(known);
    if (comm_->rank() != 0) prepare_step(step, known, quiet);
  }

  Trace follow(const Variation& how) {
    const TrainStepOptions o = options(how);
    auto step = std::make_unique<TrainStep>(config_, o);
    step->allocate();
    if (comm_->rank() == 0) golden::load_params(file_, "init", step->model(), step->values());
    step->upload();
    prepare(*step);
    const Schedule rates = schedule();
    Trace trace;
    const int64_t steps = how.steps < 0 ? steps_ : how.steps;
    for (int64_t n = 0; n < steps; ++n) {
      // Row b of micro-batch i on rank r is sample (i * B + b) * ranks + r of the step.
      for (int64_t i = 0; i < o.micro_batches; ++i) {
        for (int64_t b = 0; b < o.batch; ++b) {
          const int64_t sample = (i * o.batch + b) * comm_->size() + comm_->rank();
          const int32_t* from = &stream_[static_cast<size_t>((n * batch_ + sample) * tokens_)];
          std::copy_n(from, tokens_, step->tokens().begin() + b * tokens_);
          std::copy_n(from + 1, tokens_, step->targets().begin() + b * tokens_);
        }
        step->accumulate(i);
      }
      const TrainStep::Result r = step->finish(rates.at(n));
      EXPECT_TRUE(r.finite);
      trace.loss.push_back(r.loss);
      trace.norm.push_back(r.grad_norm);
      if (n + 1 == how.move_after) {
        step->download();
        auto next = std::make_unique<TrainStep>(config_, o);
        next->allocate();
        next->optimizer().set_updates(step->optimizer().updates());
        if (comm_->rank() == 0) {
          std::ranges::copy(step->values().flat(), next->values().flat().begin());
          std::ranges::copy(step->optimizer().m().flat(), next->optimizer().m().flat().begin());
          std::ranges::copy(step->optimizer().v().flat(), next->optimizer().v().flat().begin());
        }
        const std::string algorithms = export_gemm_algorithms(step->context());
        step = std::move(next);
        step->upload();
        prepare_step(*step, algorithms, [](const std::string&) {});
      }
    }
    step->download();
    const auto all = [](const ParamStore& s) {
      return std::vector<float>(s.flat().begin(), s.flat().end());
    };
    trace.values = all(step->values());
    trace.m = all(step->optimizer().m());
    trace.v = all(step->optimizer().v());
    return trace;
  }

  void expect_reference(const Trace& t, DType dtype) const {
    const double loss_limit = dtype == DType::kF32 ? 2e-5 : 4e-2;
    const double norm_limit = dtype == DType::kF32 ? 5e-5 : 8e-2;
    const auto loss = file_.read<double>("train/loss"),
               norm = file_.read<double>("train/grad_norm");
    double worst_loss = 0, worst_norm = 0;
    for (size_t n = 0; n < t.loss.size(); ++n) {
      const double a = std::fabs(t.loss[n] - loss[n]), b = std::fabs(t.norm[n] / norm[n] - 1);
      EXPECT_LE(a, loss_limit) << "step " << n;
      EXPECT_LE(b, norm_limit) << "step " << n;
      worst_loss = std::max(worst_loss, a), worst_norm = std::max(worst_norm, b);
    }
    if (comm_->rank() == 0)
      std::printf("%s, %d ranks, %s: largest difference of a loss %.1e, of a gradient norm %.1e\n",
                  GetParam(), comm_->size(), std::string(dtype_name(dtype)).c_str(), worst_loss,
                  worst_norm);
  }

  std::vector<DType> types() const {
    if (kTestDevice == Device::kCpu) return {DType::kF32};
    return {DType::kF32, DType::kBF16};
  }

  Hdf5File file_;
  ModelConfig config_;
  std::vector<int32_t> stream_;
  int64_t batch_ = 0, tokens_ = 0, steps_ = 0;
};

TEST_P(TrainFile, FollowsTheReferenceAndStagesAreBitEqual) {
  for (const DType dtype : types()) {
    const Trace plain = follow({.zero = ZeroStage::kPlain, .dtype = dtype});
    expect_reference(plain, dtype);
    const Trace one = follow({.zero = ZeroStage::kOptimizer, .dtype = dtype});
    const Trace two = follow({.zero = ZeroStage::kGradients, .dtype = dtype});
    EXPECT_EQ(plain, one);
    EXPECT_EQ(plain, two);
    EXPECT_EQ(one.values.empty(), comm_->rank() != 0);
    if (kTestDevice == Device::kCpu) continue;  // there update() gathers everything
    // Two ranks send all parameters before the next forward; many send most of them beside it.
    for (const int32_t early : {0, 1})
      for (const ZeroStage zero : {ZeroStage::kOptimizer, ZeroStage::kGradients})
        EXPECT_EQ(plain, follow({.zero = zero, .dtype = dtype, .early_parcels = early})) << early;
  }
}

TEST_P(TrainFile, MicroBatchesAreExchangedOnce) {
  if (batch_ / comm_->size() < 2) return;  // one sequence per rank: nothing to cut
  for (const DType dtype : types()) {
    Variation how{.zero = ZeroStage::kPlain, .micro_batches = 2, .dtype = dtype};
    const Trace plain = follow(how);
    expect_reference(plain, dtype);
    how.zero = ZeroStage::kOptimizer;
    EXPECT_EQ(plain, follow(how));
    how.zero = ZeroStage::kGradients;
    EXPECT_EQ(plain, follow(how));
  }
}

TEST_P(TrainFile, GradientsTravelAsBf16) {
  Variation how{.zero = ZeroStage::kPlain, .exchange = DType::kBF16, .steps = 20};
  const Trace plain = follow(how);
  expect_reference(plain, DType::kBF16);  // their rounding is of the size of that of activations
  how.zero = ZeroStage::kGradients;
  EXPECT_EQ(plain, follow(how));
  how.exchange = DType::kF32;
  EXPECT_NE(plain.norm, follow(how).norm) << "nothing was rounded";
}

TEST_P(TrainFile, MovesThroughRankZeroBitForBit) {
  for (const ZeroStage zero : {ZeroStage::kPlain, ZeroStage::kOptimizer}) {
    for (const DType dtype : types()) {
      Variation how{.zero = zero, .dtype = dtype, .steps = 12};
      const Trace undisturbed = follow(how);
      how.move_after = 7;
      EXPECT_EQ(undisturbed, follow(how));
      if (kTestDevice == Device::kCpu || zero == ZeroStage::kPlain) continue;
      how.early_parcels = 1;  // what update() did not send is gathered before it leaves
      EXPECT_EQ(undisturbed, follow(how));
    }
  }
}

TEST_P(TrainFile, RecomputationChangesNothing) {
  Variation how{.zero = ZeroStage::kGradients, .steps = 5};
  const Trace kept = follow(how);
  how.checkpointing = true;
  EXPECT_EQ(kept, follow(how));
  how.zero = ZeroStage::kOptimizer;
  how.overlap = false;
  EXPECT_EQ(kept, follow(how)) << "nor does the time of the exchange";
}

TEST_P(TrainFile, CopyEnginesMoveTheSameBits) {
  test::CopyingCommunicator copying(*comm_);
  const bool cuda = kTestDevice == Device::kCuda;
  for (const DType exchange : {DType::kF32, DType::kBF16})
    for (const ZeroStage zero : {ZeroStage::kPlain, ZeroStage::kOptimizer, ZeroStage::kGradients}) {
      Variation how{.zero = zero, .exchange = exchange, .steps = 5, .copy_engines = false};
      const Trace without = follow(how);
      how.copy_engines = true;
      how.comm = cuda ? nullptr : &copying;
      const Trace with = follow(how);
      // NCCL's order of sums is its own, but two terms have only one.
      if (!cuda || comm_->size() == 2) {
        EXPECT_EQ(without, with) << static_cast<int>(zero);
      }
      EXPECT_EQ(without.loss.size(), with.loss.size());
    }
  EXPECT_EQ(copying.calls() > 0, !cuda);
}

INSTANTIATE_TEST_SUITE_P(Architectures, TrainFile, testing::Values("rwkv7", "rwkv4"));

TEST_F(Ranks, OneRankStopsAll) {
  ModelConfig c;
  c.n_layer = 2, c.n_embd = 64, c.vocab_size = 16;
  TrainStepOptions o;
  o.batch = 1, o.tokens = 16, o.device = kTestDevice, o.comm = comm_;
  TrainStep step(c, o);
  step.allocate();
  if (comm_->rank() == 0) step.model().init_params(step.values(), {.seed = 1, .lr = 1e-3});
  step.upload();
  step.accumulate(0);
  EXPECT_FALSE(step.finish(1e-3, false).stop);
  step.accumulate(0);
  EXPECT_TRUE(step.finish(1e-3, comm_->rank() + 1 == comm_->size()).stop);
}

TEST_F(Ranks, TimelinesShowEveryExchangeOnEveryRank) {
  ModelConfig c;
  c.n_layer = 4, c.n_embd = 64, c.vocab_size = 96;
  for (const ZeroStage zero : {ZeroStage::kPlain, ZeroStage::kOptimizer, ZeroStage::kGradients}) {
    TrainStepOptions o;
    o.batch = 1, o.tokens = 32, o.device = kTestDevice, o.comm = comm_, o.zero = zero;
    if (kTestDevice == Device::kCuda) o.dtype = DType::kBF16;
    o.host_copies = false;
    TrainStep step(c, o);
    step.allocate();
    step.fill(std::vector<float>{0.05f, -0.02f, 0.03f, -0.04f, 0.01f});
    const auto one = [&] {
      for (size_t k = 0; k < step.tokens().size(); ++k) {
        step.tokens()[k] = static_cast<int32_t>(k % 96);
        step.targets()[k] = static_cast<int32_t>((k + 1) % 96);
      }
      step.accumulate(0);
      EXPECT_TRUE(step.finish(1e-3).finite);
    };
    one();
    Timeline timeline(step.context());
    step.watch(&timeline);
    for (int i = 0; i < 3; ++i) one();
    step.watch(nullptr);
    const auto ranks = gather_timelines(&comm_->group(), timeline.intervals());
    EXPECT_EQ(static_cast<int>(ranks.size()), comm_->size());
    for (const RankTimeline& t : ranks) {
      // The embedding, two blocks, and the others with the head in one parcel; sharded parameters
      // are gathered once a step, on the CPU in one piece.
      for (int64_t s = 0; s < 3; ++s) {
        int reduced = 0, gathered = 0, norms = 0;
        double bytes = 0;
        for (const TimelineInterval& i : t) {
          EXPECT_LE(i.begin, i.end) << i.name;
          if (i.step != s || !is_exchange(i.kind)) continue;
          bytes += i.bytes;
          if (i.kind == TimelineKind::kReduce)
            ++reduced;
          else if (i.name == "norm")
            ++norms;
          else
            ++gathered;
        }
        EXPECT_EQ(reduced, 4);
        EXPECT_EQ(norms, 1);
        if (zero == ZeroStage::kPlain)
          EXPECT_EQ(gathered, 0);
        else if (kTestDevice == Device::kCpu)
          EXPECT_EQ(gathered, 1);
        else
          EXPECT_TRUE(1 <= gathered && gathered <= 4) << gathered;
        EXPECT_GT(bytes, 0);
        const TimelineTimes times = timeline_times(t, s);
        EXPECT_GT(times.exchange, 0);
        EXPECT_LE(times.exposed, times.exchange);
        EXPECT_LE(times.compute + times.exposed, times.step * (1 + 1e-9));
      }
    }
    // Set by their exchanges, the clocks agree.
    EXPECT_LT(std::fabs(ranks[0].back().end - ranks.back().back().end), 1.0);
  }
}

TEST_F(Ranks, InitialValuesAreThoseOfOneRankAndShardsComeBack) {
  ModelConfig c;
  c.n_layer = 3, c.n_embd = 64, c.vocab_size = 33;
  const InitOptions init{.seed = 7, .lr = 1e-3};
  for (const char* architecture : {"rwkv7", "rwkv4"})
    for (const ZeroStage zero : {ZeroStage::kPlain, ZeroStage::kOptimizer, ZeroStage::kGradients}) {
      c.architecture = architecture;
      c.head_size = c.architecture == "rwkv7" ? 64 : 0;
      TrainStepOptions o;
      o.batch = 1, o.tokens = 16, o.device = kTestDevice, o.comm = comm_, o.zero = zero;
      TrainStep step(c, o), other(c, o);
      step.allocate();
      step.initialize(init);
      step.accumulate(0);
      step.finish(0);  // moments; at this rate all values stay
      // By way of the shards to another step, as checkpoints of several files go.
      std::vector<std::vector<float>> parts;
      step.shards()->download_shards([&](StatePart, std::span<const float> shard) {
        parts.emplace_back(shard.begin(), shard.end());
      });
      other.allocate();
      other.shards()->upload_shards([&](StatePart part, std::span<float> shard) {
        std::ranges::copy(parts[static_cast<size_t>(part)], shard.begin());
      });
      step.download();
      other.download();
      if (comm_->rank() != 0) continue;
      const auto model = make_model(step.model().config());
      ParamStore expected(Device::kCpu, model->params(), "expected");
      model->init_params(expected, init);
      const auto same = [](const ParamStore& a, const ParamStore& b) {
        return std::memcmp(a.flat().data(), b.flat().data(), a.flat().size_bytes()) == 0;
      };
      EXPECT_TRUE(same(step.values(), expected)) << architecture;
      EXPECT_TRUE(same(step.values(), other.values()));
      EXPECT_TRUE(same(step.optimizer().m(), other.optimizer().m()));
      EXPECT_TRUE(same(step.optimizer().v(), other.optimizer().v()));
      EXPECT_TRUE(std::ranges::any_of(step.optimizer().m().flat(), [](float x) { return x != 0; }));
    }
}

/// Numbers whose sum depends on the order of adding.
float number(int rank, int64_t i) {
  const float big = 16777216.0f * static_cast<float>(i % 3);
  return rank == 0 ? big + 1.0f : rank == 1 ? -big : 0.5f + static_cast<float>(i % 7);
}

class Memory {
 public:
  Memory(Context& ctx, std::vector<float> values)
      : ctx_(ctx),
        spec_({static_cast<int64_t>(values.size())}),
        arena_(kTestDevice, spec_.bytes(), "t") {
    copy(ctx_, view(), TensorView(values.data(), spec_));
    ctx_.synchronize("test");
  }
  TensorView view() const { return arena_.at(0, spec_); }
  float* data() const { return view().f32(); }
  std::vector<float> read(Communicator& comm) const {
    StreamEvent done;
    if (comm.stream() != nullptr) {
      done.record_on(comm.stream());
      done.wait(ctx_);
    }
    return golden::fetch(ctx_, view());
  }

 private:
  Context& ctx_;
  TensorSpec spec_;
  Arena arena_;
};

TEST_F(Ranks, Collectives) {
  Context ctx(kTestDevice);
  const int ranks = comm_->size(), rank = comm_->rank();
  constexpr int64_t kCount = 64;
  const auto all = static_cast<size_t>(kCount * ranks);
  std::vector<float> mine(all), sums(all);
  for (size_t i = 0; i < all; ++i) {
    mine[i] = number(rank, static_cast<int64_t>(i));
    float sum = number(0, static_cast<int64_t>(i));
    for (int r = 1; r < ranks; ++r) sum += number(r, static_cast<int64_t>(i));
    sums[i] = sum;
  }
  const Memory a(ctx, mine);
  comm_->reduce_scatter(a.data(), a.data() + rank * kCount, kCount, DType::kF32);
  const std::vector<float> scattered = a.read(*comm_);
  const bool ordered = kTestDevice == Device::kCpu || ranks == 2;  // NCCL's order is its own
  for (int64_t i = rank * kCount; i < (rank + 1) * kCount && ordered; ++i)
    EXPECT_EQ(scattered[static_cast<size_t>(i)], sums[static_cast<size_t>(i)]) << i;

  const Memory b(ctx, std::vector<float>(all, static_cast<float>(rank)));
  comm_->all_gather(b.data() + rank * kCount, b.data(), kCount, DType::kF32);
  const Memory c(ctx, std::vector<float>(static_cast<size_t>(kCount), static_cast<float>(rank)));
  const Memory d(ctx, std::vector<float>(all, -1.0f));
  const Memory f(ctx, std::vector<float>(static_cast<size_t>(kCount), static_cast<float>(rank)));
  comm_->begin_group();  // may run at the same time, so on different memory
  comm_->all_gather(c.data(), d.data(), kCount, DType::kF32);
  comm_->broadcast(f.data(), kCount, DType::kF32);
  comm_->end_group();
  const std::vector<float> in_place = b.read(*comm_), apart = d.read(*comm_),
                           zeros = f.read(*comm_);
  for (size_t i = 0; i < all; ++i) {
    EXPECT_EQ(in_place[i], static_cast<float>(i / kCount));
    EXPECT_EQ(apart[i], static_cast<float>(i / kCount));
  }
  for (const float x : zeros) EXPECT_EQ(x, 0.0f);
  const Memory e(ctx, {1.0f, static_cast<float>(rank)});
  comm_->all_reduce(e.data(), 2);
  EXPECT_EQ(e.read(*comm_), (std::vector<float>{static_cast<float>(ranks),
                                                static_cast<float>(ranks * (ranks - 1) / 2)}));
}

// Recorded and called in turns, as a step does it; NCCL synchronises the two in different ways.
TEST_F(Ranks, CopyEnginesAddInTheOrderOfRanks) {
  if (!comm_->uses_copy_engines()) GTEST_SKIP() << comm_->description() << " uses none";
  Context ctx(kTestDevice);
  const int ranks = comm_->size(), rank = comm_->rank();
  constexpr int64_t kSmall = 8, kLarge = 70'000, kRounds = 60;
  const int64_t all = (kSmall + kLarge) * ranks;
  const auto bytes = static_cast<size_t>(all) * sizeof(float);
  const Arena memory = comm_->allocate(bytes, "t"), scratch = comm_->allocate(bytes, "t");
  const TensorSpec spec({all});
  const auto f32 = [](const Arena& a, int64_t at) {
    return reinterpret_cast<float*>(a.data()) + at;
  };
  std::vector<float> mine(static_cast<size_t>(all));
  for (size_t i = 0; i < mine.size(); ++i) mine[i] = number(rank, static_cast<int64_t>(i));
  const Memory source(ctx, mine);
  StreamEvent begin, end;
  const std::array segments = {std::pair{int64_t{0}, kSmall}, std::pair{kSmall * ranks, kLarge}};
  // Sums of two segments in one group, in place; then all ranks get all sums.
  const auto work = [&] {
    copy(ctx, memory.at(0, spec), source.view());
    begin.record(ctx);
    begin.wait_on(comm_->stream());
    comm_->begin_group();
    for (const auto& [at, count] : segments)
      comm_->reduce_scatter_by_copies(f32(memory, at), f32(scratch, at),
                                      f32(memory, at + rank * count), count, DType::kF32);
    comm_->end_group();
    comm_->begin_group();
    for (const auto& [at, count] : segments)
      comm_->all_gather(f32(memory, at + rank * count), f32(memory, at), count, DType::kF32);
    comm_->end_group();
    end.record_on(comm_->stream());
    end.wait(ctx);
  };
  std::vector<float> sums(mine.size());
  for (size_t i = 0; i < sums.size(); ++i) {
    sums[i] = number(0, static_cast<int64_t>(i));
    for (int r = 1; r < ranks; ++r) sums[i] += number(r, static_cast<int64_t>(i));
  }
  work();
  EXPECT_EQ(golden::fetch(ctx, memory.at(0, spec)), sums);
  const LaunchGraph graph(ctx, work);
  for (int64_t i = 0; i < kRounds; ++i) {
    if (i % 3 == 2)
      work();
    else
      graph.launch(ctx);
    if (i % 7 == 0) {
      EXPECT_EQ(golden::fetch(ctx, memory.at(0, spec)), sums) << i;
    }
  }
  EXPECT_EQ(golden::fetch(ctx, memory.at(0, spec)), sums);
  // bf16, rounded once.
  std::vector<BF16> halves(static_cast<size_t>(kLarge * ranks));
  for (size_t i = 0; i < halves.size(); ++i)
    halves[i] = to_bf16(number(rank, static_cast<int64_t>(i)));
  const TensorSpec half({kLarge * ranks}, DType::kBF16);
  copy(ctx, memory.at(0, half), TensorView(halves.data(), half));
  ctx.synchronize("test");
  auto* p = reinterpret_cast<BF16*>(memory.data());
  comm_->reduce_scatter_by_copies(p, scratch.data(), p + rank * kLarge, kLarge, DType::kBF16);
  end.record_on(comm_->stream());
  end.wait(ctx);
  copy(ctx, TensorView(halves.data(), half), memory.at(0, half));
  ctx.synchronize("test");
  for (int64_t i = rank * kLarge; i < (rank + 1) * kLarge; ++i) {
    float sum = to_float(to_bf16(number(0, i)));
    for (int r = 1; r < ranks; ++r) sum += to_float(to_bf16(number(r, i)));
    EXPECT_EQ(to_float(halves[static_cast<size_t>(i)]), to_float(to_bf16(sum))) << i;
  }
}

TEST_F(Ranks, AgreeOnErrors) {
  HostGroup& group = comm_->group();
  EXPECT_EQ(group.broadcast(group.rank() == 0 ? std::string(5000, 'x') : ""),
            std::string(5000, 'x'));
  agree(&group, [] {});
  try {
    agree(&group, [&] { RWKV_CHECK(group.rank() != 1, IoError, "no file"); });
    ADD_FAILURE() << "rank 1 failed";
  } catch (const AgreedError& e) {
    EXPECT_EQ(group.rank(), 0);
    EXPECT_EQ(e.exit_code(), 3);
    EXPECT_STREQ(e.what(), "rank 1: no file");
  } catch (const ReportedError& e) {
    EXPECT_NE(group.rank(), 0);
    EXPECT_EQ(e.exit_code(), 3);
  }
  const std::string folder(6000, 'f');
  try {
    agree(&group, [&] { RWKV_CHECK(group.rank() != 1, IoError, folder, ": advice"); });
    ADD_FAILURE() << "rank 1 failed";
  } catch (const AgreedError& e) {
    EXPECT_EQ(e.what(), "rank 1: " + folder + ": advice") << "whatever its length";
  } catch (const ReportedError& e) {
    EXPECT_NE(group.rank(), 0);
  }
  require_same(group, "the colour", "blue");
  try {
    require_same(group, "the colour", group.rank() + 1 == group.size() ? "red" : "blue");
    ADD_FAILURE() << "colours differ";
  } catch (const AgreedError& e) {
    const std::string text = e.what();
    EXPECT_NE(text.find(str("the colour of rank ", group.size() - 1, " differs")), text.npos)
        << text;
  } catch (const ReportedError&) {
    EXPECT_NE(group.rank(), 0);
  }
}

}  // namespace
}  // namespace rwkv

int main(int argc, char** argv) {
  return rwkv::test::run_rank_tests(argc, argv);
}
