// Checkpoints: round trip, damage of every kind, full disks, folders.

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>

#include <cstring>

#include "data/io/hdf5_file.h"
#include "kernels/core/error.h"
#include "model/rwkv.h"
#include "tests/unit/checkpoint_content.h"
#include "tests/unit/trainer_test_util.h"
#include "trainer/checkpoint.h"

#ifdef __SANITIZE_ADDRESS__
// HDF5 forgets what it still had to write when a file cannot be closed because the disk is full.
extern "C" const char* __lsan_default_suppressions() {
  return "leak:libhdf5";
}
#endif

namespace rwkv {
namespace {

using test::file_bytes;
using test::ScratchDir;
using test::write_bytes;

using test::Content;
using test::message_of;

TEST(Checkpoint, Rwkv4RoundTripKeepsEveryBit) {
  const ScratchDir dir("checkpoint");
  Content a(1, 24, "rwkv4"), b(2, 24, "rwkv4"), other(2);
  a.write(dir / "c.h5");
  read_checkpoint(dir / "c.h5", b.ref());
  EXPECT_TRUE(a.same_numbers(b));
  EXPECT_NE(message_of([&] { read_checkpoint(dir / "c.h5", other.ref()); }).find("rwkv4"),
            std::string::npos);
}

TEST(Checkpoint, RoundTripKeepsEveryBit) {
  const ScratchDir dir("checkpoint");
  Content a(1), b(2);
  a.write(dir / "c.h5");
  const TrainerState s = read_checkpoint(dir / "c.h5", b.ref());
  EXPECT_TRUE(a.same_numbers(b));
  EXPECT_EQ(s.step, 500);
  EXPECT_EQ(s.updates, 499);
  EXPECT_EQ(s.samples, 1000);
  EXPECT_EQ(s.tokens, 64000);
  EXPECT_EQ(s.nonfinite_total, 1);
  EXPECT_EQ(s.nonfinite_in_a_row, 0);
  EXPECT_EQ(s.loss_avg, a.state.loss_avg);
  EXPECT_EQ(s.loss_avg_weight, 0.3);
  EXPECT_EQ(s.best_valid_loss, 1.25);
  EXPECT_EQ(s.best_valid_step, 400);
  EXPECT_EQ(s.last_valid_loss, 1.5);
  EXPECT_EQ(s.seed, 77u);
  EXPECT_EQ(s.sampler, "shuffle");
  EXPECT_EQ(s.data_hash, "abc");
  EXPECT_EQ(s.data_tokens, 12345);
  EXPECT_EQ(s.wkv, "wkv7.cpu.serial.f32");
  EXPECT_EQ(s.code_version, "test");
  std::string config;
  read_checkpoint_state(dir / "c.h5", &config);
  EXPECT_EQ(config, R"({"train":{"batch":3}})");
  auto file = Hdf5File::open(dir / "c.h5");
  const TokenizerBlob t = read_tokenizer(file);
  EXPECT_EQ(t.name, "world");
  EXPECT_EQ(t.hash, "0123");
  EXPECT_EQ(t.blob, a.tokenizer.blob);
}

TEST(Checkpoint, EqualContentGivesEqualBytes) {
  const ScratchDir dir("checkpoint");
  Content a(1), b(1);
  a.write(dir / "a.h5");
  b.write(dir / "b.h5");
  EXPECT_EQ(file_bytes(dir / "a.h5"), file_bytes(dir / "b.h5"));
}

TEST(Checkpoint, EveryDatasetHasAChecksum) {
  const ScratchDir dir("checkpoint");
  Content a(1);
  a.write(dir / "c.h5");
  const auto file = Hdf5File::open(dir / "c.h5");
  const auto names = file.list_datasets();
  EXPECT_GT(names.size(), 100u);
  for (const auto& n : names) EXPECT_TRUE(file.has_attr(n, "crc32")) << n;
}

TEST(Checkpoint, IsAModelFileToo) {
  const ScratchDir dir("checkpoint");
  Content a(1), b(2);
  a.write(dir / "c.h5");
  read_initial_weights(dir / "c.h5", b.model->config(), b.model->params(), b.values);
  EXPECT_EQ(
      std::memcmp(a.values.flat().data(), b.values.flat().data(), a.values.flat().size_bytes()), 0);
}

TEST(Checkpoint, AnyFlippedBitIsNoticed) {
  const ScratchDir dir("checkpoint");
  Content a(1);
  a.write(dir / "good.h5");
  const std::string good = file_bytes(dir / "good.h5");
  Rng rng(3, hash_name("flips"));
  int noticed = 0;
  const int flips = 300;
  for (int i = 0; i < flips; ++i) {
    std::string bad = good;
    // A third of the flips in the first bytes, where the file describes itself.
    const size_t at = i % 3 == 0 ? rng.next_below(4096) : rng.next_below(bad.size());
    bad[at] = static_cast<char>(bad[at] ^ (1 << rng.next_below(8)));
    write_bytes(dir / "bad.h5", bad);
    Content b(2);
    try {
      read_checkpoint(dir / "bad.h5", b.ref());
      ADD_FAILURE() << "byte " << at << " of " << bad.size() << " went unnoticed";
    } catch (const IoError& e) {
      ++noticed;
      EXPECT_NE(std::string(e.what()).find("bad.h5"), std::string::npos) << e.what();
    }
  }
  EXPECT_EQ(noticed, flips);
}

TEST(Checkpoint, DamagedNumbersNameFileAndDataset) {
  const ScratchDir dir("checkpoint");
  Content a(1), b(2);
  a.write(dir / "c.h5");
  std::string bytes = file_bytes(dir / "c.h5");
  // Find the first numbers of one second moment in the file and change one bit.
  const auto id = *a.model->params().find("blocks.1.ffn.key.weight");
  const std::string needle(static_cast<const char*>(a.v[id].data), 64);
  const size_t at = bytes.find(needle);
  ASSERT_NE(at, std::string::npos);
  bytes[at + 5] = static_cast<char>(bytes[at + 5] ^ 1);
  write_bytes(dir / "c.h5", bytes);
  const std::string what = message_of([&] { read_checkpoint(dir / "c.h5", b.ref()); });
  EXPECT_NE(what.find("c.h5"), std::string::npos) << what;
  EXPECT_NE(what.find("optimizer/v/blocks.1.ffn.key.weight"), std::string::npos) << what;
  EXPECT_NE(what.find("checksum"), std::string::npos) << what;
}

TEST(Checkpoint, TruncatedForeignAndMissingFilesAreIoErrors) {
  const ScratchDir dir("checkpoint");
  Content a(1), b(2);
  a.write(dir / "c.h5");
  const std::string bytes = file_bytes(dir / "c.h5");
  for (const double part : {0.0, 0.001, 0.3, 0.9, 0.9999}) {
    write_bytes(dir / "short.h5",
                bytes.substr(0, static_cast<size_t>(part * static_cast<double>(bytes.size()))));
    EXPECT_THROW(read_checkpoint(dir / "short.h5", b.ref()), IoError) << part;
  }
  write_bytes(dir / "text.h5", "this is no HDF5 file\n");
  EXPECT_THROW(read_checkpoint(dir / "text.h5", b.ref()), IoError);
  EXPECT_THROW(read_checkpoint(dir / "none.h5", b.ref()), IoError);
  {  // an HDF5 file of somebody else
    auto file = Hdf5File::create(dir / "foreign.h5");
    file.write_scalar<double>("temperature", 21.5);
    file.close();
  }
  EXPECT_THROW(read_checkpoint(dir / "foreign.h5", b.ref()), IoError);
  {  // weights only
    auto file = Hdf5File::create(dir / "model.h5");
    write_model(file, a.model->config(), a.model->params(), a.values, {});
    file.close();
  }
  const std::string what = message_of([&] { read_checkpoint(dir / "model.h5", b.ref()); });
  EXPECT_NE(what.find("--init"), std::string::npos) << what;
}

TEST(Checkpoint, AnotherModelIsAConfigError) {
  const ScratchDir dir("checkpoint");
  Content a(1), b(2, 25);
  a.write(dir / "c.h5");
  EXPECT_THROW(read_checkpoint(dir / "c.h5", b.ref()), ConfigError);
  EXPECT_THROW(read_initial_weights(dir / "c.h5", b.model->config(), b.model->params(), b.values),
               ConfigError);
}

TEST(Checkpoint, FullDiskLeavesTheOldOnesAlone) {
  const ScratchDir dir("checkpoint");
  Content a(1), b(2);
  a.write(dir / "step_00000001.h5");
  const std::string before = file_bytes(dir / "step_00000001.h5");
  // Root may write anywhere: a limit on file sizes stands in for a full disk.
  struct sigaction ignore = {}, saved = {};
  ignore.sa_handler = SIG_IGN;
  sigaction(SIGXFSZ, &ignore, &saved);
  rlimit old{};
  getrlimit(RLIMIT_FSIZE, &old);
  for (const rlim_t limit : {rlim_t{100}, rlim_t{20000}, static_cast<rlim_t>(before.size() - 1)}) {
    rlimit low = old;
    low.rlim_cur = limit;
    setrlimit(RLIMIT_FSIZE, &low);
    std::string error;
    try {
      b.write(dir / "step_00000001.h5");  // over an old one
    } catch (const IoError& e) {
      error = e.what();
    }
    EXPECT_THROW(b.write(dir / "step_00000002.h5"), IoError) << limit;
    setrlimit(RLIMIT_FSIZE, &old);
    EXPECT_NE(error.find("step_00000001.h5"), std::string::npos) << limit << ": " << error;
    EXPECT_EQ(file_bytes(dir / "step_00000001.h5"), before) << limit;
  }
  sigaction(SIGXFSZ, &saved, nullptr);
  size_t files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(dir.str())) {
    ++files;
    EXPECT_EQ(entry.path().filename(), "step_00000001.h5");
  }
  EXPECT_EQ(files, 1u);
}

TEST(Checkpoint, UnwritableFoldersAreIoErrors) {
  Content a(1);
  EXPECT_THROW(a.write("/proc/step_00000001.h5"), IoError);  // read-only even for root
  EXPECT_THROW(a.write("/no/such/folder/step_00000001.h5"), IoError);
  EXPECT_THROW(RunLock("/proc/run"), IoError);
}

TEST(Checkpoint, NewestGoodOneIsUsedAndTheOthersReported) {
  const ScratchDir dir("checkpoint");
  Content b(2);
  for (const int64_t step : {10, 20, 30}) {
    Content a(static_cast<uint64_t>(step));
    a.state.step = step;
    a.write(checkpoint_path(dir.str(), step));
  }
  const std::string newest = checkpoint_path(dir.str(), 30);
  write_bytes(newest, file_bytes(newest).substr(0, 5000));
  write_bytes(checkpoint_path(dir.str(), 40), "");
  write_bytes(dir / "notes.h5", "not a checkpoint by name");
  std::vector<std::string> reports;
  TrainerState s;
  const auto newest_of = [&](const std::string& folder) {
    return load_newest(
        folder, list_checkpoints(folder),
        [&](const std::string& path) { s = read_checkpoint(path, b.ref()); },
        [&](const std::string& why) { reports.push_back(why); });
  };
  EXPECT_EQ(newest_of(dir.str()), checkpoint_path(dir.str(), 20));
  EXPECT_EQ(s.step, 20);
  EXPECT_TRUE(Content(20).same_numbers(b));
  ASSERT_EQ(reports.size(), 2u);
  EXPECT_NE(reports[0].find("step_00000040.h5"), std::string::npos) << reports[0];
  EXPECT_NE(reports[1].find("step_00000030.h5"), std::string::npos) << reports[1];

  for (const int64_t step : {10, 20}) write_bytes(checkpoint_path(dir.str(), step), "x");
  const std::string what = message_of([&] { newest_of(dir.str()); });
  EXPECT_NE(what.find("none of its 4"), std::string::npos) << what;
  EXPECT_THROW(newest_of(dir / "empty"), ConfigError);
}

TEST(Checkpoint, PruningKeepsTheNewestAndTheMilestones) {
  const ScratchDir dir("checkpoint");
  for (int64_t step = 10; step <= 100; step += 10)
    write_bytes(checkpoint_path(dir.str(), step), "");
  prune_checkpoints(dir.str(), 2, 40);
  std::vector<int64_t> steps;
  for (const auto& f : list_checkpoints(dir.str())) steps.push_back(f.step);
  EXPECT_EQ(steps, (std::vector<int64_t>{40, 80, 90, 100}));
  prune_checkpoints(dir.str(), 1, 0);
  EXPECT_EQ(list_checkpoints(dir.str()).size(), 1u);
}

TEST(Checkpoint, TemporariesOfDeadRunsAreRemoved) {
  const ScratchDir dir("checkpoint");
  // A process number that cannot exist: above the kernel's largest.
  write_bytes(dir / "step_00000010.h5.99999999-0.tmp", "half");
  write_bytes(dir / "log.jsonl.99999999-1.tmp", "half");
  write_bytes(dir / "notes.tmp", "not ours");
  write_bytes(dir / "step_00000020.h5", "");
  EXPECT_EQ(remove_stale_run_temporaries(dir.str()), 2u);
  EXPECT_TRUE(std::filesystem::exists(dir / "notes.tmp"));
  EXPECT_FALSE(std::filesystem::exists(dir / "log.jsonl.99999999-1.tmp"));
  EXPECT_FALSE(std::filesystem::exists(dir / "step_00000010.h5.99999999-0.tmp"));
  EXPECT_TRUE(std::filesystem::exists(dir / "step_00000020.h5"));
}

TEST(Checkpoint, OneRunPerFolder) {
  const ScratchDir dir("checkpoint");
  {
    const RunLock lock(dir / "run");
    EXPECT_THROW(RunLock(dir / "run"), ConfigError);
  }
  const RunLock again(dir / "run");
}

}  // namespace
}  // namespace rwkv
