#include "data/io/interrupt.h"

#include <signal.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstdio>
#include <cstring>

namespace rwkv {
namespace {

enum State : int { kFree, kFilling, kUnfinished, kTaken };

struct Slot {
  std::atomic<int> state = kFree;
  char path[4096];
};

// A signal handler can reach nothing but static storage.
std::array<Slot, 24> g_slots;
std::atomic<bool> g_ending = false, g_any = false, g_kept = false;
std::atomic<pid_t> g_owner = 0;
char g_program[64] = "";  // "NAME: "
static_assert(std::atomic<int>::is_always_lock_free && std::atomic<bool>::is_always_lock_free);

/// For a thread that must not go on while another one ends the process.
[[noreturn]] void wait_for_the_end() {
  for (;;) ::pause();
}

void say(const char* text) {
  // There is nobody to tell if this fails.
  [[maybe_unused]] const ssize_t n = ::write(STDERR_FILENO, text, std::strlen(text));
}

void ignore(int number) {
  struct sigaction action = {};
  action.sa_handler = SIG_IGN;
  sigemptyset(&action.sa_mask);
  sigaction(number, &action, nullptr);
}

}  // namespace

Unfinished::Unfinished(const std::string& path) {
  g_any = true;
  for (size_t i = 0; i < g_slots.size() && path.size() < sizeof(Slot::path); ++i) {
    int expected = kFree;
    if (!g_slots[i].state.compare_exchange_strong(expected, kFilling)) continue;
    std::memcpy(g_slots[i].path, path.c_str(), path.size() + 1);
    g_slots[i].state = kUnfinished;
    slot_ = static_cast<int>(i);
    break;
  }
  if (g_ending) wait_for_the_end();
}

Unfinished::~Unfinished() {
  release();
}

void Unfinished::keep() {
  g_kept = true;
  release();
}

void Unfinished::release() {
  if (slot_ < 0) return;
  int expected = kUnfinished;
  if (!g_slots[static_cast<size_t>(slot_)].state.compare_exchange_strong(expected, kFree))
    wait_for_the_end();
  slot_ = -1;
}

void end_interrupted(int signal) {
  // A second signal in this thread would wait for itself.
  sigset_t all;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, nullptr);
  // A child process has a copy of the list; the files are its parent's.
  if (g_owner != 0 && g_owner != ::getpid()) ::_exit(128 + signal);
  if (g_ending.exchange(true)) wait_for_the_end();
  const bool kept = g_kept;
  for (Slot& s : g_slots) {
    int expected = kUnfinished;
    if (s.state.compare_exchange_strong(expected, kTaken)) ::unlink(s.path);
  }
  // Folders after the files in them.
  for (const Slot& s : g_slots)
    if (s.state == kTaken) ::rmdir(s.path);
  say(isatty(STDERR_FILENO) == 1 ? "\n" : "");
  say(g_program);
  say(!g_any ? "interrupted\n"
      : kept ? "interrupted: the files finished before are whole, nothing is half-written\n"
             : "interrupted: nothing was written\n");
  ::_exit(128 + signal);
}

bool hangup_ends() {
  struct sigaction now = {};
  return sigaction(SIGHUP, nullptr, &now) != 0 || now.sa_handler != SIG_IGN;
}

void end_cleanly_on_signals(const std::string& program) {
  g_any = g_kept = false;
  g_owner = ::getpid();
  std::snprintf(g_program, sizeof g_program, "%s: ", program.c_str());
  for (const int number : {SIGINT, SIGTERM, SIGHUP}) {
    struct sigaction before = {};
    if (sigaction(number, nullptr, &before) == 0 && before.sa_handler == SIG_IGN) continue;
    struct sigaction action = {};
    action.sa_handler = end_interrupted;
    sigfillset(&action.sa_mask);
    sigaction(number, &action, nullptr);
  }
  ignore(SIGXFSZ);
}

}  // namespace rwkv
