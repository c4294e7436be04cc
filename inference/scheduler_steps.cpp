// Steps of decoding: draws, and who is told of them.

#include <algorithm>

#include "inference/scheduler_worker.h"
#include "kernels/core/trace.h"

namespace rwkv {
namespace {

constexpr size_t kKeptStates = 4;

}  // namespace

DrawRequest Scheduler::Worker::request_of(Sequence& s) const {
  return {.sampler = &s.sampler,
          .id = s.number,
          .vocab = vocab_,
          .top_log_probs = s.job->request.top_log_probs};
}

void Scheduler::Worker::decode() {
  const double start = now_seconds();
  // Those are told at once: what they keep is the state as it is then.
  if (std::ranges::any_of(told_, [](const Told& t) { return t.sequence->job->request.keep_state; }))
    tell();
  slots_.clear();
  ids_.clear();
  requests_.clear();
  stepped_.clear();
  for (const auto& s : decoding_) {
    if (s->last_token || s->ended) continue;
    slots_.push_back(s->slot);
    ids_.push_back(s->last);
    requests_.push_back(request_of(*s));
    stepped_.push_back(s.get());
  }
  if (stepped_.empty()) return tell();
  runner_.start_draws(slots_, ids_, requests_);
  const double started = now_seconds();
  tell_without_sweep();
  const double told = now_seconds();
  const std::span<Drawn> drawn = runner_.finish_draws();
  for (size_t i = 0; i < stepped_.size(); ++i) {
    ++stepped_[i]->fed;
    if (!stepped_[i]->ended) take(*stepped_[i], std::move(drawn[i]));
  }
  sweep();
  const double end = now_seconds();
  if (!runner_.draws_aside() || std::ranges::all_of(decoding_, &Sequence::last_token)) tell();
  ++live_.decode_steps;
  live_.decode_seconds += end - start;
  live_.tell_seconds += told - started + (now_seconds() - end);
  decode_seconds_ = now_seconds() - start;
}

void Scheduler::Worker::take(Sequence& s, Drawn d) {
  const GenerationRequest& r = s.job->request;
  if (d.error.empty()) {
    s.last = d.token;
    ++s.drawn;
  }
  s.last_token = !d.error.empty() || ends(r, d.token) || s.drawn == r.max_tokens;
  told_.push_back({&s, std::move(d)});
}

bool Scheduler::Worker::ends(const GenerationRequest& r, int32_t token) {
  return (token == kEndOfDocument && r.stop_at_end_of_document) ||
         std::ranges::binary_search(r.stop_tokens, token);
}

void Scheduler::Worker::tell() {
  tell_without_sweep();
  sweep();
}

void Scheduler::Worker::tell_without_sweep() {
  while (!told_.empty()) {
    Told t = std::move(told_.front());
    told_.pop_front();  // whatever happens next
    if (!t.sequence->ended) deliver(*t.sequence, std::move(t.drawn));
  }
}

void Scheduler::Worker::deliver(Sequence& s, Drawn d) {
  if (!d.error.empty()) return finish(s, GenerationEnd::kError, {.error = std::move(d.error)});
  const GenerationRequest& r = s.job->request;
  const double now = now_seconds();
  if (s.last_time > 0) live_.token.add(now - s.last_time);
  s.last_time = now;
  ++live_.generated_tokens;
  GenerationEvent event{.tokens = 1};
  if (ends(r, d.token)) return finish(s, GenerationEnd::kEnd, std::move(event));
  event.text = s.text.push(d.token);
  if (d.log_probs) event.log_probs.push_back(std::move(*d.log_probs));
  if (s.text.stopped()) return finish(s, GenerationEnd::kStop, std::move(event));
  if (s.drawn == r.max_tokens) return finish(s, GenerationEnd::kLength, std::move(event));
  event.sample = s.sample;
  s.job->handle->push(std::move(event));
}

void Scheduler::Worker::finish(Sequence& s, GenerationEnd end, GenerationEvent event) {
  if (s.job->request.keep_state && s.sample == 0) keep_state(s);  // first: it may fail
  event.sample = s.sample;
  event.text += s.text.finish();
  event.end = end;
  ++live_.ended[static_cast<size_t>(end)];
  s.ended = true;
  free_slots_.push_back(s.slot);
  publish();  // before anybody can ask
  s.job->handle->push(std::move(event));
  if (--s.job->samples_open == 0) close(*s.job);
}

void Scheduler::Worker::sweep() {
  std::erase_if(decoding_, [](const auto& s) { return s->ended; });
  std::erase_if(jobs_, [](const auto& j) { return j->samples_open == 0; });
}

void Scheduler::Worker::keep_state(const Sequence& s) {
  kept_.emplace_front(s.job->handle->id(), snapshot_of(s.slot, s.job->position + s.fed));
  if (kept_.size() > kKeptStates) kept_.pop_back();
}

StateSnapshot Scheduler::Worker::snapshot_of(int64_t slot, int64_t tokens) {
  StateSnapshot s{std::vector<std::byte>(runner_.state_bytes()), tokens};
  runner_.save(slot, s.bytes);
  return s;
}

std::optional<StateSnapshot> Scheduler::Worker::take_snapshot(uint64_t id) {
  for (const auto& [kept, s] : kept_)
    if (kept == id) return s;
  for (const auto& s : decoding_)
    if (s->job->handle->id() == id && s->sample == 0)
      return snapshot_of(s->slot, s->job->position + s->fed);
  for (const auto& j : prefilling_)
    if (j->handle->id() == id) return snapshot_of(j->slots[0], j->position);
  return std::nullopt;
}

}  // namespace rwkv
