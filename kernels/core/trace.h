#pragma once
/// Wall-clock accounting of named work, for rwkv-bench and the trainer's summaries.

#include <chrono>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>

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
  void enable(bool on) { enabled_ = on; }
  bool enabled() const { return enabled_; }
  void add(std::string_view name, double seconds, double flops = 0);
  void clear() { rows_.clear(); }
  const std::map<std::string, Row, std::less<>>& rows() const { return rows_; }

 private:
  bool enabled_ = false;
  std::map<std::string, Row, std::less<>> rows_;
};

/// Adds the time of its scope to `name` if the tracer is enabled; costs one branch otherwise.
class TraceScope {
 public:
  TraceScope(Tracer& tracer, std::string_view name, double flops = 0)
      : tracer_(tracer.enabled() ? &tracer : nullptr), name_(name), flops_(flops) {
    if (tracer_ != nullptr) start_ = now_seconds();
  }
  ~TraceScope() {
    if (tracer_ != nullptr) tracer_->add(name_, now_seconds() - start_, flops_);
  }
  TraceScope(const TraceScope&) = delete;
  TraceScope& operator=(const TraceScope&) = delete;

 private:
  Tracer* tracer_;
  std::string_view name_;
  double flops_, start_ = 0;
};

}  // namespace rwkv
