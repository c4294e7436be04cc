#include "tools/bench/serve.h"

#include <httplib.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstdio>
#include <fstream>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <thread>

#include "kernels/core/error.h"
#include "kernels/core/rng.h"
#include "kernels/core/trace.h"
#include "tools/bench/report.h"

namespace rwkv::bench {
namespace {

using Json = nlohmann::ordered_json;

/// What one client saw.
struct Seen {
  std::vector<double> first, gap;  ///< seconds to the first piece of text, between two pieces
  std::vector<double> rate;        ///< tokens per second of each answer after its first piece
  int64_t requests = 0, tokens = 0, busy = 0;
  std::map<std::string, int64_t> errors;
};

/// Bytes of resident memory; 0 if unknown.
double resident_bytes(int64_t pid) {
  std::ifstream in(str("/proc/", pid, "/statm"));
  double total = 0, resident = 0;
  in >> total >> resident;
  return in ? resident * static_cast<double>(::sysconf(_SC_PAGESIZE)) : 0;
}

httplib::Headers headers_of(const ServeOptions& o) {
  std::string key = o.key;
  if (const char* value = std::getenv("RWKV_API_KEY"); key.empty() && value != nullptr) key = value;
  httplib::Headers headers = {{"Content-Type", "application/json"}};
  if (!key.empty()) headers.emplace("Authorization", "Bearer " + key);
  return headers;
}

class Client {
 public:
  Client(const ServeOptions& o, std::string model, int64_t number)
      : o_(o), model_(std::move(model)), number_(number), http_(o.host, o.port) {
    http_.set_keep_alive(true);
    http_.set_tcp_nodelay(true);
    http_.set_read_timeout(600);
  }

  void run(double end) {
    for (int64_t i = 0; now_seconds() < end; ++i) ask(i);
  }
  Seen seen;

 private:
  std::vector<int64_t> prompt(int64_t request) const {
    // Ids that every vocabulary has.
    const Rng shared(1, hash_name("bench.serve"));
    const Rng own(2 + static_cast<uint64_t>(number_), hash_name("bench.serve"),
                  static_cast<uint64_t>(request));
    std::vector<int64_t> ids;
    for (int64_t i = 0; i < o_.prompt_tokens; ++i)
      ids.push_back(
          1 + static_cast<int64_t>(
                  (i < o_.shared_tokens ? shared : own).below(static_cast<uint64_t>(i), 256)));
    return ids;
  }

  void ask(int64_t number) {
    httplib::Request request;
    request.method = "POST";
    request.path = "/v1/completions";
    request.headers = headers_of(o_);
    request.body = Json{
        {"model", model_},
        {"prompt", prompt(number)},
        {"max_tokens", o_.max_tokens},
        {"stream", true},
        {"stream_options", {{"include_usage", true}}},
        {"ignore_eos", true},
        {"seed",
         number}}.dump();
    const double start = now_seconds();
    double first = 0, last = 0;
    int64_t tokens = 0;
    bool done = false;
    std::string rest, failure;
    const auto line = [&](const std::string& text) {
      if (text == "data: [DONE]") done = true;
      if (!text.starts_with("data: {")) return;
      const Json event = Json::parse(text.substr(6), nullptr, false);
      if (event.contains("error")) failure = event["error"]["message"].get<std::string>();
      if (event.contains("usage") && event["usage"].is_object())
        tokens = event["usage"]["completion_tokens"].get<int64_t>();
      if (!event.contains("choices") || event["choices"].empty()) return;
      const double now = now_seconds();
      if (first == 0)
        seen.first.push_back((first = now) - start);
      else
        seen.gap.push_back(now - last);
      last = now;
    };
    request.content_receiver = [&](const char* data, size_t n, uint64_t, uint64_t) {
      rest.append(data, n);
      size_t at = 0;
      for (size_t end; (end = rest.find('\n', at)) != std::string::npos; at = end + 1)
        line(rest.substr(at, end - at));
      rest.erase(0, at);
      return true;
    };
    const auto answer = http_.send(request);
    if (!answer) {
      ++seen.errors[str("connection: ", httplib::to_string(answer.error()))];
    } else if (answer->status == 429) {
      ++seen.busy;
      const int wait = std::atoi(answer->get_header_value("Retry-After").c_str());
      std::this_thread::sleep_for(std::chrono::seconds(std::clamp(wait, 1, 60)));
    } else if (answer->status != 200) {
      ++seen.errors[str("status ", answer->status)];
    } else if (!failure.empty() || !done) {
      ++seen.errors[failure.empty() ? "the stream ended early" : failure];
    } else {
      ++seen.requests;
      seen.tokens += tokens;
      if (tokens > 1 && last > first)
        seen.rate.push_back(static_cast<double>(tokens - 1) / (last - first));
    }
  }

