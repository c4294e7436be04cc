// Training steps on several ranks: the forty steps of the reference files whatever the number of
// ranks, the same bits whatever the ranks divide among them, and what that takes of memory.
// mpirun -n 2 dist_step_test; skipped in a single process.

#include <array>
#include <cmath>
#include <cstring>

#include "kernels/core/gemm.h"
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
using test::Ranks;

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

class TrainFile : public Ranks, public testing::WithParamInterface<const char*> {
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

TEST_F(Ranks, WhatIsAddedOnTheHostIsPlanned) {
  if (kTestDevice != Device::kCpu) GTEST_SKIP() << "for ranks of the CPU";
  const auto planned = [](const TrainStep& step) {
    for (const MemoryItem& item : step.memory())
      if (item.name == "gradients from all ranks") return item.bytes;
    return size_t{0};
  };
  for (const int64_t vocab : {16, 3000})  // the largest segment: a block, the embedding
    for (const DType exchange : {DType::kF32, DType::kBF16})
      for (const ZeroStage zero :
           {ZeroStage::kPlain, ZeroStage::kOptimizer, ZeroStage::kGradients}) {
        ModelConfig c;
        c.n_layer = 2, c.n_embd = 64, c.vocab_size = vocab;
        TrainStepOptions o;
        o.batch = 1, o.tokens = 16, o.zero = zero, o.exchange = exchange;
        o.planned_ranks = comm_->size();
        const size_t without = planned(TrainStep(c, o));
        o.comm = comm_;
        TrainStep step(c, o);
        EXPECT_EQ(planned(step), without);
        EXPECT_GE(without, sizeof(float) * static_cast<size_t>(vocab) * 64);
        step.allocate();
        EXPECT_EQ(comm_->reduction_bytes(), without);
        step.initialize({.seed = 1, .lr = 1e-3});
        step.accumulate(0);
        step.finish(1e-3);
        step.gather();
        step.download();
        EXPECT_EQ(comm_->reduction_bytes(), without) << "it was too little";
      }
}

}  // namespace
}  // namespace rwkv

int main(int argc, char** argv) {
  return rwkv::test::run_rank_tests(argc, argv);
}
