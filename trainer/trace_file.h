#pragma once
/// What the ranks' timelines say: exposed communication, a trace for viewers, a picture.

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/core/timeline.h"
#include "trainer/comm/comm.h"

namespace rwkv {

using RankTimeline = std::vector<TimelineInterval>;

/// One step of one rank, in seconds. Time counts once, however many lanes are busy.
struct TimelineTimes {
  double step = 0;      ///< from its first interval to the next step's, or to its own end
  double compute = 0;   ///< at least one lane computes
  double exchange = 0;  ///< an exchange is under way, or waits for its turn or another rank
  double exposed = 0;   ///< an exchange is under way and no lane computes
  double idle = 0;      ///< neither: launches, the host
  double forward = 0, recompute = 0, backward = 0, optimizer = 0;  ///< of compute
  double bytes = 0;  ///< that crossed the rank's link, one way
};
TimelineTimes timeline_times(const RankTimeline& timeline, int64_t step);
/// The step with the median length; timelines of one step: that one. -1: there is none.
int64_t typical_step(const RankTimeline& timeline);

/// By rank, on every rank. Clocks of ranks differ: they are set so that an exchange ends on all of
/// them at the same time, by the median over all exchanges. A collective; `group` null: one rank.
std::vector<RankTimeline> gather_timelines(HostGroup* group, const RankTimeline& mine);
void align_timelines(std::vector<RankTimeline>& ranks);

/// Trace events as chrome://tracing and ui.perfetto.dev read them: a process per rank, a thread
/// per lane and one for exchanges.
std::string chrome_trace(const std::vector<RankTimeline>& ranks);
/// One step as an SVG picture: lanes and exchanges of every rank, with what is exposed below them.
/// Ends with a newline; the last step ends with its own last interval.
std::string timeline_svg(const std::vector<RankTimeline>& ranks, int64_t step,
                         const std::string& title);

}  // namespace rwkv
