// TensorBoard event files: bytes as protobuf made them, framing, and what a resumed run does.

#include <gtest/gtest.h>

#include <signal.h>
#include <sys/resource.h>

#include <cmath>
#include <cstdlib>
#include <cstring>

#include "data/io/crc32.h"
#include "kernels/core/error.h"
#include "tests/unit/trainer_test_util.h"
#include "trainer/event_file.h"

namespace rwkv {
namespace {

namespace fs = std::filesystem;

std::string from_hex(std::string_view hex) {
  std::string out;
  for (size_t i = 0; i + 1 < hex.size(); i += 3)
    out += static_cast<char>(std::stoi(std::string(hex.substr(i, 2)), nullptr, 16));
  return out;
}

uint32_t crc_of(std::string_view s) {
  return crc32c(std::as_bytes(std::span(s.data(), s.size())));
}

TEST(Crc32c, KnownValues) {
  EXPECT_EQ(crc_of("123456789"), 0xE3069283u);
  EXPECT_EQ(crc_of(std::string(32, '\0')), 0x8A9136AAu);
  EXPECT_EQ(crc_of(""), 0u);
}

TEST(Events, BytesOfTheFormatsExamples) {
  EXPECT_EQ(
      event_record(event_version(1700000000)),
      from_hex("18 00 00 00 00 00 00 00 a3 7f 4b 22 09 00 00 00 40 fc 54 d9 41 1a 0d 62 72 61 "
               "69 6e 2e 45 76 65 6e 74 3a 32 ec ed 8f 9d"));
  const EventScalar loss{"train/loss", 10.5};
  EXPECT_EQ(
      event_record(event_scalars(1700000001.5, 1, {&loss, 1})),
      from_hex("20 00 00 00 00 00 00 00 29 ed a9 50 09 00 00 60 40 fc 54 d9 41 10 01 2a 13 0a "
               "11 0a 0a 74 72 61 69 6e 2f 6c 6f 73 73 15 00 00 28 41 a2 a1 1e 1d"));
}

TEST(Events, AZeroIsAValue) {
  const EventScalar zero{"wd", 0};
  const std::string message = event_scalars(1, 1, {&zero, 1});
  EXPECT_TRUE(message.ends_with(std::string("\x0a\x02wd\x15\0\0\0\0", 9)));
}

TEST(Events, RecordsOfTheReferenceFile) {
  const char* folder = std::getenv("RWKV_TEST_DATA");
  if (folder == nullptr) GTEST_SKIP() << "RWKV_TEST_DATA is not set";
  const std::string file =
      test::file_bytes(std::string(folder) + "/refs/tensorboard_sample.tfevents");
  const EventScalar loss{"train/loss", 10.5};
  const std::vector<EventScalar> two = {{"train/loss", 3.25}, {"train/lr", 0.0005}};
  const std::string ours =
      event_record(event_version(1700000000)) +
      event_record(event_scalars(1700000001.5, 1, {&loss, 1})) +
      event_record(event_scalars(1700000002.25, 300, two)) +
      event_record(event_text(1700000003, 300, "sample/text", "a sample line"));
  ASSERT_LT(ours.size(), file.size());
  EXPECT_EQ(ours, file.substr(0, ours.size()));
}

struct Event {
  int64_t step = 0;
  bool session_start = false;
  std::string message;
};

/// Checks the framing, and reads the step and what kind of event it is.
std::vector<Event> read_events(const std::string& path) {
  const std::string file = test::file_bytes(path);
  std::vector<Event> events;
  for (size_t at = 0; at < file.size();) {
    uint64_t length = 0;
    std::memcpy(&length, file.data() + at, 8);
    if (length > file.size() - at) {
      ADD_FAILURE() << "record of " << length << " bytes at " << at;
      break;
    }
    const std::string message = file.substr(at + 12, length);
    EXPECT_EQ(event_record(message), file.substr(at, length + 16)) << "checksums at " << at;
    at += length + 16;
    Event e{.message = message};
    size_t i = 9;  // behind the time
    if (message.size() > i && message[i] == 0x10) {
      int shift = 0;
      do e.step |= int64_t{message[++i] & 0x7f} << (7 * shift++);
      while ((message[i] & 0x80) != 0);
      ++i;
    }
    e.session_start = message.size() > i && message[i] == 0x3a;
    events.push_back(e);
  }
  return events;
}

std::vector<std::string> event_files(const std::string& dir) {
  std::vector<std::string> files;
  for (const auto& entry : fs::directory_iterator(dir)) files.push_back(entry.path().string());
  std::ranges::sort(files);
  return files;
}

TEST(EventLog, NewFilesSortLastAndSayFromWhichStepTheyCount) {
  const test::ScratchDir dir("events");
  std::vector<std::string> made;
  for (const int64_t next : {1, 301, 1}) {  // a run, its continuation, a new run in the same folder
    EventLog log(dir.str(), next);
    made.push_back(log.path());
    StepRecord r;
    r.step = next;
    r.loss = std::nan("");
    log.step(r, 0.1);
    log.valid(next, 2.5);
    log.sample(next, "cut \xe6\x97");
  }
  EXPECT_EQ(event_files(dir.str()), made) << "in this order, though made within a second";
  const auto first = read_events(made[0]), second = read_events(made[1]);
  ASSERT_EQ(first.size(), 4u);
  EXPECT_EQ(first[1].step, 1);
  EXPECT_FALSE(first[1].session_start);
  EXPECT_NE(first[3].message.find("cut \xef\xbf\xbd"), std::string::npos) << "UTF-8 only";
  ASSERT_EQ(second.size(), 5u);
  EXPECT_TRUE(second[1].session_start);
  EXPECT_EQ(second[1].step, 301);
  EXPECT_EQ(second[2].step, 301);
  for (const char* tag : {"loss", "lr", "wd", "Gtokens", "kt/s"})
    EXPECT_NE(second[2].message.find(tag), std::string::npos) << tag;
  EXPECT_EQ(read_events(made[2])[1].step, 1);
}

TEST(EventLog, AFullDiskIsAnError) {
  const test::ScratchDir dir("events");
  EventLog log(dir.str(), 1);
  // A limit on the size of files stands in for a full disk.
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto old_handler = signal(SIGXFSZ, SIG_IGN);
  const rlimit small{100, before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  EXPECT_THROW(log.step(StepRecord{.step = 1, .loss = 1, .loss_avg = 1, .lr = 1}, 0.1), IoError);
  setrlimit(RLIMIT_FSIZE, &before);
  signal(SIGXFSZ, old_handler);
}

TEST(EventLog, UnwritableFoldersAreErrors) {
  EXPECT_THROW(EventLog("/proc/no/such/folder", 1), IoError);
}

}  // namespace
}  // namespace rwkv
