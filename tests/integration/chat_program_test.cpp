// rwkv-generate --chat as a program: lines in, answers out, signals.

#include <gtest/gtest.h>
#include <pty.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

#include "data/tokenizer/utf8.h"
#include "tests/integration/model_folder.h"
#include "tests/integration/program.h"

namespace rwkv {
namespace {

using test::Output;
using test::slurp;

/// The program with pipes, or on a terminal.
class Child {
 public:
  Child(const std::vector<std::string>& arguments, bool terminal) {
    std::array<int, 2> in{}, out{};
    if (!terminal) {
      EXPECT_EQ(pipe(in.data()), 0);
      EXPECT_EQ(pipe(out.data()), 0);
      pid_ = fork();
    } else {
      pid_ = forkpty(&in_, nullptr, nullptr, nullptr);
    }
    if (pid_ == 0) {
      if (!terminal) {
        dup2(in[0], STDIN_FILENO);
        dup2(out[1], STDOUT_FILENO);
        dup2(out[1], STDERR_FILENO);
        for (const int fd : {in[0], in[1], out[0], out[1]}) close(fd);
      }
      std::vector<std::string> all = {str(RWKV_BINARY_DIR, "/bin/rwkv-generate")};
      all.insert(all.end(), arguments.begin(), arguments.end());
      test::become(all);
    }
    if (terminal) {
      out_ = in_;
    } else {
      in_ = in[1];
      out_ = out[0];
      close(in[0]);
      close(out[1]);
    }
  }
  ~Child() {
    if (pid_ > 0) {
      kill(pid_, SIGKILL);
      waitpid(pid_, nullptr, 0);
    }
    close(in_);
    if (out_ != in_) close(out_);
  }
  void send(std::string_view text) {
    EXPECT_EQ(write(in_, text.data(), text.size()), std::ssize(text));
  }
  void interrupt() { kill(pid_, SIGINT); }
  /// What the program writes up to `wanted`. Fails after a minute.
  std::string read_until(std::string_view wanted) {
    std::array<char, 256> buffer;
    while (text_.find(wanted) == std::string::npos) {
      fd_set set;
      FD_ZERO(&set);
      FD_SET(out_, &set);
      timeval patience{60, 0};
      if (select(out_ + 1, &set, nullptr, nullptr, &patience) <= 0) break;
      const ssize_t n = read(out_, buffer.data(), buffer.size());
      if (n <= 0) break;
      text_.append(buffer.data(), static_cast<size_t>(n));
    }
    const size_t at = text_.find(wanted);
    EXPECT_NE(at, std::string::npos) << text_;
    const std::string text = text_.substr(0, at);
    text_.erase(0, at == std::string::npos ? at : at + wanted.size());
    return text;
  }
  /// The exit code, or -1 if the program does not end within `patience`.
  int wait(std::chrono::milliseconds patience) {
    const auto code = test::wait_for(pid_, patience);
    if (code) pid_ = 0;
    return code.value_or(-1);
  }

