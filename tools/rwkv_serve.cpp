// rwkv-serve: a trained model behind an OpenAI-compatible HTTP API. docs/serving.md explains it.

#include <cstdio>
#include <cstdlib>
#include <filesystem>

#include "data/io/atomic_file.h"
#include "data/tokenizer/world_tokenizer.h"
#include "inference/load.h"
#include "inference/random_model.h"
#include "inference/server/http_server.h"
#include "inference/server/sockets.h"
#include "model/public_sizes.h"
#include "tools/cli_common.h"
#include "tools/device_flags.h"
#include "tools/serve_flags.h"
#include "tools/stop_waiter.h"

namespace {

using namespace rwkv;

/// Running texts pause for a piece: on the CPU a long one takes too long.
constexpr int64_t kCpuPrefill = 64;

using Flags = ServeFlags;

std::string api_key(const Flags& f) {
  std::string key;
  if (!f.key_file.empty()) {
    key = read_file(f.key_file);
    key = key.substr(0, key.find_first_of("\r\n"));
    RWKV_CHECK(!key.empty(), IoError, "reading the API key in ", f.key_file,
               ": the first line is empty");
  } else if (const char* value = std::getenv("RWKV_API_KEY")) {
    key = value;
  }
  return key;
}

ServingOptions serving_of(const Flags& f, const ModelConfig& config) {
  ServingOptions o = serving_options(f.device, config);
  o.runner.slots = f.slots;
  o.runner.prefill_tokens = f.prefill_tokens;
  if (f.prefill_tokens == 0 && o.engine.device == Device::kCpu)
    o.runner.prefill_tokens = kCpuPrefill;
  o.exact = !f.fast;
  if (f.fast) o.runner.buckets = {1, 2, 4, 8, 16, 32, 64};
  return o;
}

LoadedModel load(const Flags& f, const std::string& path, const ModelConfig& config) {
  if (f.random.empty()) return load_model(path, f.vocab);
  LoadedModel m = random_model(config, 1);
  m.tokenizer = f.vocab.empty() || f.vocab == "bytes" ? make_tokenizer("bytes", "")
                                                      : load_tokenizer("auto", {.file = f.vocab});
  return m;
}

/// What clients call the model: a run folder keeps its name from checkpoint to checkpoint.
std::string served_name(const std::string& given, const std::string& file) {
  const auto path = std::filesystem::weakly_canonical(given);
  return std::filesystem::is_directory(path) && path.extension() != ".shards"
             ? path.filename().string()
             : std::filesystem::path(file).stem().string();
}

int run(Flags& f) {
  StopWaiter waiter;
  use_threads(f.threads);
  f.scheduler.cache_bytes = static_cast<size_t>(f.cache_mib) << 20;
  f.api.chat = parse_chat_template(f.chat);
  f.api.thinking = parse_thinking(f.thinking);
  f.http.page = f.page;
  f.http.api_key = api_key(f);

  if (!f.dry_run) check_device(f.device);
  RWKV_CHECK(!f.model.empty() || !f.random.empty(), ConfigError, "--model FILE is needed");
  const std::string path = f.random.empty() ? resolve_model(f.model) : "random-" + f.random;
  const ModelConfig config =
      f.random.empty() ? ModelFile::open(path).config() : public_model_config(f.random);
  const ServingOptions options = serving_of(f, config);
  if (f.dry_run) {
    std::printf("%s\n", to_string(serving_size(config, options), f.slots).c_str());
    return 0;
  }
  if (const int64_t n = allow_connections(f.http.max_connections); n < f.http.max_connections)
    std::fprintf(stderr,
                 "rwkv-serve: the limit on open files (ulimit -Hn) has room for %lld connections, "
                 "not for %lld\n",
                 static_cast<long long>(n), static_cast<long long>(f.http.max_connections));
  // Before the weights are read, which takes a while.
  check_address(f.http.host, f.http.port);
  check_serving(config, options);
  const LoadedModel loaded = load(f, path, config);
  const Tokenizer& tokenizer = loaded.need_tokenizer();
  if (f.api.model.empty()) f.api.model = f.random.empty() ? served_name(f.model, path) : path;
  f.api.vocab = config.vocab_size;
  const auto serving = make_serving(*loaded.model, *loaded.weights, options);
  SequenceRunner* const runner = &serving->runner();
  std::fprintf(stderr, "rwkv-serve: %s\n",
               to_string(serving_size(config, options), f.slots).c_str());
  Scheduler scheduler(*runner, tokenizer, f.scheduler);
  HttpServer server(scheduler, *runner, tokenizer, f.api, f.http);
  const int port = server.bind();
  bool asked = false;
  const auto serve = [&] {
    std::printf("serving %s on http://%s:%d with %lld slots of %.2f MiB\n", f.api.model.c_str(),
                f.http.host.c_str(), port, static_cast<long long>(runner->slots()),
                static_cast<double>(runner->state_bytes()) / (1 << 20));
    std::fflush(stdout);
    asked = server.serve();
  };
  waiter.run(serve, [&] {
    std::fprintf(stderr, "rwkv-serve: no new requests; running answers have %lld s\n",
                 static_cast<long long>(f.drain_seconds));
    if (const int64_t n = server.drain_and_stop(static_cast<double>(f.drain_seconds)); n > 0)
      std::fprintf(stderr, "rwkv-serve: %lld answers were cut off\n", static_cast<long long>(n));
  });
  RWKV_CHECK(asked, IoError, "serving on port ", port, ": the socket accepts no more connections");
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Serves a trained model over HTTP, OpenAI-compatible.", "rwkv-serve");
  Flags flags;
  declare_serve_flags(app, flags);
  return run_program(app, argc, argv, [&] { return run(flags); });
}
