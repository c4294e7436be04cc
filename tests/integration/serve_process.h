#pragma once
// rwkv-serve as a program.

#include <httplib.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include "kernels/core/error.h"
#include "tests/integration/program.h"

namespace rwkv::test {

inline constexpr double kPatience = 60;  // seconds

/// A server of its own on a free port.
class ServeProcess {
 public:
  ServeProcess(const std::string& model, std::vector<std::string> arguments) {
    int out[2];
    if (::pipe(out) != 0) throw IoError("pipe");
    pid_ = ::fork();
    if (pid_ == 0) {
      ::dup2(out[1], STDOUT_FILENO);
      ::close(out[0]);
      ::close(out[1]);
      std::vector<std::string> all = {str(RWKV_BINARY_DIR, "/bin/rwkv-serve"),
                                      "--model",
                                      model,
                                      "--port",
                                      "0",
                                      "--threads",
                                      "1"};
      all.insert(all.end(), arguments.begin(), arguments.end());
      become(all);
    }
    ::close(out[1]);
    FILE* text = ::fdopen(out[0], "r");
    char line[512] = {};
    if (std::fgets(line, sizeof line, text) != nullptr) {
      const std::string s = line;
      const size_t at = s.find("127.0.0.1:");
      if (at != std::string::npos) port_ = std::atoi(s.c_str() + at + 10);
    }
    std::fclose(text);
    if (port_ == 0) throw IoError(str("rwkv-serve did not start: ", line));
  }
  ~ServeProcess() {
    if (pid_ > 0) {
      ::kill(pid_, SIGKILL);
      wait_for(pid_);
    }
  }
  int port() const { return port_; }
  pid_t pid() const { return pid_; }
  void terminate() const { ::kill(pid_, SIGTERM); }
  /// Exit code.
  int wait() { return wait_for(std::exchange(pid_, -1)); }
  httplib::Client client() const {
    httplib::Client c("127.0.0.1", port_);
    c.set_read_timeout(static_cast<time_t>(kPatience));
    return c;
  }

 private:
  pid_t pid_ = -1;
  int port_ = 0;
};

}  // namespace rwkv::test
