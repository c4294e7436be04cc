#include "inference/server/http_server.h"

#include <httplib.h>
#include <sys/socket.h>

#include <chrono>
#include <nlohmann/json.hpp>
#include <random>

#include "data/tokenizer/utf8.h"
#include "generated/chat_page.h"
#include "inference/generate.h"
#include "inference/server/api_answer.h"
#include "inference/server/client_socket.h"
#include "inference/server/connection_threads.h"
#include "inference/server/metrics.h"
#include "inference/server/sockets.h"
#include "inference/server/state_view.h"
#include "kernels/core/trace.h"

namespace rwkv {
namespace {

using Json = nlohmann::json;
using httplib::Request;
using httplib::Response;

constexpr const char* kJson = "application/json";
constexpr const char* kEvents = "text/event-stream";
constexpr double kPoll = 0.25;       ///< seconds between looks at a silent client
constexpr double kLook = 0.2;        ///< seconds between looks at any client
constexpr double kKeepAlive = 15;    ///< seconds of silence after which a stream gets a comment
constexpr double kLastSeconds = 5;   ///< that answers may take to reach clients at the end
constexpr double kLastMoment = 0.5;  ///< the same, of answers that took no time to make
constexpr int kBacklog = 1024;       ///< connections that wait to be accepted
constexpr size_t kLongestPath = 1024;
constexpr int kIdleSeconds = 5;  ///< that an idle connection is kept
constexpr size_t kRequestsPerConnection = 1000;
/// Of the page: nothing comes from elsewhere.
constexpr const char* kPagePolicy =
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src "
    "'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

int64_t unix_seconds() {
  return std::chrono::duration_cast<std::chrono::seconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

/// Takes as long for any two texts of one length.
bool equal_secret(const std::string& a, const std::string& b) {
  unsigned difference = a.size() != b.size();
  for (size_t i = 0; i < a.size() && i < b.size(); ++i)
    difference |= static_cast<unsigned char>(a[i] ^ b[i]);
  return difference == 0;
}

std::string dump(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

class Listener : public httplib::Server {
 public:
  /// The library's own backlog of 5 would turn a burst of clients away.
  void widen() { ::listen(svr_sock_, kBacklog); }
};

/// An API request on its way; cancels what still runs when it goes.
struct Exchange {
  ApiRequest request;
  std::vector<std::shared_ptr<Generation>> running;
  std::optional<ApiAnswer> answer;
  std::string address;  ///< of the client
  int port = 0;
  std::optional<ClientSocket> client;
  double last_sent = now_seconds(), last_look = last_sent;
  bool begun = false;

  ~Exchange() {
    for (const auto& g : running) g->cancel();
  }
  /// Whether the client has left, as far as somebody has looked lately: to find its socket takes
  /// time, which most answers do not need.
  bool client_gone() {
    const double now = now_seconds();
    if (now - last_look < kLook) return false;
    last_look = now;
    if (!client) client.emplace(address, port);
    return client->gone();
  }
  int64_t cached() const {
    int64_t sum = 0;
    for (const auto& g : running) sum += g->cached_tokens();
    return sum;
  }
  /// Takes in events: waits for the first, then takes what is there. Returns what to send.
  std::string take() {
    std::string out;
    double patience = running.size() == 1 ? kPoll : kPoll / 16;
    for (size_t i = 0; i < running.size(); ++i) {
      while (auto event = running[i]->wait(patience)) {
        out += answer->add(i, *event);
        patience = 0;
        if (answer->complete()) return out;
      }
    }
    return out;
  }
};

}  // namespace

class HttpServer::Impl {
 public:
  Impl(Scheduler& scheduler, const SequenceRunner& runner, const Tokenizer& tokenizer,
       ApiSettings settings, HttpOptions options)
      : scheduler_(scheduler),
        tokenizer_(tokenizer),
        settings_(std::move(settings)),
        options_(std::move(options)),
        started_(unix_seconds()),
        layout_(runner.layout().begin(), runner.layout().end()) {
    RWKV_CHECK(options_.max_connections >= 1 && options_.max_body_bytes >= 1 &&
                   options_.request_seconds >= 1 && options_.client_seconds >= 1,
               ConfigError, "server: connections, body bytes and seconds must be at least 1");
    http_.new_task_queue = [this] {
      threads_ = new ConnectionThreads(options_.max_connections);  // the library deletes it
      return threads_.load();
    };
    http_.set_keep_alive_max_count(kRequestsPerConnection);
    http_.set_keep_alive_timeout(kIdleSeconds);
    http_.set_read_timeout(options_.client_seconds);
    http_.set_write_timeout(options_.client_seconds);
    http_.set_payload_max_length(static_cast<size_t>(options_.max_body_bytes));
    http_.set_tcp_nodelay(true);
    // Not the library's SO_REUSEPORT: two servers would share a port, and neither would know.
    http_.set_socket_options([](socket_t sock) {
      const int yes = 1;
      ::setsockopt(sock, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    });
    // Before a body is read: the library's limit is on Content-Length alone.
    http_.set_pre_routing_handler([this](const Request& req, Response& res) {
      // Ranges are of files: the library would repeat an answer for each of a thousand.
      const_cast<Request&>(req).ranges.clear();
      return refuse_path(req, res) || refuse_body(req, res)
                 ? httplib::Server::HandlerResponse::Handled
                 : httplib::Server::HandlerResponse::Unhandled;
    });
    http_.set_error_handler([this](const Request& req, Response& res) { shape_error(req, res); });
    // Called when an answer has been written.
    http_.set_logger([this](const Request& req, const Response& res) {
      if (ConnectionThreads::is_refusing() || res.status == 411 || res.status == 414 ||
          res.status == 415)
        ClientSocket(req.remote_addr, req.remote_port).end_reading();
      const std::lock_guard lock(mutex_);
      ++answers_[res.status];
    });
    routes();
  }

  int bind() {
    check_address(options_.host, options_.port);
    port_ = options_.port == 0
                ? http_.bind_to_any_port(options_.host)
                : (http_.bind_to_port(options_.host, options_.port) ? options_.port : -1);
    RWKV_CHECK(port_ > 0, IoError, "listening on ", options_.host, " port ", options_.port,
               ": somebody else was faster; choose another --port");
    http_.widen();
    return port_;
  }

  bool serve() {
    if (!draining_) http_.listen_after_bind();
    threads_ = nullptr;
    served_ = true;
    return draining_;
  }

  int64_t drain_and_stop(double seconds) {
    draining_ = true;
    const int64_t cancelled = scheduler_.drain(seconds);
    // The last answers are on their way to their clients.
    const double limit = now_seconds() + kLastSeconds;
    while (exchanges_ > 0 && now_seconds() < limit)
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    // A server that has not begun to listen yet does not hear the first call. Nobody waits for
    // clients that are silent or slow: their threads would go on reading. Small answers that are
    // being written have a moment, since the library writes to nobody whom it cannot read from.
    const double soon = now_seconds() + kLastMoment;
    while (!served_) {
      http_.stop();
      if (now_seconds() > soon) end_connections(port_, now_seconds() > limit);
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    return cancelled;
  }

 private:
  using Body = std::function<void(const Request&, Response&)>;

  void routes() {
    for (const std::string prefix : {"/v1", ""}) {
      post(prefix + "/completions", [this](auto& req, auto& res) { generate(req, res, false); });
      post(prefix + "/chat/completions",
           [this](auto& req, auto& res) { generate(req, res, true); });
      get(prefix + "/models", [this](auto&, auto& res) {
        res.set_content(dump({{"object", "list"}, {"data", Json::array({model_json()})}}), kJson);
      });
      get(prefix + "/models/(.+)", [this](auto& req, auto& res) {
        if (req.matches[1] != settings_.model)
          throw ApiError(404, str("the model '", req.matches[1].str(), "' does not exist here"),
                         "model", "model_not_found");
        res.set_content(dump(model_json()), kJson);
      });
    }
    get(
        "/health", [this](auto&, auto& res) { health(res); }, false);
    get("/metrics", [this](auto&, auto& res) {
      HttpStats stats;
      {
        const std::lock_guard lock(mutex_);
        stats.answers = answers_;
      }
      stats.connections = threads_.load()->open();
      res.set_content(prometheus_text(scheduler_.stats(), stats), "text/plain; version=0.0.4");
    });
    post("/tokenize", [this](auto& req, auto& res) { tokenize(req, res); });
    post("/detokenize", [this](auto& req, auto& res) { detokenize(req, res); });
    if (options_.page) {
      get(
          "/",
          [](auto&, auto& res) {
            res.set_header("Content-Security-Policy", kPagePolicy);
            res.set_header("X-Content-Type-Options", "nosniff");
            res.set_content(kChatPage, sizeof kChatPage - 1, "text/html; charset=utf-8");
          },
          false);
      for (const char* path : {"/state/((?:[a-z]+-)?([0-9]{1,18}))",
                               "/state/((?:[a-z]+-)?([0-9]{1,18}))/([0-9]{1,9})"})
        get(path, [this](auto& req, auto& res) { state(req, res); });
    }
    if (!options_.cors_origin.empty())
      http_.Options(".*", [this](const Request&, Response& res) {
        allow_origin(res);
        res.set_header("Access-Control-Allow-Methods", "GET, POST, OPTIONS");
        res.set_header("Access-Control-Allow-Headers", "Authorization, Content-Type");
        res.set_header("Access-Control-Max-Age", "600");
        res.status = 204;
      });
  }

  void get(const std::string& path, Body body, bool keyed = true) {
    known_.emplace_back(path);
    http_.Get(path, guarded(std::move(body), keyed));
  }
  void post(const std::string& path, Body body) {
    known_.emplace_back(path);
    http_.Post(path, guarded(std::move(body), true));
  }

  void allow_origin(Response& res) const {
    if (!options_.cors_origin.empty())
      res.set_header("Access-Control-Allow-Origin", options_.cors_origin);
  }

  /// What all routes share: limits, the key, and errors as JSON.
  httplib::Server::Handler guarded(Body body, bool keyed) {
    return [this, body = std::move(body), keyed](const Request& req, Response& res) {
      allow_origin(res);
      try {
        if (ConnectionThreads::is_refusing()) {
          ApiError error(429, str("there are ", options_.max_connections,
                                  " connections already, the limit; ask again later"));
          error.retry_after = 1;
          throw error;
        }
        if (keyed && !options_.api_key.empty()) check_key(req);
        body(req, res);
      } catch (const ApiError& e) {
        fail(res, e);
      } catch (const OverloadedError& e) {
        ApiError error(429, e.what());
        error.retry_after = e.retry_seconds;
        fail(res, error);
      } catch (const UnavailableError& e) {
        fail(res, ApiError(503, e.what()));
      } catch (const ConfigError& e) {
        fail(res, ApiError(400, e.what()));
      } catch (const std::exception& e) {
        fail(res, ApiError(500, e.what()));
      }
    };
  }

  static void fail(Response& res, const ApiError& e) {
    res.status = e.status;
    if (e.retry_after > 0) res.set_header("Retry-After", std::to_string(e.retry_after));
    if (e.status == 401) res.set_header("WWW-Authenticate", "Bearer");
    res.set_content(api_error_json(e), kJson);
  }

  void check_key(const Request& req) const {
    const std::string given = req.get_header_value("Authorization");
    constexpr std::string_view kBearer = "Bearer ";
    if (!given.starts_with(kBearer))
      throw ApiError(401, "this server wants a key: Authorization: Bearer KEY", "",
                     "invalid_api_key");
    if (!equal_secret(given.substr(kBearer.size()), options_.api_key))
      throw ApiError(401, "the API key is not the right one", "", "invalid_api_key");
  }

  /// Matching a path takes stack for every character of it.
  bool refuse_path(const Request& req, Response& res) {
    if (req.path.size() <= kLongestPath) return false;
    allow_origin(res);
    res.set_header("Connection", "close");  // a body is not read
    fail(res, ApiError(414, str("the path has ", req.path.size(), " characters, expected at most ",
                                kLongestPath)));
    return true;
  }
  /// Bodies whose length is not known before they are read or unpacked. True: the answer is made.
  bool refuse_body(const Request& req, Response& res) {
    const bool body = req.method == "POST" || req.method == "PUT" || req.method == "PATCH";
    const bool packed = req.has_header("Content-Encoding");
    if (!body ||
        (!packed && !req.has_header("Transfer-Encoding") && req.has_header("Content-Length")))
      return false;
    allow_origin(res);
    res.set_header("Connection", "close");  // the body is not read
    fail(res, packed ? ApiError(415, "compressed bodies are not taken: send no Content-Encoding")
                     : ApiError(411, "the request has no Content-Length, or is sent in chunks"));
    return true;
  }

  /// Errors that the library found: no handler has filled the body.
  void shape_error(const Request& req, Response& res) {
    if (!res.body.empty()) return;
    allow_origin(res);
    std::string what = str("the request failed with status ", res.status);
    if (res.status == 404) {
      what = str("there is no ", req.method, " ", req.path);
      for (const std::regex& path : known_)
        if (std::regex_match(req.path, path)) {
          res.status = 405;
          what = str(req.path, " does not take ", req.method);
          break;
        }
    } else if (res.status == 413) {
      what = str("the body is larger than the limit of ", options_.max_body_bytes, " bytes");
      if (req.get_header_value("Content-Type").starts_with("application/x-www-form-urlencoded"))
        what += ", or of 8192 for a form: send Content-Type: application/json";
    } else if (res.status == 400) {
      what = "the request is not valid HTTP";
    }
    res.set_content(api_error_json(ApiError(res.status, what)), kJson);
  }

  Json model_json() const {
    return {{"id", settings_.model},
            {"object", "model"},
            {"created", started_},
            {"owned_by", "greylag"}};
  }

  void health(Response& res) {
    const std::string failure = scheduler_.failure();
    const char* status = !failure.empty() ? "failed" : draining_ ? "draining" : "ok";
    if (draining_ || !failure.empty()) res.status = 503;
    Json body = {{"status", status}};
    if (!failure.empty()) body["reason"] = failure;
    res.set_content(dump(body), kJson);
  }

  static Json parse_object(const Request& req) {
    check_nesting(req.body);
    const Json body = Json::parse(req.body, nullptr, false);
    if (!body.is_object()) throw ApiError(400, "the body is not a JSON object");
    return body;
  }
  void tokenize(const Request& req, Response& res) {
    const Json body = parse_object(req);
    const auto content = body.find("content");
    if (content == body.end() || !content->is_string())
      throw ApiError(400, "content is missing, expected a string", "content");
    const auto special = body.find("add_special");
    const bool start = special != body.end() && special->is_boolean() && special->get<bool>();
    res.set_content(
        dump({{"tokens", prompt_ids(tokenizer_, content->get_ref<const std::string&>(), start)}}),
        kJson);
  }
  void detokenize(const Request& req, Response& res) {
    const Json body = parse_object(req);
    const auto tokens = body.find("tokens");
    std::string text;
    if (tokens == body.end() || !tokens->is_array())
      throw ApiError(400, "tokens is missing, expected a list of token ids", "tokens");
    for (const Json& t : *tokens) {
      if (!t.is_number_integer() || t.get<int64_t>() < 0 || t.get<int64_t>() >= settings_.vocab)
        throw ApiError(400, str("tokens has ", t.dump(), ", expected ids below ", settings_.vocab),
                       "tokens");
      text += tokenizer_.token_bytes(t.get<int32_t>());
    }
    res.set_content(dump({{"content", to_valid_utf8(text)}}), kJson);
  }

  /// /state/ID: what the layers hold; /state/ID/LAYER: its picture. ID as in the answer.
  void state(const Request& req, Response& res) {
    const std::string id = req.matches[1];
    const auto snapshot = scheduler_.snapshot(std::stoull(req.matches[2]));
    if (!snapshot)
      throw ApiError(404, str("there is no state of ", id, ": states of requests are there while ",
                              "they run, and of the last four with keep_state"));
    const auto layers = wkv_layers(layout_, *snapshot);
    if (req.matches.size() < 4)
      return res.set_content(state_summary_json(layers, snapshot->tokens), kJson);
    const auto layer = std::stoull(req.matches[3]);
    if (layer >= layers.size())
      throw ApiError(404, str("there is no layer ", layer, ", the state has ", layers.size()));
    res.set_content(state_picture(layers[layer]), "application/octet-stream");
  }

  uint64_t fresh_seed() {
    const std::lock_guard lock(mutex_);
    return (static_cast<uint64_t>(entropy_()) << 32) | entropy_();
  }

  void generate(const Request& req, Response& res, bool chat) {
    const double deadline = now_seconds() + static_cast<double>(options_.request_seconds);
    // The counter goes down when the exchange goes: with the provider of what is sent, once it is.
    ++exchanges_;
    const auto exchange = std::shared_ptr<Exchange>(new Exchange, [this](Exchange* e) {
      delete e;
      --exchanges_;
    });
    exchange->request = parse_api_request(req.body, chat, settings_, tokenizer_, fresh_seed());
    exchange->address = req.remote_addr;
    exchange->port = req.remote_port;
    for (GenerationRequest& r : exchange->request.prompts) {
      r.deadline = deadline;
      exchange->running.push_back(scheduler_.submit(r));
    }
    exchange->answer.emplace(exchange->request, tokenizer_, settings_.model,
                             exchange->running[0]->id(), unix_seconds());
    if (exchange->request.stream) return stream(exchange, res);
    while (!exchange->answer->complete()) {
      exchange->take();
      if (exchange->client_gone()) return;  // nobody reads what is sent now
    }
    const auto body =
        std::make_shared<const std::string>(exchange->answer->whole(exchange->cached()));
    res.set_content_provider(
        body->size(), kJson,
        [exchange, body](size_t offset, size_t length, httplib::DataSink& sink) {
          return sink.write(body->data() + offset, length);
        });
  }

  void stream(const std::shared_ptr<Exchange>& exchange, Response& res) {
    res.set_header("Cache-Control", "no-cache");
    res.set_chunked_content_provider(kEvents, [exchange](size_t, httplib::DataSink& sink) {
      Exchange& e = *exchange;
      std::string out;
      bool over = false;
      try {
        if (!std::exchange(e.begun, true)) out = e.answer->begin();
        if (out.empty()) out = e.take();
        over = e.answer->complete();
        if (over) out += e.answer->end(e.cached());
      } catch (const ApiError& error) {
        out += str("data: ", api_error_json(error), "\n\n");
        over = true;
      } catch (const std::exception& error) {  // nothing above this would catch it
        out += str("data: ", api_error_json(ApiError(500, error.what())), "\n\n");
        over = true;
      }
      if (e.client_gone()) return false;
      if (out.empty() && now_seconds() - e.last_sent > kKeepAlive) out = ": waiting\n\n";
      if (!out.empty()) {
        if (!sink.write(out.data(), out.size())) return false;
        e.last_sent = now_seconds();
      }
      if (over) sink.done();
      return true;
    });
  }

  Scheduler& scheduler_;
  const Tokenizer& tokenizer_;
  const ApiSettings settings_;
  const HttpOptions options_;
  const int64_t started_;
  const std::vector<SequenceRunner::StateTensor> layout_;
  std::vector<std::regex> known_;
  std::atomic<bool> draining_ = false, served_ = false;
  std::atomic<int64_t> exchanges_ = 0;  ///< requests that generate and their answers
  std::atomic<int> port_ = 0;
  std::mutex mutex_;
  std::map<int, uint64_t> answers_;
  std::random_device entropy_;
  std::atomic<ConnectionThreads*> threads_ = nullptr;
  Listener http_;
};

HttpServer::HttpServer(Scheduler& scheduler, const SequenceRunner& runner,
                       const Tokenizer& tokenizer, ApiSettings settings, HttpOptions options)
    : impl_(std::make_unique<Impl>(scheduler, runner, tokenizer, std::move(settings),
                                   std::move(options))) {}
HttpServer::~HttpServer() = default;
int HttpServer::bind() {
  return impl_->bind();
}
bool HttpServer::serve() {
  return impl_->serve();
}
int64_t HttpServer::drain_and_stop(double seconds) {
  return impl_->drain_and_stop(seconds);
}

}  // namespace rwkv
