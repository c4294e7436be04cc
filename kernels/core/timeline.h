#pragma once
/// When pieces of a training step ran: intervals on the streams of one rank, for traces.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/core/context.h"

namespace rwkv {

enum class TimelineKind : uint8_t {
  kForward,
  kRecompute,
  kBackward,
  kOptimizer,
  kReduce,  ///< an exchange of gradients
  kGather,  ///< an exchange of parameters or of the norm
};
inline constexpr bool is_exchange(TimelineKind kind) {
  return kind >= TimelineKind::kReduce;
}

/// On track 0 .. lanes - 1: computation on that lane; on kExchangeTrack: exchanges between ranks,
/// from the moment that all that they wait for on their own rank is done, so that waiting for
/// another rank and for free multiprocessors counts.
struct TimelineInterval {
  std::string name;
  TimelineKind kind = TimelineKind::kForward;
  int32_t track = 0;
  int64_t step = 0;           ///< counted by collect(), from 0
  double begin = 0, end = 0;  ///< seconds since the timeline began
  double bytes = 0;           ///< of exchanges: what crosses a rank's link, one way
  double seconds() const { return end - begin; }
};

/// Takes marks while steps are queued and reads their times afterwards. Marks that go into a launch
/// graph stay and are timed anew at each replay (collect() sees the latest). CPU: a steady clock;
/// CUDA: events, whose cost is about a microsecond of the stream each. Belongs to one thread.
class Timeline {
 public:
  static constexpr int32_t kExchangeTrack = 1000;

  /// Time begins now. ctx must outlive the timeline.
  explicit Timeline(Context& ctx);
  ~Timeline();
  Timeline(const Timeline&) = delete;
  Timeline& operator=(const Timeline&) = delete;

  /// From here on `stream` works on `name`. Nothing changes if it did so already; another interval
  /// that is open on the track ends.
  void enter(int32_t track, Stream stream, TimelineKind kind, std::string_view name,
             double bytes = 0);
  /// Ends what is open on the track.
  void leave(int32_t track, Stream stream);
  /// Ends what is open on the track unless it is this: before the stream waits for what comes next.
  void leave_unless(int32_t track, Stream stream, TimelineKind kind, std::string_view name);
  /// Ends what is open on the lanes of the context: they wait for an exchange.
  void leave_lanes();

  /// After a step, when all of it is done: reads the times of its intervals and forgets marks that
  /// are not part of a graph.
  void collect();
  const std::vector<TimelineInterval>& intervals() const { return intervals_; }
  int64_t steps() const { return steps_; }

 private:
  struct Mark {
    double seconds = 0;
    void* event = nullptr;
  };
  struct Span {
    TimelineInterval what;
    Mark begin, end;
    bool open = true, recorded = false;  ///< recorded: part of a graph
  };
  Mark mark(Stream stream);
  double time(const Mark& m) const;
  Span* open_span(int32_t track);

  Context& ctx_;
  Mark origin_;
  std::vector<Span> spans_;
  std::vector<void*> free_events_;
  std::vector<TimelineInterval> intervals_;
  int64_t steps_ = 0;
};

}  // namespace rwkv
