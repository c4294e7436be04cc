// Checkpoints in several files: any number of ranks, damage, mixtures, full disks, tools.

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>

#include <filesystem>
#include <thread>

#include "data/io/hdf5_shards.h"
#include "kernels/core/error.h"
#include "model/model_file.h"
#include "tests/unit/checkpoint_content.h"
#include "tests/unit/trainer_test_util.h"
#include "trainer/shard_checkpoint.h"

#ifdef __SANITIZE_ADDRESS__
// HDF5 forgets what it still had to write when a file cannot be closed because the disk is full.
extern "C" const char* __lsan_default_suppressions() {
  return "leak:libhdf5";
}
#endif

namespace rwkv {
namespace {

namespace fs = std::filesystem;
using test::Content;
using test::file_bytes;
using test::message_of;
using test::ScratchDir;
using test::write_bytes;

constexpr const char* kConfig = R"({"train":{"batch":3}})";

/// One part of a rank's state, as ShardedParams has it.
std::vector<float> shard_of(const Content& c, const ShardLayout& layout, int rank, StatePart part) {
  const ParamStore& from = part == StatePart::kValues ? c.values
                           : part == StatePart::kM    ? c.m
                                                      : c.v;
  std::vector<float> shard(static_cast<size_t>(layout.shard_elements()), -7.0f);
  for (const ShardLayout::Part& p : layout.parts(rank))
    std::copy_n(from[p.id].f32() + p.begin, p.count, shard.begin() + p.at);
  return shard;
}

/// What all ranks do together, one after the other.
void write_folder(const Content& c, const std::string& folder, int ranks) {
  const ShardLayout layout(c.model->params(), ranks);
  ShardIndex index = plan_shards(c.model->params(), layout);
  for (int r = 0; r < ranks; ++r) {
    ShardWriter writer(folder, r, index, layout);
    for (const StatePart part : kStateParts) writer.write(part, shard_of(c, layout, r, part));
    index.files[static_cast<size_t>(r)] = writer.finish();
  }
  write_shard_index(folder, c.model->config(), index, c.state, kConfig, c.tokenizer);
}

std::string write(const Content& c, const ScratchDir& dir, int ranks) {
  const std::string path = shard_checkpoint_path(dir.str(), c.state.step);
  CheckpointFolder folder(path);
  write_folder(c, folder.temp_path(), ranks);
  folder.commit();
  return path;
}

TEST(ShardCheckpoint, PartsOfAnyNumberOfRanksCoverEverythingOnce) {
  const Content c(1);
  for (const int ranks : {1, 2, 3, 4, 7}) {
    const ShardLayout layout(c.model->params(), ranks);
    std::vector<std::vector<int>> seen;
    for (const ParamSpec& p : c.model->params().specs())
      seen.emplace_back(static_cast<size_t>(p.spec.numel()), 0);
    for (int r = 0; r < ranks; ++r) {
      int64_t end = 0;
      for (const ShardLayout::Part& p : layout.parts(r)) {
        EXPECT_GE(p.at, end);
        end = p.at + p.count;
        for (int64_t i = 0; i < p.count; ++i)
          ++seen[static_cast<size_t>(p.id)][static_cast<size_t>(p.begin + i)];
      }
      EXPECT_LE(end, layout.shard_elements());
    }
    for (const auto& tensor : seen)
      for (const int n : tensor) ASSERT_EQ(n, 1) << ranks;
  }
}

TEST(ShardCheckpoint, ComesBackFromAnyNumberOfRanksOnAnyOther) {
  for (const int ranks : {1, 2, 4}) {
    const ScratchDir dir("shards");
    const Content a(1);
    const std::string path = write(a, dir, ranks);
    EXPECT_EQ(fs::path(path).filename(), "step_00000500.shards");
    Content b(2);
    std::string config;
    const TrainerState s = read_checkpoint(path, b.ref(), &config);
    EXPECT_TRUE(a.same_numbers(b)) << ranks;
    EXPECT_EQ(config, kConfig);
    EXPECT_EQ(trainer_state_json(s), trainer_state_json(a.state));
    EXPECT_EQ(read_checkpoint_state(path).tokens, a.state.tokens);
    // What other numbers of ranks would read.
    const ShardCheckpoint from(path, a.model->config(), a.model->params());
    for (const int others : {1, 2, 3, 4}) {
      const ShardLayout layout(a.model->params(), others);
      for (int r = 0; r < others; ++r) {
        from.check(r, others);
        for (const StatePart part : kStateParts) {
          std::vector<float> shard(static_cast<size_t>(layout.shard_elements()), -7.0f);
          for (const ShardLayout::Part& p : layout.parts(r))
            from.read(
                part, p.id, p.begin,
                std::span(shard).subspan(static_cast<size_t>(p.at), static_cast<size_t>(p.count)));
          EXPECT_EQ(shard, shard_of(a, layout, r, part)) << ranks << " to " << others;
        }
      }
    }
  }
}

TEST(ShardCheckpoint, EqualRunsWriteEqualBytes) {
  const ScratchDir one("shards_one"), two("shards_two");
  const Content a(1);
  const std::string p = write(a, one, 2), q = write(a, two, 2);
  for (const char* name : {"index.h5", "rank_0000.h5", "rank_0001.h5"})
    EXPECT_EQ(file_bytes(p + "/" + name), file_bytes(q + "/" + name)) << name;
}

/// The message of reading the checkpoint, and that it is an IoError.
std::string damage(const std::string& path) {
  Content b(2);
  EXPECT_THROW(read_checkpoint(path, b.ref()), IoError);
  EXPECT_THROW(check_checkpoint_files(path), IoError);
  return message_of([&] { read_checkpoint(path, b.ref()); });
}

TEST(ShardCheckpoint, MissingCutForeignAndCorruptFilesAreNamed) {
  const ScratchDir dir("shards"), other("shards_other");
  const Content a(1);
  const std::string path = write(a, dir, 3), file = path + "/rank_0001.h5";
  const std::string good = file_bytes(file);
  const auto expect = [&](const char* what) {
    const std::string said = damage(path);
    EXPECT_NE(said.find("rank_0001.h5"), std::string::npos) << said;
    EXPECT_NE(said.find(what), std::string::npos) << said;
  };
  fs::remove(file);
  expect("No such file");
  write_bytes(file, good.substr(0, good.size() - 1000));
  expect("it was cut short, or belongs to another checkpoint");
  std::string bad = good;
  bad[bad.size() / 2] = static_cast<char>(bad[bad.size() / 2] ^ 1);
  write_bytes(file, bad);
  expect("does not match: the file is corrupt");
  // Of a later checkpoint: as large, and whole by itself.
  std::string foreign;
  for (uint64_t seed = 2; foreign.size() != good.size() && seed < 50; ++seed)
    foreign = file_bytes(write(Content(seed), other, 3) + "/rank_0001.h5");
  ASSERT_EQ(foreign.size(), good.size());
  write_bytes(file, foreign);
  expect("belongs to another checkpoint");
  write_bytes(file, good);
  EXPECT_NO_THROW(check_checkpoint_files(path));
  // The index of one that fewer ranks wrote does not fit either.
  Content b(2);
  const ScratchDir third("shards_third");
  write_bytes(path + "/index.h5", file_bytes(write(a, third, 2) + "/index.h5"));
  EXPECT_THROW(read_checkpoint(path, b.ref()), IoError);
}

TEST(ShardCheckpoint, AnIndexThatDoesNotCoverATensorIsRefused) {
  const Content a(1);
  const ShardLayout layout(a.model->params(), 2);
  ShardIndex index = plan_shards(a.model->params(), layout);
  EXPECT_NO_THROW(ShardIndex::parse(index.json(), "here"));
  const ShardIndex whole = index;
  index.files[1].pieces.pop_back();
  EXPECT_THROW(ShardIndex::parse(index.json(), "here"), IoError);
  index = whole;
  index.files[0].pieces[0].count += 1;
  EXPECT_THROW(ShardIndex::parse(index.json(), "here"), IoError);
  index = whole;
  index.files[0].pieces[0].tensor = 9999;
  EXPECT_THROW(ShardIndex::parse(index.json(), "here"), IoError);
  for (const char* name : {"../rank_0000.h5", "rank_0001.h5", "index.h5", ""}) {
    index = whole;
    index.files[0].name = name;
    EXPECT_THROW(ShardIndex::parse(index.json(), "here"), IoError) << name;
  }
  EXPECT_THROW(ShardIndex::parse("{", "here"), IoError);
}

TEST(ShardCheckpoint, WhatIsNotFinishedIsNoCheckpoint) {
  const ScratchDir dir("shards");
  Content a(1);
  a.state.step = 10;
  write(a, dir, 2);
  const std::string path = shard_checkpoint_path(dir.str(), 20);
  {
    // Killed: nothing tidies up.
    const std::string temp = CheckpointFolder::temp_path_of(path);
    fs::create_directory(temp);
    a.state.step = 20;
    write_folder(a, temp, 2);
    EXPECT_EQ(list_checkpoints(dir.str()).size(), 1u);
    EXPECT_EQ(remove_stale_run_temporaries(dir.str()), 1u);
    EXPECT_FALSE(fs::exists(temp));
  }
  {
    const CheckpointFolder failed(path);
    write_folder(a, failed.temp_path(), 2);
  }
  EXPECT_EQ(list_checkpoints(dir.str()).size(), 1u);
  size_t entries = 0;
  for ([[maybe_unused]] const auto& entry : fs::directory_iterator(dir.str())) ++entries;
  EXPECT_EQ(entries, 1u) << "nothing is left of it";
  // A folder without its index is one that is damaged.
  fs::create_directory(path);
  EXPECT_EQ(list_checkpoints(dir.str()).size(), 2u);
  Content b(2);
  std::vector<std::string> skipped;
  const std::string loaded = load_newest(
      dir.str(), list_checkpoints(dir.str()),
      [&](const std::string& p) { read_checkpoint(p, b.ref()); },
      [&](const std::string& why) { skipped.push_back(why); });
  EXPECT_EQ(loaded, shard_checkpoint_path(dir.str(), 10));
  ASSERT_EQ(skipped.size(), 1u);
  EXPECT_NE(skipped[0].find("step_00000020.shards"), std::string::npos) << skipped[0];
  EXPECT_EQ(set_aside_newer_checkpoints(dir.str(), loaded), 1u);
  EXPECT_TRUE(fs::is_directory(path + ".damaged"));
  // The run came to that step again, and that one was damaged, too; twice.
  for (const char* name : {".damaged.2", ".damaged.3"}) {
    write_bytes(fs::path(path + ".damaged") / "old", "what a folder holds");
    fs::create_directory(path);
    write_bytes(fs::path(path) / "rest", name);
    EXPECT_EQ(set_aside_newer_checkpoints(dir.str(), loaded), 1u);
    EXPECT_EQ(file_bytes(fs::path(path + name) / "rest"), name);
    EXPECT_TRUE(fs::exists(fs::path(path + ".damaged") / "old"));
  }
  EXPECT_EQ(list_checkpoints(dir.str()).size(), 1u);
}

TEST(ShardCheckpoint, BothFormsAreListedAndPrunedTogether) {
  const ScratchDir dir("shards");
  for (const int64_t step : {10, 20, 30, 40}) {
    Content a(static_cast<uint64_t>(step));
    a.state.step = step;
    if (step % 20 == 0)
      write(a, dir, 2);
    else
      a.write(checkpoint_path(dir.str(), step));
  }
  EXPECT_EQ(list_checkpoints(dir.str()).size(), 4u);
  prune_checkpoints(dir.str(), 2, 0);
  const auto left = list_checkpoints(dir.str());
  ASSERT_EQ(left.size(), 2u);
  EXPECT_EQ(left[0].path, checkpoint_path(dir.str(), 30));
  EXPECT_EQ(left[1].path, shard_checkpoint_path(dir.str(), 40));
  size_t entries = 0;
  for ([[maybe_unused]] const auto& entry : fs::directory_iterator(dir.str())) ++entries;
  EXPECT_EQ(entries, 2u);
}

TEST(ShardCheckpoint, OneThatIsThereIsReplaced) {
  const ScratchDir dir("shards");
  const Content a(1), other(2);
  write(a, dir, 4);
  const std::string path = write(other, dir, 2);
  Content b(3);
  read_checkpoint(path, b.ref());
  EXPECT_TRUE(other.same_numbers(b));
  size_t entries = 0;
  for ([[maybe_unused]] const auto& entry : fs::directory_iterator(dir.str())) ++entries;
  EXPECT_EQ(entries, 1u);
}

TEST(ShardCheckpoint, AFullDiskLeavesTheOldOneAndNoHalfFolder) {
  const ScratchDir dir("shards");
  Content a(1);
  a.state.step = 1;
  const std::string old = write(a, dir, 2);
  a.state.step = 2;
  const auto old_handler = signal(SIGXFSZ, SIG_IGN);
  rlimit before{};
  getrlimit(RLIMIT_FSIZE, &before);
  for (const rlim_t limit : {1000u, 50000u}) {
    const rlimit small{limit, before.rlim_max};
    setrlimit(RLIMIT_FSIZE, &small);
    EXPECT_THROW(write(a, dir, 2), IoError) << limit;
    setrlimit(RLIMIT_FSIZE, &before);
    ASSERT_EQ(list_checkpoints(dir.str()).size(), 1u);
    EXPECT_NO_THROW(check_checkpoint_files(old));
    size_t entries = 0;
    for ([[maybe_unused]] const auto& entry : fs::directory_iterator(dir.str())) ++entries;
    EXPECT_EQ(entries, 1u);
  }
  signal(SIGXFSZ, old_handler);
}

TEST(ShardCheckpoint, FilesThatRankZeroDoesNotSeeNameTheirRank) {
  const ScratchDir dir("shards");
  using std::chrono::milliseconds;
  std::vector<ShardIndex::File> files;
  for (int r = 0; r < 3; ++r) {
    files.push_back({shard_file_name(r), static_cast<uint64_t>(100 + r), 0, {}});
    write_bytes(dir / shard_file_name(r), std::string(static_cast<size_t>(100 + r), 'x'));
  }
  EXPECT_NO_THROW(require_shard_files(dir.str(), files, milliseconds(0)));
  const auto refusal = [&](milliseconds patience) {
    return message_of([&] { require_shard_files(dir.str(), files, patience); });
  };
  write_bytes(dir / shard_file_name(2), std::string(99, 'x'));
  std::string text = refusal(milliseconds(0));
  EXPECT_NE(text.find("rank 2 wrote 102 bytes"), std::string::npos) << text;
  EXPECT_NE(text.find("rank_0002.h5, rank 0 finds 99 bytes"), std::string::npos) << text;
  EXPECT_NE(text.find("a run folder that all ranks share"), std::string::npos) << text;
  fs::remove(dir / shard_file_name(1));
  text = refusal(milliseconds(150));
  EXPECT_NE(text.find("rank 1 wrote 101 bytes"), std::string::npos) << text;
  EXPECT_NE(text.find("rank 0 finds no such file"), std::string::npos) << text;
  // They are seen a little later.
  std::thread other([&] {
    std::this_thread::sleep_for(milliseconds(50));
    for (const size_t r : {1, 2})
      write_bytes(dir / files[r].name, std::string(static_cast<size_t>(files[r].bytes), 'x'));
  });
  EXPECT_NO_THROW(require_shard_files(dir.str(), files, milliseconds(20000)));
  other.join();
}

TEST(ShardCheckpoint, IsAModelFileForEveryProgram) {
  const ScratchDir dir("shards");
  const Content a(1);
  const std::string path = write(a, dir, 3);
  const ModelFile file = ModelFile::open(path);
  EXPECT_EQ(file.config(), a.model->config());
  EXPECT_EQ(file.tokenizer().blob, a.tokenizer.blob);
  const OpenedModel m = open_model(file);
  EXPECT_EQ(0, std::memcmp(m.weights->flat().data(), a.values.flat().data(),
                           a.values.flat().size_bytes()));
  ParamStore initial(Device::kCpu, a.model->params(), "p");
  read_initial_weights(path, a.model->config(), a.model->params(), initial);
  EXPECT_EQ(
      0, std::memcmp(initial.flat().data(), a.values.flat().data(), a.values.flat().size_bytes()));
  // Its parts are none.
  EXPECT_NE(message_of([&] { ModelFile::open(path + "/index.h5"); }).find("give the folder"),
            std::string::npos);
  EXPECT_THROW(ModelFile::open(path + "/rank_0000.h5"), IoError);
  const std::string file_1 = path + "/rank_0001.h5";
  write_bytes(file_1, file_bytes(file_1).substr(0, 5000));
  EXPECT_THROW(open_model(ModelFile::open(path)), IoError);
}

TEST(ShardCheckpoint, AnotherModelIsAnErrorOfTheConfig) {
  const ScratchDir dir("shards");
  const Content a(1);
  Content wider(2, 48);
  const std::string path = write(a, dir, 2);
  EXPECT_THROW(read_checkpoint(path, wider.ref()), ConfigError);
}

}  // namespace
}  // namespace rwkv
