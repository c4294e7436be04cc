// rwkv-bench serve in builds without cpp-httplib.
#include "kernels/core/error.h"
#include "tools/bench/serve.h"

namespace rwkv::bench {

void add_serve_flags(CLI::App* app, ServeOptions&) {
  app->allow_extras();
}

int run_serve(const ServeOptions&) {
  throw ConfigError(
      "rwkv-bench serve: this build has no HTTP client; install cpp-httplib (Debian: "
      "libcpp-httplib-dev) and configure again");
}

}  // namespace rwkv::bench