  const ServeOptions& o_;
  std::string model_;
  int64_t number_;
  httplib::Client http_;
};

double percentile(const std::vector<double>& sorted, double p) {
  if (sorted.empty()) return std::nan("");
  const double at = p / 100 * static_cast<double>(sorted.size() - 1);
  return sorted[static_cast<size_t>(std::llround(at))];
}

Json latencies(const char* name, std::vector<double> seconds) {
  std::ranges::sort(seconds);
  Json row = {{"count", seconds.size()}};
  std::printf("%-22s", name);
  for (const double p : {50.0, 95.0, 99.0, 100.0}) {
    const double ms = 1e3 * percentile(seconds, p);
    std::printf(" %10.2f", ms);
    row[p == 100 ? "max_ms" : str("p", p, "_ms")] = ms;
  }
  std::printf("\n");
  return row;
}

std::string model_name(const ServeOptions& o) {
  httplib::Client http(o.host, o.port);
  const auto answer = http.Get("/v1/models", headers_of(o));
  RWKV_CHECK(answer && answer->status == 200, IoError, "rwkv-bench serve: asking ", o.host,
             " port ", o.port, " for its models: ",
             answer ? str("status ", answer->status) : httplib::to_string(answer.error()),
             "; is rwkv-serve running there, and is the key right?");
  const Json json = Json::parse(answer->body, nullptr, false);
  RWKV_CHECK(json.is_object() && json.contains("data") && !json["data"].empty(), IoError,
             "rwkv-bench serve: ", o.host, " port ", o.port, " has no list of models");
  return json["data"][0]["id"].get<std::string>();
}

/// Resident memory of the server once a second, in another thread.
class MemoryWatch {
 public:
  explicit MemoryWatch(int64_t pid) : pid_(pid) {
    if (pid > 0) thread_ = std::thread([this] { watch(); });
  }
  ~MemoryWatch() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
    if (thread_.joinable()) thread_.join();
  }
  /// Of the last 60 % of the time: (largest - smallest) / smallest, and the largest in bytes.
  std::pair<double, double> spread() const {
    const std::lock_guard lock(mutex_);
    if (bytes_.empty()) return {0, 0};
    const auto from = bytes_.begin() + static_cast<std::ptrdiff_t>(bytes_.size() * 2 / 5);
    const auto [low, high] = std::minmax_element(from, bytes_.end());
    return {(*high - *low) / *low, *high};
  }

 private:
  void watch() {
    std::unique_lock lock(mutex_);
    while (!stopping_) {
      if (const double b = resident_bytes(pid_); b > 0) bytes_.push_back(b);
      wake_.wait_for(lock, std::chrono::seconds(1), [&] { return stopping_; });
    }
  }
  int64_t pid_;
  mutable std::mutex mutex_;
  std::condition_variable wake_;
  bool stopping_ = false;
  std::vector<double> bytes_;
  std::thread thread_;
};

}  // namespace

void add_serve_flags(CLI::App* app, ServeOptions& o) {
  app->add_option("--host", o.host, "of the server")->capture_default_str();
  app->add_option("--port", o.port, "of the server")->capture_default_str();
  app->add_option("--key", o.key, "API key (default: the environment's RWKV_API_KEY)");
  app->add_option("--clients", o.clients, "streams at the same time")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  app->add_option("--seconds", o.seconds, "no request begins after them")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app->add_option("--prompt-tokens", o.prompt_tokens, "of each request, at random")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  app->add_option("--shared-tokens", o.shared_tokens, "at the beginning, the same in all requests")
      ->check(CLI::Range(0, 1 << 20))
      ->capture_default_str();
  app->add_option("--max-tokens", o.max_tokens, "of each answer")
      ->check(CLI::Range(2, 1 << 20))
      ->capture_default_str();
  app->add_option("--pid", o.pid, "process of the server on this machine: watch its memory");
  app->add_option("--json", o.json, "also write the numbers to this file");
}

