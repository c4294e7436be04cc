#include "tools/chat_console.h"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <string>

#include "data/io/interrupt.h"
#include "kernels/core/error.h"

namespace rwkv {
namespace {

// A signal handler can reach nothing but static storage.
std::atomic<bool> g_stop = false;
static_assert(std::atomic<bool>::is_always_lock_free);

void stop_turn(int signal) {
  if (g_stop.exchange(true)) end_interrupted(signal);
}

/// While it lives the first SIGINT asks for the turn's end.
class TurnSignals {
 public:
  TurnSignals() {
    g_stop = false;
    struct sigaction action = {};
    action.sa_handler = stop_turn;
    action.sa_flags = SA_RESTART;  // a write of the answer that waits goes on after it
    sigfillset(&action.sa_mask);
    sigaction(SIGINT, nullptr, &before_);
    if (before_.sa_handler != SIG_IGN) sigaction(SIGINT, &action, nullptr);
  }
  ~TurnSignals() { sigaction(SIGINT, &before_, nullptr); }
  TurnSignals(const TurnSignals&) = delete;
  TurnSignals& operator=(const TurnSignals&) = delete;

 private:
  struct sigaction before_ = {};
};

constexpr const char* kHelp =
    "/help            this text\n"
    "/reset           a new conversation\n"
    "/undo            back to before the last message\n"
    "/retry           another answer to the last message\n"
    "/save FILE       write the state to a file\n"
    "/load FILE       a conversation that goes on from such a file\n"
    "/set             the settings\n"
    "/set NAME VALUE  change one, from the next message on\n"
    "/quit            the end, as is the end of the input (Ctrl-D)\n"
    "Ctrl-C stops an answer. A line that ends with a backslash goes on in the next one; one that\n"
    "begins with two slashes is a message that begins with one.\n";

double number(const std::string& name, const std::string& text) {
  double x = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), x);
  RWKV_CHECK(error == std::errc{} && end == text.data() + text.size(), ConfigError, "/set ", name,
             " '", text, "', expected a number");
  return x;
}
int64_t whole(const std::string& name, const std::string& text) {
  int64_t x = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), x);
  RWKV_CHECK(error == std::errc{} && end == text.data() + text.size(), ConfigError, "/set ", name,
             " '", text, "', expected a whole number");
  return x;
}

class Console {
 public:
  Console(ChatSession& session, const ChatConsoleOptions& options)
      : session_(session), options_(options) {}

  void run() {
    if (terminal_) note("/help lists commands, Ctrl-D ends");
    while (const std::optional<std::string> line = read()) {
      try {
        if (!take(*line)) return;
      } catch (const NonFiniteError&) {
        throw;  // the model's, not the line's
      } catch (const Error& e) {
        if (!terminal_) throw;
        note(e.what());
      }
    }
    if (terminal_ && colours_) put("\n");
  }

 private:
  static void note(const std::string& text) {
    std::fprintf(stderr, "rwkv-generate: %s\n", text.c_str());
  }
  static void put(std::string_view text) {
    RWKV_CHECK(
        std::fwrite(text.data(), 1, text.size(), stdout) == text.size() && std::fflush(stdout) == 0,
        IoError, "writing to standard output failed");
  }

  /// A message or command; none at the end of the input.
  std::optional<std::string> read() {
    std::string text;
    for (bool first = true;; first = false) {
      if (terminal_ && colours_) put(first ? "> " : ". ");
      char* line = nullptr;
      size_t capacity = 0;
      const ssize_t n = getline(&line, &capacity, stdin);
      std::string read(line, n > 0 ? static_cast<size_t>(n) : 0);
      std::free(line);
      RWKV_CHECK(n >= 0 || std::ferror(stdin) == 0, IoError, "reading standard input failed");
      if (n < 0) return first ? std::nullopt : std::optional(text);
      if (read.ends_with('\n')) read.pop_back();
      if (read.ends_with('\r')) read.pop_back();
      if (!read.ends_with('\\')) return text + read;
      read.back() = '\n';
      text += read;
    }
  }

  /// False: the end.
  bool take(const std::string& line) {
    if (line.find_first_not_of(" \t\n") == std::string::npos) return true;
    if (!line.starts_with('/') || line.starts_with("//")) {
      answer([&](const auto& sink, const auto& wanted) {
        return session_.say(line.starts_with('/') ? line.substr(1) : line, sink, wanted);
      });
      return true;
    }
    const size_t blank = std::min(line.find(' '), line.size());
    const std::string command = line.substr(0, blank);
    std::string rest = line.substr(std::min(line.find_first_not_of(' ', blank), line.size()));
    while (rest.ends_with(' ')) rest.pop_back();
    if (command == "/quit" || command == "/exit") return false;
    if (command == "/help") {
      put(kHelp);
    } else if (command == "/reset") {
      session_.reset();
    } else if (command == "/undo") {
      RWKV_CHECK(session_.undo(), ConfigError, "/undo: there is no message to take back");
    } else if (command == "/retry") {
      answer([&](const auto& sink, const auto& wanted) { return session_.retry(sink, wanted); });
    } else if (command == "/save" || command == "/load") {
      RWKV_CHECK(!rest.empty(), ConfigError, command, ": expected the name of a file");
      if (command == "/save")
        session_.save(rest);
      else
        session_.load(rest);
      note(str(command == "/save" ? "wrote " : "read ", rest, ", a state after ", session_.tokens(),
               " tokens"));
    } else if (command == "/set") {
      set(rest);
    } else {
      throw ConfigError(str("there is no command ", command, "; /help lists them"));
    }
    return true;
  }

