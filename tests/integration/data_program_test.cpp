// rwkv-data as people run it: text to ids and back, binidx and back, exit codes, Ctrl-C.

#include <gtest/gtest.h>
#include <signal.h>

#include <chrono>
#include <fstream>
#include <thread>

#include "data/binidx.h"
#include "data/io/atomic_file.h"
#include "tests/integration/program.h"
#include "tests/unit/data_test_util.h"

namespace rwkv {
namespace {

class DataProgram : public testing::Test {
 protected:
  static void put(const std::string& path, const std::string& bytes) {
    std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
  }
  /// Starts the program in the scratch folder; `input` becomes its standard input.
  pid_t start(std::vector<std::string> args, int input = -1) {
    args.insert(args.begin(), std::string(RWKV_BINARY_DIR) + "/bin/rwkv-data");
    return test::start_program(dir_.path(), args, input);
  }
  static int wait(pid_t pid) { return test::wait_for(pid); }
  int run(std::vector<std::string> args) { return wait(start(std::move(args))); }
  std::string out() const { return read_file(dir_.file("out")); }
  std::string err() const { return read_file(dir_.file("err")); }
  bool err_has(const std::string& part) const { return err().find(part) != std::string::npos; }

  test::TempDir dir_;
};

TEST_F(DataProgram, AnyBytesToIdsAndBack) {
  std::string bytes;
  for (int i = 0; i < 3000; ++i) bytes += static_cast<char>(i * 7919 >> 3);
  bytes += std::string("there\n\0\r\n", 9) + "thexy";
  put(dir_.file("in"), bytes);
  put(dir_.file("vocab.txt"), test::tiny_world_vocabulary());
  for (const auto& how :
       std::vector<std::vector<std::string>>{{"--tokenizer", "bytes"}, {"--vocab", "vocab.txt"}}) {
    const auto with = [&](std::vector<std::string> args) {
      args.insert(args.end(), how.begin(), how.end());
      return args;
    };
    ASSERT_EQ(run(with({"encode", "in", "-o", "ids"})), 0) << err();
    ASSERT_EQ(run(with({"decode", "ids"})), 0) << err();
    EXPECT_EQ(out(), bytes) << how[1];
    ASSERT_EQ(run(with({"encode", "in", "--lines", "-o", "ids"})), 0) << err();
    ASSERT_EQ(run(with({"decode", "ids", "--lines", "-o", "back"})), 0) << err();
    EXPECT_EQ(read_file(dir_.file("back")), bytes + "\n");
  }
  ASSERT_EQ(run({"encode", "in", "--tokenizer", "bytes", "--lines"}), 0);
  put(dir_.file("ids"), "[97, 98]\n[1, 257]\n");
  EXPECT_EQ(run({"decode", "ids", "--tokenizer", "bytes"}), 3);
  EXPECT_TRUE(err_has("ids, line 2, column 5: the id 257")) << err();
  EXPECT_EQ(run({"decode", "none", "--tokenizer", "bytes"}), 3);
  EXPECT_EQ(run({"encode", "in", "--tokenizer", "nonsense"}), 2);
}

TEST_F(DataProgram, BinidxAndBack) {
  put(dir_.file("a.txt"), "some text of one document");
  ASSERT_EQ(run({"tokenize", "a.txt", "-o", "a.h5", "--tokenizer", "bytes"}), 0) << err();
  ASSERT_EQ(run({"convert", "a.h5", "b.bin"}), 0) << err();
  ASSERT_EQ(run({"convert", "b", "c.h5", "--tokenizer", "bytes"}), 0) << err();
  ASSERT_EQ(run({"convert", "c.h5", "d", "--to", "binidx"}), 0) << err();
  for (const char* end : {".bin", ".idx"})
    EXPECT_EQ(read_file(dir_.file("b") + end), read_file(dir_.file("d") + end)) << end;
  EXPECT_EQ(run({"info", "b", "--ctx", "4"}), 0) << err();
  EXPECT_NE(out().find("6 slots, magic prime 5"), std::string::npos) << out();
  EXPECT_EQ(run({"verify", "b.idx"}), 0) << err();

  EXPECT_EQ(run({"convert", "b", "c.h5"}), 2) << "which tokenizer?";
  EXPECT_EQ(run({"convert", "a.h5", "e"}), 2) << "to what?";
  EXPECT_EQ(run({"convert", "a.h5", "e.h5"}), 2);
  EXPECT_EQ(run({"convert", "a.h5", "e.bin", "--tokenizer", "bytes"}), 2);
  std::filesystem::resize_file(dir_.file("b.idx"), 40);
  for (const char* command : {"info", "verify"}) EXPECT_EQ(run({command, "b"}), 3);
  EXPECT_EQ(run({"convert", "b", "e.h5", "--tokenizer", "bytes"}), 3);
  EXPECT_TRUE(err_has("b.idx")) << err();
  EXPECT_FALSE(std::filesystem::exists(dir_.file("e.h5")));
}

TEST_F(DataProgram, SaysWhatIsMissingOrSomethingElse) {
  put(dir_.file("a.txt"), "some text");
  ASSERT_EQ(run({"tokenize", "a.txt", "-o", "a.h5", "--tokenizer", "bytes"}), 0) << err();
  ASSERT_EQ(run({"convert", "a.h5", "b.bin"}), 0) << err();
  const auto expect = [&](std::vector<std::string> args, int code, const std::string& message) {
    EXPECT_EQ(run(std::move(args)), code) << message;
    EXPECT_TRUE(err_has(message)) << err();
  };
  expect({"convert", "none", "x.h5"}, 3, "no such file, and no binidx data none.bin and none.idx");
  expect({"convert", "a.txt", "x.h5"}, 3, "a.txt: it is no token file");
  expect({"info", "none"}, 3, "none.bin");
  expect({"info", "a.txt"}, 3, "rwkv-data tokenize a.txt -o FILE.h5");
  std::filesystem::remove(dir_.file("b.idx"));
  expect({"info", "b"}, 3, "opening b.idx: No such file");
  expect({"convert", "b", "x.h5", "--tokenizer", "bytes"}, 3, "opening b.idx: No such file");
  for (const char* ctx : {"0", "-1"}) expect({"info", "a.h5", "--ctx", ctx}, 2, "--ctx");
  EXPECT_EQ(run({"info", "a.h5", "--ctx", "1000"}), 0);
  EXPECT_NE(out().find("1000: longer than the data"), std::string::npos) << out();
  for (const char* command : {"encode", "decode"})
    expect({command, "a.txt", "--tokenizer", "bytes", "--vocab", "a.txt"}, 2, "leave --vocab");
}

TEST_F(DataProgram, NoOutputReplacesAnInputOrAnotherOutput) {
  put(dir_.file("a.txt"), "some text");
  std::filesystem::create_hard_link(dir_.file("a.txt"), dir_.file("hard"));
  std::filesystem::create_symlink("a.txt", dir_.file("soft"));
  for (const char* name : {"a.txt", "./a.txt", "hard", "soft"}) {
    EXPECT_EQ(run({"tokenize", "a.txt", "-o", name, "--tokenizer", "bytes"}), 2) << name;
    EXPECT_TRUE(err_has("is the same file")) << err();
    EXPECT_EQ(run({"encode", "a.txt", "-o", name, "--tokenizer", "bytes"}), 2) << name;
    EXPECT_EQ(run({"decode", "a.txt", "-o", name, "--tokenizer", "bytes"}), 2) << name;
  }
  EXPECT_EQ(run({"tokenize", ".", "-o", "b.h5", "--valid-fraction", "0.5", "--valid", "a.txt",
                 "--tokenizer", "bytes"}),
            2);
  EXPECT_EQ(run({"tokenize", "a.txt", "-o", "b.h5", "--valid-fraction", "0.5", "--valid", "./b.h5",
                 "--tokenizer", "bytes"}),
            2);
  EXPECT_EQ(run({"make-tasks", "-o", "t.h5", "--valid", "./t.h5", "--tokens", "100"}), 2);
  EXPECT_EQ(run({"make-tasks", "-o", "t.h5", "--problems", "t.h5", "--tokens", "100"}), 2);
  EXPECT_EQ(read_file(dir_.file("a.txt")), "some text");
  for (const char* none : {"b.h5", "t.h5"}) EXPECT_FALSE(std::filesystem::exists(dir_.file(none)));
}

TEST_F(DataProgram, RefusesWhatMakesNoSense) {
  put(dir_.file("a.txt"), "some text");
  put(dir_.file("empty.txt"), "");
  const auto tokenize = [&](std::vector<std::string> more) {
    more.insert(more.begin(), "tokenize");
    for (const char* last : {"-o", "b.h5", "--tokenizer", "bytes"}) more.emplace_back(last);
    return run(std::move(more));
  };
  EXPECT_EQ(tokenize({"a.txt", "--valid", "v.h5"}), 2);
  EXPECT_TRUE(err_has("--valid-fraction")) << err();
  EXPECT_EQ(tokenize({"empty.txt"}), 3);
  EXPECT_TRUE(err_has("holds no text")) << err();
  for (const char* threads : {"-1", "5000", "99999999999"})
    EXPECT_EQ(tokenize({"a.txt", "--threads", threads}), 2) << threads;
  EXPECT_FALSE(std::filesystem::exists(dir_.file("b.h5")));
  EXPECT_EQ(tokenize({"a.txt", "--threads", "4096"}), 0) << err();
  EXPECT_EQ(run({"info", "b.h5", "--ctx", "0"}), 2);
  EXPECT_TRUE(err_has("--ctx: found 0, expected at least 1")) << err();
  EXPECT_EQ(run({"info", "b.h5", "--ctx", "9223372036854775808"}), 2);
  EXPECT_TRUE(err_has("to 2^63 - 1")) << err();
}

TEST_F(DataProgram, FilesWithoutASealAreSealedOnRequest) {
  put(dir_.file("a.txt"), "text");
  ASSERT_EQ(run({"tokenize", "a.txt", "-o", "a.h5", "--tokenizer", "bytes"}), 0) << err();
  std::filesystem::resize_file(dir_.file("a.h5"),
                               std::filesystem::file_size(dir_.file("a.h5")) - 1);
  EXPECT_EQ(run({"verify", "a.h5"}), 3);
  EXPECT_TRUE(err_has("--seal")) << err();
  EXPECT_EQ(run({"verify", "a.h5", "--seal"}), 0) << err();
  EXPECT_EQ(run({"verify", "a.h5"}), 0) << err();
}

TEST_F(DataProgram, OneSignalEndsWaitingForInput) {
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) {
    int ends[2];
    ASSERT_EQ(pipe(ends), 0);
    fcntl(ends[1], F_SETFD, FD_CLOEXEC);  // else the program would hold its own input open
    const std::string text = "not the end of the input";
    ASSERT_EQ(write(ends[1], text.data(), text.size()), static_cast<ssize_t>(text.size()));
    const pid_t pid =
        start({"tokenize", "-", "--format", "text", "-o", "a.h5", "--tokenizer", "bytes"}, ends[0]);
    // The output's temporary appears when the signal handlers are in place.
    const auto temporary = [&] {
      for (const auto& entry : std::filesystem::directory_iterator(dir_.path()))
        if (entry.path().extension() == ".tmp") return true;
      return false;
    };
    for (int i = 0; i < 1000 && !temporary(); ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    ASSERT_TRUE(temporary());
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
    EXPECT_EQ(kill(pid, signal), 0);
    const auto code = test::wait_for(pid, std::chrono::seconds(10));
    if (!code) {
      kill(pid, SIGKILL);
      wait(pid);
    }
    close(ends[0]);
    close(ends[1]);
    EXPECT_EQ(code, 128 + signal);
    EXPECT_TRUE(err_has("rwkv-data: interrupted: nothing was written\n")) << err();
    EXPECT_FALSE(temporary());
    EXPECT_FALSE(std::filesystem::exists(dir_.file("a.h5")));
  }
}

}  // namespace
}  // namespace rwkv