int run_serve(const ServeOptions& o) {
  const std::string model = model_name(o);
  std::vector<std::unique_ptr<Client>> clients;
  for (int64_t i = 0; i < o.clients; ++i) clients.push_back(std::make_unique<Client>(o, model, i));
  const MemoryWatch memory(o.pid);
  const double start = now_seconds();
  std::vector<std::thread> threads;
  for (auto& c : clients) threads.emplace_back([&] { c->run(start + o.seconds); });
  for (auto& t : threads) t.join();
  const double seconds = now_seconds() - start;

  Seen all;
  std::vector<double> mean_rate;
  for (const auto& c : clients) {
    const Seen& s = c->seen;
    all.first.insert(all.first.end(), s.first.begin(), s.first.end());
    all.gap.insert(all.gap.end(), s.gap.begin(), s.gap.end());
    all.rate.insert(all.rate.end(), s.rate.begin(), s.rate.end());
    all.requests += s.requests;
    all.tokens += s.tokens;
    all.busy += s.busy;
    for (const auto& [what, n] : s.errors) all.errors[what] += n;
  }
  const Environment env = environment();
  std::printf("%s\nmodel %s, %lld clients, prompts of %lld tokens (%lld shared), answers of %lld\n",
              to_string(env).c_str(), model.c_str(), static_cast<long long>(o.clients),
              static_cast<long long>(o.prompt_tokens), static_cast<long long>(o.shared_tokens),
              static_cast<long long>(o.max_tokens));
  std::printf("%lld answers in %.1f s, %lld tokens, %.1f tokens/s, %lld times told to wait\n",
              static_cast<long long>(all.requests), seconds, static_cast<long long>(all.tokens),
              static_cast<double>(all.tokens) / seconds, static_cast<long long>(all.busy));
  std::printf("%-22s %10s %10s %10s %10s\n", "milliseconds", "p50", "p95", "p99", "max");
  Json record = {{"benchmark", "serve"},
                 {"date", today()},
                 {"commit", env.commit},
                 {"cpu", env.cpu},
                 {"model", model},
                 {"clients", o.clients},
                 {"prompt_tokens", o.prompt_tokens},
                 {"shared_tokens", o.shared_tokens},
                 {"max_tokens", o.max_tokens},
                 {"seconds", seconds},
                 {"answers", all.requests},
                 {"tokens", all.tokens},
                 {"tokens_per_second", static_cast<double>(all.tokens) / seconds},
                 {"busy", all.busy}};
  record["first_text"] = latencies("first text", all.first);
  record["between_texts"] = latencies("between pieces of text", all.gap);
  std::ranges::sort(all.rate);
  const double slowest = percentile(all.rate, 0), median = percentile(all.rate, 50);
  std::printf("tokens/s of an answer: median %.1f, slowest %.1f (%.2f of the median)\n", median,
              slowest, slowest / median);
  record["answer_rate"] = {{"median", median}, {"slowest", slowest}};
  if (o.pid > 0) {
    const auto [spread, bytes] = memory.spread();
    std::printf(
        "resident memory of the server: %.1f MiB at most, within %.2f %% in the last 60 %% "
        "of the time\n",
        bytes / (1 << 20), 100 * spread);
    record["resident"] = {{"largest_bytes", bytes}, {"spread", spread}};
  }
  record["errors"] = Json::object();
  for (const auto& [what, n] : all.errors) {
    std::printf("error, %lld times: %s\n", static_cast<long long>(n), what.c_str());
    record["errors"][what] = n;
  }
  if (!o.json.empty()) write_file(o.json, record_text(record.dump()));
  return all.errors.empty() && all.requests > 0 ? 0 : 3;
}

}  // namespace rwkv::bench
