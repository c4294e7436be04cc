#pragma once
/// Accounting of named work by time, for rwkv-bench: wall-clock time on the CPU, time between two
/// points of the stream on CUDA (host work that the device does not wait for is not seen).

#include <chrono>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace rwkv {

/// Seconds on a monotonic clock.
inline double now_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// Sums seconds, calls and floating-point operations by name while enabled. Owned by a Context.
class Tracer {
 public:
  struct Row {
    double seconds = 0;
    int64_t calls = 0;
    double flops = 0;
  };
  /// stream: the context's on CUDA, null on the CPU.
  explicit Tracer(void* stream = nullptr) : stream_(stream) {}
  ~Tracer();
  Tracer(const Tracer&) = delete;
  Tracer& operator=(const Tracer&) = delete;

  void enable(bool on) { enabled_ = on; }
  bool enabled() const { return enabled_; }
  void add(std::string_view name, double seconds, double flops = 0);
  void clear();
  /// Waits for the device if spans of it are not read yet.
  const std::map<std::string, Row, std::less<>>& rows();

 private:
  friend class TraceScope;
  struct Mark {
    double seconds = 0;
    void* event = nullptr;
  };
  struct Span {
    std::string name;
    double flops;
    void *begin, *end;
  };
  Mark mark();
  void finish(std::string_view name, const Mark& begin, double flops) noexcept;

  void* stream_;
  bool enabled_ = false;
  std::vector<Span> pending_;
  std::vector<void*> free_events_;
  std::map<std::string, Row, std::less<>> rows_;
};

/// Adds the time of its scope to `name` if the tracer is enabled; costs one branch otherwise.
class TraceScope {
 public:
  TraceScope(Tracer& tracer, std::string_view name, double flops = 0)
      : tracer_(tracer.enabled() ? &tracer : nullptr), name_(name), flops_(flops) {
    if (tracer_ != nullptr) start_ = tracer_->mark();
  }
  ~TraceScope() {
    if (tracer_ != nullptr) tracer_->finish(name_, start_, flops_);
  }
  TraceScope(const TraceScope&) = delete;
  TraceScope& operator=(const TraceScope&) = delete;

 private:
  Tracer* tracer_;
  std::string_view name_;
  double flops_;
  Tracer::Mark start_;
};

}  // namespace rwkv
