#pragma once
/// Times single calls on either device.

#include <optional>

#include "kernels/core/context.h"
#include "kernels/core/trace.h"
#include "tools/bench/cuda_timing.h"
#include "tools/bench/report.h"

namespace rwkv::bench {

/// CPU: wall time with flushed caches. CUDA: between two events, behind a short delay in which the
/// host queues everything; caches as the call before left them.
class Stopwatch {
 public:
  explicit Stopwatch(Context& ctx) : ctx_(ctx) {
    if (ctx.device() == Device::kCuda) events_.emplace();
  }
  /// Seconds that `work`, which queues on the context, took.
  template <class Fn>
  double operator()(const Fn& work) {
    if (!events_) {
      flusher_.flush();
      const double start = now_seconds();
      work();
      return now_seconds() - start;
    }
    cuda_delay(ctx_, 100e-6);
    events_->start(ctx_);
    work();
    events_->stop(ctx_);
    return events_->seconds();
  }

 private:
  Context& ctx_;
  std::optional<EventTimer> events_;
  CacheFlusher flusher_;
};

}  // namespace rwkv::bench
