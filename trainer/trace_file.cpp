#include "trainer/trace_file.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <tuple>

#include "kernels/core/error.h"

namespace rwkv {
namespace {

struct Range {
  double begin, end;
};

/// Of one step, merged and in order.
std::vector<Range> merged(const RankTimeline& timeline, int64_t step,
                          const std::function<bool(TimelineKind)>& wanted) {
  std::vector<Range> all, out;
  for (const TimelineInterval& i : timeline)
    if (i.step == step && wanted(i.kind) && i.end > i.begin) all.push_back({i.begin, i.end});
  std::ranges::sort(all, {}, &Range::begin);
  for (const Range& r : all) {
    if (out.empty() || r.begin > out.back().end)
      out.push_back(r);
    else
      out.back().end = std::max(out.back().end, r.end);
  }
  return out;
}

double total(const std::vector<Range>& ranges) {
  double sum = 0;
  for (const Range& r : ranges) sum += r.end - r.begin;
  return sum;
}

/// What of `a` no range of `b` covers; both merged.
std::vector<Range> without(const std::vector<Range>& a, const std::vector<Range>& b) {
  std::vector<Range> out;
  for (Range r : a) {
    for (const Range& c : b) {
      if (c.end <= r.begin || c.begin >= r.end) continue;
      if (c.begin > r.begin) out.push_back({r.begin, c.begin});
      r.begin = std::min(c.end, r.end);
    }
    if (r.end > r.begin) out.push_back(r);
  }
  return out;
}

bool computes(TimelineKind kind) {
  return !is_exchange(kind);
}

Range bounds(const RankTimeline& timeline, int64_t step) {
  Range r{1e300, -1e300};
  for (const TimelineInterval& i : timeline)
    if (i.step == step) r = {std::min(r.begin, i.begin), std::max(r.end, i.end)};
  return r;
}

const char* kind_name(TimelineKind kind) {
  constexpr const char* kNames[] = {"forward",   "recomputation",         "backward",
                                    "optimizer", "exchange of gradients", "gathering"};
  return kNames[static_cast<size_t>(kind)];
}

/// How an interval travels between processes.
struct Packed {
  std::array<char, 64> name;
  int32_t kind, track;
  int64_t step;
  double begin, end, bytes;
};

}  // namespace

TimelineTimes timeline_times(const RankTimeline& timeline, int64_t step) {
  TimelineTimes t;
  const Range own = bounds(timeline, step), next = bounds(timeline, step + 1);
  if (own.end < own.begin) return t;
  t.step = (next.end < next.begin ? own.end : next.begin) - own.begin;
  const auto compute = merged(timeline, step, computes);
  const auto exchange = merged(timeline, step, is_exchange);
  t.compute = total(compute);
  t.exchange = total(exchange);
  t.exposed = total(without(exchange, compute));
  t.idle = t.step - t.compute - t.exposed;
  const auto of = [&](TimelineKind kind) {
    return total(merged(timeline, step, [&](TimelineKind k) { return k == kind; }));
  };
  t.forward = of(TimelineKind::kForward);
  t.recompute = of(TimelineKind::kRecompute);
  t.backward = of(TimelineKind::kBackward);
  t.optimizer = of(TimelineKind::kOptimizer);
  for (const TimelineInterval& i : timeline)
    if (i.step == step) t.bytes += i.bytes;
  return t;
}

int64_t typical_step(const RankTimeline& timeline) {
  std::vector<std::pair<double, int64_t>> steps;
  int64_t last = -1;
  for (const TimelineInterval& i : timeline) last = std::max(last, i.step);
  for (int64_t s = 0; s <= last; ++s) steps.emplace_back(timeline_times(timeline, s).step, s);
  // The last one's end is not the next one's beginning.
  if (steps.size() > 1) steps.pop_back();
  if (steps.empty()) return -1;
  std::ranges::sort(steps);
  return steps[steps.size() / 2].second;
}

void align_timelines(std::vector<RankTimeline>& ranks) {
  using Key = std::tuple<int64_t, TimelineKind, std::string, int>;
  const auto ends = [](const RankTimeline& timeline) {
    std::map<Key, double> out;
    for (const TimelineInterval& i : timeline) {
      if (!is_exchange(i.kind)) continue;
      int again = 0;  // of the same name in one step
      while (out.contains({i.step, i.kind, i.name, again})) ++again;
      out[{i.step, i.kind, i.name, again}] = i.end;
    }
    return out;
  };
  if (ranks.empty()) return;
  const auto first = ends(ranks[0]);
  for (size_t r = 1; r < ranks.size(); ++r) {
    std::vector<double> later;
    for (const auto& [key, end] : ends(ranks[r]))
      if (const auto at = first.find(key); at != first.end()) later.push_back(end - at->second);
    if (later.empty()) continue;
    std::ranges::sort(later);
    const double shift = later[later.size() / 2];
    for (TimelineInterval& i : ranks[r]) {
      i.begin -= shift;
      i.end -= shift;
    }
  }
}

std::vector<RankTimeline> gather_timelines(HostGroup* group, const RankTimeline& mine) {
  if (group == nullptr) return {mine};
  const auto ranks = static_cast<size_t>(group->size());
  const auto count = static_cast<int64_t>(mine.size());
  std::vector<int64_t> counts(ranks);
  group->all_gather(&count, sizeof count, counts.data());
  const auto most = static_cast<size_t>(std::ranges::max(counts));
  std::vector<Packed> packed(std::max<size_t>(most, 1)), all(ranks * packed.size());
  for (size_t i = 0; i < mine.size(); ++i) {
    const TimelineInterval& from = mine[i];
    Packed& p = packed[i];
    p.name.fill('\0');
    std::memcpy(p.name.data(), from.name.data(), std::min(from.name.size(), p.name.size() - 1));
    p.kind = static_cast<int32_t>(from.kind);
    p.track = from.track;
    p.step = from.step;
    p.begin = from.begin;
    p.end = from.end;
    p.bytes = from.bytes;
  }
  group->all_gather(packed.data(), packed.size() * sizeof(Packed), all.data());
  std::vector<RankTimeline> out(ranks);
  for (size_t r = 0; r < ranks; ++r)
    for (size_t i = 0; i < static_cast<size_t>(counts[r]); ++i) {
      const Packed& p = all[r * packed.size() + i];
      out[r].push_back({p.name.data(), static_cast<TimelineKind>(p.kind), p.track, p.step, p.begin,
                        p.end, p.bytes});
    }
  align_timelines(out);
  return out;
}

std::string chrome_trace(const std::vector<RankTimeline>& ranks) {
  double origin = 1e300;
  for (const RankTimeline& timeline : ranks)
    for (const TimelineInterval& i : timeline) origin = std::min(origin, i.begin);
  nlohmann::ordered_json events = nlohmann::ordered_json::array();
  for (size_t r = 0; r < ranks.size(); ++r) {
    events.push_back(
        {{"name", "process_name"}, {"ph", "M"}, {"pid", r}, {"args", {{"name", str("rank ", r)}}}});
    std::map<int32_t, int64_t> tracks;
    for (const TimelineInterval& i : ranks[r]) ++tracks[i.track];
    for (const auto& [track, count] : tracks)
      events.push_back({{"name", "thread_name"},
                        {"ph", "M"},
                        {"pid", r},
                        {"tid", track},
                        {"args",
                         {{"name", track == Timeline::kExchangeTrack ? std::string("exchanges")
                                                                     : str("lane ", track)}}}});
    for (const TimelineInterval& i : ranks[r]) {
      nlohmann::ordered_json args = {{"step", i.step}};
      if (i.bytes > 0) {
        args["bytes"] = i.bytes;
        args["GB/s"] = i.bytes / std::max(i.seconds(), 1e-9) * 1e-9;
      }
      events.push_back({{"name", str(i.name, " ", kind_name(i.kind))},
                        {"cat", kind_name(i.kind)},
                        {"ph", "X"},
                        {"pid", r},
                        {"tid", i.track},
                        {"ts", (i.begin - origin) * 1e6},
                        {"dur", i.seconds() * 1e6},
                        {"args", args}});
    }
  }
  // One event per line: compact, and still something to look at.
  std::string out = "{\"displayTimeUnit\": \"ms\", \"traceEvents\": [\n";
  for (size_t i = 0; i < events.size(); ++i)
    out += events[i].dump() + (i + 1 < events.size() ? ",\n" : "\n");
  return out + "]}\n";
}

std::string timeline_svg(const std::vector<RankTimeline>& ranks, int64_t step,
                         const std::string& title) {
  constexpr double kLeft = 110, kWidth = 1060, kLane = 13, kExchange = 20, kExposed = 7;
  constexpr const char* kColours[] = {"#4c78a8", "#9d755d", "#59a14f",
                                      "#b279a2", "#e45756", "#f2a33a"};
  Range all{1e300, -1e300};
  for (const RankTimeline& timeline : ranks) {
    const Range r = bounds(timeline, step);
    all = {std::min(all.begin, r.begin), std::max(all.end, r.end)};
  }
  RWKV_CHECK(all.end > all.begin, ConfigError, "drawing a timeline: it has no step ", step);
  const double scale = kWidth / (all.end - all.begin);
  const auto number = [](double x) {
    std::array<char, 32> text{};
    std::snprintf(text.data(), text.size(), "%.2f", x);
    return std::string(text.data());
  };
  const auto label = [&](double x, double y, const std::string& text, const char* more = "") {
    return str("<text x=\"", number(x), "\" y=\"", number(y), "\"", more, ">", text, "</text>\n");
  };
  const auto box = [&](const Range& r, double y, double height, const std::string& colour,
                       const std::string& tip) {
    return str("<rect x=\"", number(kLeft + (r.begin - all.begin) * scale), "\" y=\"", number(y),
               "\" width=\"", number(std::max(0.3, (r.end - r.begin) * scale)), "\" height=\"",
               number(height), "\" fill=\"", colour, "\"><title>", tip, "</title></rect>\n");
  };
  std::string body;
  double y = 46;
  for (size_t r = 0; r < ranks.size(); ++r) {
    int32_t lanes = 0;
    for (const TimelineInterval& i : ranks[r])
      if (!is_exchange(i.kind)) lanes = std::max(lanes, i.track + 1);
    const double below = y + lanes * kLane + 3;
    body += label(6, y + 11, str("rank ", r));
    body += label(6, below + 14, "exchanges");
    for (const TimelineInterval& i : ranks[r]) {
      if (i.step != step) continue;
      const bool exchange = is_exchange(i.kind);
      body += box({i.begin, i.end}, exchange ? below : y + i.track * kLane,
                  exchange ? kExchange : kLane - 1, kColours[static_cast<size_t>(i.kind)],
                  str(i.name, " ", kind_name(i.kind), ", ", number(i.seconds() * 1e3), " ms"));
    }
    const auto exposed =
        without(merged(ranks[r], step, is_exchange), merged(ranks[r], step, computes));
    for (const Range& e : exposed)
      body += box(e, below + kExchange + 1, kExposed, "#222222",
                  str("exposed, ", number((e.end - e.begin) * 1e3), " ms"));
    const TimelineTimes t = timeline_times(ranks[r], step);
    body += label(
        kLeft, below + kExchange + kExposed + 14,
        str("computing ", number(t.compute * 1e3), " ms, exchanges ", number(t.exchange * 1e3),
            " ms, of which exposed (black) ", number(t.exposed * 1e3), " ms"));
    y = below + kExchange + kExposed + 30;
  }
  body += str("<line x1=\"", kLeft, "\" x2=\"", kLeft + kWidth, "\" y1=\"", number(y), "\" y2=\"",
              number(y), "\" stroke=\"#444\"/>\n");
  const double ms = (all.end - all.begin) * 1e3;
  double tick = 1e-3;
  for (double t = tick; t < ms; t *= 10)
    for (const double f : {1.0, 2.0, 5.0})
      if (t * f <= ms / 8) tick = t * f;
  for (double t = 0; t <= ms; t += tick)
    body += label(kLeft + t * 1e-3 * scale, y + 15, str(number(t), " ms"));
  double x = kLeft;
  std::string legend;
  for (size_t k = 0; k < std::size(kColours); ++k) {
    legend += str("<rect x=\"", number(x), "\" y=\"26\" width=\"10\" height=\"10\" fill=\"",
                  kColours[k], "\"/>\n");
    legend += label(x + 14, 35, kind_name(static_cast<TimelineKind>(k)));
    x += 30 + 6.5 * static_cast<double>(std::strlen(kind_name(static_cast<TimelineKind>(k))));
  }
  return str("<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"1190\" height=\"", number(y + 24),
             "\" font-family=\"sans-serif\" font-size=\"11\">\n",
             "<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
             label(kLeft, 16, title, " font-size=\"13\""), legend, body, "</svg>\n");
}

}  // namespace rwkv