 private:
  pid_t pid_ = 0;
  int in_ = -1, out_ = -1;
  std::string text_;  ///< read and not asked for yet
};

class Chat : public test::ModelFolder {
 protected:
  /// In the folder of the models; `arguments` is shell text.
  static Output chat(const std::string& model, const std::string& arguments,
                     const std::string& lines) {
    std::ofstream(path("in"), std::ios::binary) << lines;
    const std::string command =
        str("cd '", dir_.string(), "' && '", RWKV_BINARY_DIR, "/bin/rwkv-generate' --chat --model ",
            model, " ", arguments, " <in >out 2>err");
    const int status = std::system(command.c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, slurp(path("out")), slurp(path("err"))};
  }
};

TEST_F(Chat, LinesAreAnswered) {
  const Output o = chat("alphabet.h5", "--temperature 0 --stop hij", "hello\n\nagain\n//x\nlast");
  EXPECT_EQ(o.code, 0) << o.err;
  EXPECT_EQ(o.out, "abcdefg\nabcdefg\nabcdefg\nabcdefg\n");
  EXPECT_EQ(o.err, "");
  // Two lines are one message: as many answers as messages.
  EXPECT_EQ(chat("alphabet.h5", "--temperature 0 --stop hij", "a\\\nb\\\nc\nd\n").out,
            "abcdefg\nabcdefg\n");
  EXPECT_EQ(chat("alphabet.h5", "", "").out, "");
  const Output length = chat("alphabet.h5", "--temperature 0 --max-tokens 3 --stats", "a\n");
  EXPECT_EQ(length.out, "abc\n");
  EXPECT_NE(length.err.find("stopped after 3 tokens"), std::string::npos) << length.err;
  // "User: a" and a blank line, "Assistant:".
  EXPECT_NE(length.err.find("prefill 19 tokens"), std::string::npos) << length.err;
  EXPECT_NE(length.err.find("has seen 22 tokens"), std::string::npos) << length.err;
}

TEST_F(Chat, Commands) {
  const std::string greedy = "--temperature 0 --max-tokens 12 --top-p 1 ";
  for (const char* model : {"random.h5", "rwkv4.h5"}) {
    const auto lines = [&](const std::string& text) {
      const Output o = chat(model, greedy, text);
      EXPECT_EQ(o.code, 0) << text << o.err;
      EXPECT_TRUE(is_valid_utf8(o.out));
      return o.out;
    };
    const std::string two = lines("hello\nyou\n");
    EXPECT_EQ(lines("hello\nother\n/undo\nyou\n").ends_with(two.substr(lines("hello\n").size())),
              true);
    EXPECT_EQ(lines("x\n/reset\nhello\nyou\n").substr(lines("x\n").size()), two);
    EXPECT_EQ(lines("hello\nyou\n/quit\nmore\n"), two);
    // Greedy answers are what they were.
    EXPECT_EQ(lines("hello\nyou\n/retry\n"), two + two.substr(lines("hello\n").size()));
    // Files, by command and by flag.
    EXPECT_EQ(chat(model, greedy, "hello\n/save s\n").code, 0);
    const std::string second = two.substr(lines("hello\n").size());
    EXPECT_EQ(lines("x\n/load s\nyou\n").substr(lines("x\n").size()), second);
    EXPECT_EQ(chat(model, greedy + "--state-in s", "you\n").out, second);
    EXPECT_EQ(chat(model, greedy + "--state-out t", "hello\n").code, 0);
    EXPECT_EQ(slurp(path("t")), slurp(path("s")));
    // Nothing said: no state, and an older one stays.
    for (const char* said : {"", "x\n/reset\n"}) {
      const Output nothing = chat(model, greedy + "--state-out t", said);
      EXPECT_EQ(nothing.code, 0) << nothing.err;
      EXPECT_NE(nothing.err.find("t is not written"), std::string::npos) << nothing.err;
      EXPECT_EQ(slurp(path("t")), slurp(path("s")));
    }
  }
  const std::string drawn = "--max-tokens 20 --top-p 1 --seed 4 ";
  const std::string a = chat("random.h5", drawn, "hello\n").out;
  EXPECT_EQ(chat("random.h5", drawn, "hello\n").out, a);
  EXPECT_NE(chat("random.h5", drawn, "hello\n/retry\n").out, a + a);
  EXPECT_EQ(chat("random.h5", "--max-tokens 20 --top-p 1", "/set seed 4\nhello\n").out, a);
  EXPECT_NE(chat("random.h5", drawn, "/set temperature 0\nhello\n").out, a);
  EXPECT_EQ(chat("random.h5", "--top-p 1", "/set seed 4\n/set max_tokens 20\nhello\n").out, a);
  const std::string settings = chat("random.h5", "", "/set\n").out;
  for (const char* line : {"temperature 1\n", "top_p 0.4\n", "presence_penalty 0.5\n",
                           "penalty_decay 0.996\n", "max_tokens 2048\n", "thinking plain\n"})
    EXPECT_NE(settings.find(line), std::string::npos) << settings;
  EXPECT_NE(chat("random.h5", "", "/help\n").out.find("/undo"), std::string::npos);
}

TEST_F(Chat, MistakesAreExplained) {
  const auto fails = [&](const std::string& model, const std::string& arguments,
                         const std::string& lines, int code, const std::string& message) {
    const Output o = chat(model, arguments, lines);
    EXPECT_EQ(o.code, code) << o.err;
    EXPECT_NE(o.err.find(message), std::string::npos) << o.err;
    EXPECT_NE(o.err.find(": error: "), std::string::npos) << o.err;
  };
  // Without a terminal a script hears of its mistakes at once.
  fails("alphabet.h5", "", "/nonsense\n", 2, "/nonsense");
  fails("alphabet.h5", "", "/undo\n", 2, "no message");
  fails("alphabet.h5", "", "/retry\n", 2, "no message");
  fails("alphabet.h5", "", "/set nonsense 1\n", 2, "nonsense");
  fails("alphabet.h5", "", "/set top_p x\n", 2, "expected a number");
  fails("alphabet.h5", "", "/set top_p 3\n", 2, "top_p");
  fails("alphabet.h5", "", "/set thinking maybe\n", 2, "maybe");
  fails("alphabet.h5", "", "/set seed -1\n", 2, "seed -1");
  fails("alphabet.h5", "", "/load none\n", 3, "none");
  fails("alphabet.h5", "", "/load\n", 2, "name of a file");
  fails("alphabet.h5", "", "/save s\n", 2, "nothing has been said");
  fails("alphabet.h5", "--max-tokens 1", "a\n/save none/s\n", 3, "none");
  fails("alphabet.h5", "--thinking maybe", "", 2, "maybe");
  fails("alphabet.h5", "--chat-template none", "", 2, "none");
  fails("alphabet.h5", "--max-tokens 0", "", 2, "max_tokens");
  fails("alphabet.h5", "--prompt a", "", 2, "--prompt");
  fails("alphabet.h5", "--ids", "", 2, "--ids");
  fails("alphabet.h5", "--state-in none", "", 3, "none");
  fails("alphabet.h5", "--state-out none/s", "", 3, "none");
  fails("no_tokenizer.h5", "", "", 2, "--vocab");
}

TEST_F(Chat, ThoughtsAreMarked) {
  // The prompt ends with "<think".
  const Output o = chat("alphabet.h5", "--temperature 0 --thinking on --max-tokens 4", "hello\n");
  EXPECT_EQ(o.code, 0) << o.err;
  EXPECT_EQ(o.out, "lmno\n");  // the model did not close the mark: no thought
}

TEST_F(Chat, AnInterruptEndsTheAnswerThenTheProgram) {
  Child child({"--chat", "--model", path("alphabet.h5"), "--temperature", "0", "--max-tokens",
               "100000000", "--presence-penalty", "0", "--frequency-penalty", "0"},
              false);
  child.send("hello\n");
  child.read_until("xyz");
  child.interrupt();
  child.read_until("stopped\n");
  child.send("again\n");
  child.read_until("xyz");
  child.interrupt();
  child.read_until("stopped\n");
  // At the prompt, once it is there.
  int code = -1;
  for (int i = 0; i < 200 && code == -1; ++i) {
    child.interrupt();
    code = child.wait(std::chrono::milliseconds(50));
  }
  EXPECT_EQ(code, 130);
}

TEST_F(Chat, OnATerminal) {
  Child child({"--chat", "--model", path("alphabet.h5"), "--temperature", "0", "--max-tokens",
               "100000000", "--presence-penalty", "0", "--frequency-penalty", "0"},
              true);
  child.read_until("> ");
  child.send("/nonsense\n");
  const std::string mistake = child.read_until("> ");
  EXPECT_NE(mistake.find("no command /nonsense"), std::string::npos) << mistake;
  child.send("hello\n");
  child.read_until("xyz");
  child.send("\003");  // Ctrl-C
  child.read_until("stopped");
  child.read_until("> ");
  child.send("\004");  // Ctrl-D
  EXPECT_EQ(child.wait(std::chrono::minutes(1)), 0);
}

}  // namespace
}  // namespace rwkv