  template <class Ask>
  void answer(const Ask& ask) {
    const TurnSignals signals;
    bool thinking = false, text = false;
    const auto mark = [&](const char* on_terminal, const char* elsewhere) {
      put(colours_ ? on_terminal : elsewhere);
    };
    const ChatTurn turn = ask(
        [&](const ChatAnswer::Piece& piece) {
          if (!piece.reasoning.empty() && !thinking) mark("\033[2m", "<think>");
          thinking |= !piece.reasoning.empty();
          put(piece.reasoning);
          if (!piece.content.empty() && thinking && !text) mark("\033[0m\n", "</think>\n");
          text |= !piece.content.empty();
          put(piece.content);
        },
        [] { return !g_stop; });
    if (thinking && !text) mark("\033[0m", "</think>");
    put("\n");
    if (turn.finish == FinishReason::kCancelled)
      note(turn.tokens > 0 ? "stopped" : "stopped; the message was not read");
    if (turn.finish == FinishReason::kLength)
      note(str("stopped after ", turn.tokens, " tokens (/set max_tokens)"));
    if (options_.stats) stats(turn);
  }

  void stats(const ChatTurn& t) const {
    const auto rate = [](int64_t n, double s) { return s > 0 ? static_cast<double>(n) / s : 0.0; };
    std::fprintf(stderr,
                 "prefill %lld tokens in %.3f s, %.1f tokens/s; decode %lld tokens in %.3f s, %.1f "
                 "tokens/s; ended by %s; the state has seen %lld tokens\n",
                 static_cast<long long>(t.prompt_tokens), t.prefill_seconds,
                 rate(t.prompt_tokens, t.prefill_seconds), static_cast<long long>(t.tokens),
                 t.decode_seconds, rate(t.tokens, t.decode_seconds),
                 std::string(finish_reason_name(t.finish)).c_str(),
                 static_cast<long long>(session_.tokens()));
  }

  void set(const std::string& arguments) {
    ChatOptions o = session_.options();
    SamplingOptions& s = o.sampling;
    struct Number {
      const char* name;
      double* value;
    };
    const std::array<Number, 7> numbers = {{{"temperature", &s.temperature},
                                            {"top_p", &s.top_p},
                                            {"min_p", &s.min_p},
                                            {"repetition_penalty", &s.repetition_penalty},
                                            {"presence_penalty", &s.presence_penalty},
                                            {"frequency_penalty", &s.frequency_penalty},
                                            {"penalty_decay", &s.penalty_decay}}};
    if (arguments.empty()) {
      for (const Number& n : numbers) std::printf("%s %g\n", n.name, *n.value);
      constexpr const char* kThinking[] = {"plain", "on", "off"};
      std::printf("top_k %lld\nseed %llu\nmax_tokens %lld\nthinking %s\n",
                  static_cast<long long>(s.top_k), static_cast<unsigned long long>(s.seed),
                  static_cast<long long>(o.max_tokens), kThinking[static_cast<size_t>(o.thinking)]);
      return put("");
    }
    const size_t blank = std::min(arguments.find(' '), arguments.size());
    const std::string name = arguments.substr(0, blank);
    const std::string value =
        arguments.substr(std::min(arguments.find_first_not_of(' ', blank), arguments.size()));
    const auto found = std::ranges::find_if(numbers, [&](const auto& n) { return n.name == name; });
    if (found != numbers.end()) {
      *found->value = number(name, value);
    } else if (name == "top_k") {
      s.top_k = whole(name, value);
    } else if (name == "seed") {
      const int64_t seed = whole(name, value);
      RWKV_CHECK(seed >= 0, ConfigError, "/set seed ", seed, ", expected at least 0");
      s.seed = static_cast<uint64_t>(seed);
    } else if (name == "max_tokens") {
      o.max_tokens = whole(name, value);
    } else if (name == "thinking") {
      o.thinking = parse_thinking(value);
    } else {
      throw ConfigError(str("/set: there is no setting '", name, "'; /set alone lists them"));
    }
    session_.set_options(std::move(o));
  }

  ChatSession& session_;
  ChatConsoleOptions options_;
  bool terminal_ = isatty(STDIN_FILENO) == 1;
  bool colours_ = isatty(STDOUT_FILENO) == 1;
};

}  // namespace

void run_chat(ChatSession& session, const ChatConsoleOptions& options) {
  Console(session, options).run();
}

}  // namespace rwkv
