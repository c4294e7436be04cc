#pragma once
/// rwkv-bench serve: loads a running rwkv-serve with many clients.

#include <CLI/CLI.hpp>
#include <cstdint>
#include <string>

namespace rwkv::bench {

struct ServeOptions {
  std::string host = "127.0.0.1";
  int port = 8080;
  std::string key;  ///< API key; empty: the environment's RWKV_API_KEY
  int64_t clients = 16;
  double seconds = 30;         ///< clients begin no further request after them
  int64_t prompt_tokens = 64;  ///< random ids, different for every request
  int64_t shared_tokens = 0;   ///< ids at the beginning that all requests have in common
  int64_t max_tokens = 128;
  int64_t pid = 0;  ///< of the server, on this machine: its memory is watched
  std::string json;
};

void add_serve_flags(CLI::App* app, ServeOptions& options);

/// Returns the exit code: 3 if a request failed. Throws IoError if there is no server.
int run_serve(const ServeOptions& options);

}  // namespace rwkv::bench
