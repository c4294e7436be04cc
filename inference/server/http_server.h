#pragma once
/// The scheduler on HTTP: OpenAI-compatible routes, metrics, the chat page. docs/serving.md.

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "inference/scheduler.h"
#include "inference/server/api_request.h"

namespace rwkv {

struct HttpOptions {
  std::string host = "127.0.0.1";
  int port = 8080;      ///< 0: any free one
  std::string api_key;  ///< empty: none is asked for
  std::string
      cors_origin;  ///< "*" or an origin that pages of other servers may come from; empty: none
  int64_t max_connections = 256;  ///< each has a thread; those beyond are told 429
  int64_t max_body_bytes = int64_t{4} << 20;
  int64_t request_seconds = 600;  ///< from the request to the end of its answer
  int64_t client_seconds = 30;    ///< that a client may take to send or to take data
  bool page = true;               ///< the chat at /, and the states it shows
};

/// One thread per open connection, all of them waiting on the scheduler.
class HttpServer {
 public:
  /// All must outlive the server; the runner's layout() is read, nothing else of it.
  HttpServer(Scheduler& scheduler, const SequenceRunner& runner, const Tokenizer& tokenizer,
             ApiSettings settings, HttpOptions options);
  ~HttpServer();
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;

  /// Returns the port. Throws IoError if it cannot be had.
  int bind();
  /// Serves until drain_and_stop(); call it once, after bind(). False if it ended by itself: no
  /// more connections could be accepted.
  bool serve();
  /// Refuses new requests, lets running ones end for up to `seconds`, then ends all. Any other
  /// thread. Returns the number of samples that were cancelled, when serve() has ended.
  int64_t drain_and_stop(double seconds);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace rwkv
