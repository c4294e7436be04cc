#include "inference/server/metrics.h"

#include <sstream>

#include "inference/generation.h"

namespace rwkv {
namespace {

class Text {
 public:
  template <class T>
  void value(const char* name, const char* type, const char* help, T value) {
    head(name, type, help);
    out_ << "rwkv_" << name << ' ' << value << '\n';
  }
  void head(const char* name, const char* type, const char* help) {
    out_ << "# HELP rwkv_" << name << ' ' << help << "\n# TYPE rwkv_" << name << ' ' << type
         << '\n';
  }
  void histogram(const char* name, const char* help, const LatencyHistogram& h) {
    head(name, "histogram", help);
    uint64_t sum = 0;
    for (size_t i = 0; i < h.counts.size(); ++i) {
      sum += h.counts[i];
      out_ << "rwkv_" << name << "_bucket{le=\"";
      if (i < LatencyHistogram::kBounds.size())
        out_ << LatencyHistogram::kBounds[i];
      else
        out_ << "+Inf";
      out_ << "\"} " << sum << '\n';
    }
    out_ << "rwkv_" << name << "_sum " << h.sum << "\nrwkv_" << name << "_count " << h.count
         << '\n';
  }
  std::ostringstream& out() { return out_; }

 private:
  std::ostringstream out_;
};

}  // namespace

std::string prometheus_text(const SchedulerStats& s, const HttpStats& http) {
  Text t;
  t.value("requests_accepted_total", "counter", "Requests taken into the queue.", s.accepted);
  t.value("requests_refused_total", "counter", "Requests refused because the queue was full.",
          s.refused);
  t.head("samples_ended_total", "counter", "Samples by what ended them.");
  for (size_t i = 0; i < s.ended.size(); ++i)
    t.out() << "rwkv_samples_ended_total{reason=\""
            << generation_end_name(static_cast<GenerationEnd>(i)) << "\"} " << s.ended[i] << '\n';
  t.head("http_answers_total", "counter", "HTTP answers by status.");
  for (const auto& [status, count] : http.answers)
    t.out() << "rwkv_http_answers_total{status=\"" << status << "\"} " << count << '\n';
  t.value("http_connections", "gauge", "Open connections.", http.connections);
  t.value("prompt_tokens_total", "counter", "Prompt tokens of requests with slots.",
          s.prompt_tokens);
  t.value("cached_tokens_total", "counter", "Prompt tokens whose state was in the cache.",
          s.cached_tokens);
  t.value("generated_tokens_total", "counter", "Tokens drawn.", s.generated_tokens);
  t.value("prefill_pieces_total", "counter", "Pieces of prompts computed.", s.prefill_pieces);
  t.value("prefill_calls_total", "counter", "Passes that computed them.", s.prefill_calls);
  t.value("decode_steps_total", "counter", "Decoding steps.", s.decode_steps);
  t.value("prefill_seconds_total", "counter", "Time in prefill.", s.prefill_seconds);
  t.value("decode_seconds_total", "counter", "Time in decoding.", s.decode_seconds);
  t.value("tell_seconds_total", "counter", "Time in handing out tokens.", s.tell_seconds);
  t.value("requests_waiting", "gauge", "Requests without a slot.", s.waiting);
  t.value("requests_prefilling", "gauge", "Requests whose prompt is computed.", s.prefilling);
  t.value("samples_decoding", "gauge", "Samples that decode.", s.decoding);
  t.value("slots", "gauge", "Slots.", s.slots);
  t.value("slots_free", "gauge", "Slots without a sample.", s.free_slots);
  t.value("cache_entries", "gauge", "States in the prefix cache.", s.cache_entries);
  t.value("cache_bytes", "gauge", "Size of the prefix cache.", s.cache_bytes);
  t.value("cache_evictions_total", "counter", "States dropped from the cache.", s.cache_evictions);
  t.histogram("first_token_seconds", "From a request to its first token.", s.first_token);
  t.histogram("token_seconds", "Between two tokens of a sample.", s.token);
  t.histogram("request_seconds", "From a request to its end.", s.whole);
  return t.out().str();
}

}  // namespace rwkv
