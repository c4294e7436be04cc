#pragma once
/// Programs as a user starts them: a child process, its folder and files, its end.

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace rwkv::test {

/// Exit code of a status of waitpid, or -signal.
inline int exit_code(int status) {
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

/// Waits for the end of a child: its exit code, or -signal.
inline int wait_for(pid_t pid) {
  int status = 0;
  waitpid(pid, &status, 0);
  return exit_code(status);
}

/// The same, but nothing when the child still runs after so long.
inline std::optional<int> wait_for(pid_t pid, std::chrono::milliseconds patience) {
  const auto end = std::chrono::steady_clock::now() + patience;
  do {
    int status = 0;
    if (waitpid(pid, &status, WNOHANG) == pid) return exit_code(status);
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  } while (std::chrono::steady_clock::now() < end);
  return std::nullopt;
}

/// In a child: becomes the program args[0], looked for on the PATH; ends with 98 if there is none.
[[noreturn]] inline void become(std::vector<std::string> args) {
  std::vector<char*> argv;
  for (std::string& a : args) argv.push_back(a.data());
  argv.push_back(nullptr);
  execvp(argv[0], argv.data());
  _exit(98);
}

/// Starts a program in `folder`, where its output goes to the files "out" and "err"; `input`
/// becomes its standard input, else that is empty. `environment` is added to that of this process.
inline pid_t start_program(
    const std::string& folder, const std::vector<std::string>& args, int input = -1,
    const std::vector<std::pair<std::string, std::string>>& environment = {}) {
  const pid_t pid = fork();
  if (pid != 0) return pid;
  if (chdir(folder.c_str()) != 0) _exit(99);
  for (const auto& [name, value] : environment) setenv(name.c_str(), value.c_str(), 1);
  dup2(input >= 0 ? input : open("/dev/null", O_RDONLY), 0);
  dup2(open("out", O_CREAT | O_TRUNC | O_WRONLY, 0644), 1);
  dup2(open("err", O_CREAT | O_TRUNC | O_WRONLY, 0644), 2);
  become(args);
}

}  // namespace rwkv::test
