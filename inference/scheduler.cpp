#include "inference/scheduler.h"

#include <algorithm>
#include <cmath>
#include <condition_variable>
#include <deque>
#include <functional>
#include <future>
#include <list>
#include <mutex>
#include <thread>

#include "inference/prefix_cache.h"
#include "inference/scheduler_jobs.h"
#include "kernels/core/trace.h"

namespace rwkv {
namespace {

constexpr size_t kKeptStates = 4;
/// A running mean of requests' durations: the weight of the newest.
constexpr double kNewest = 0.1;

}  // namespace

class Scheduler::Worker {
 public:
  Worker(SequenceRunner& runner, const Tokenizer& tokenizer, SchedulerOptions options)
      : runner_(runner),
        tokenizer_(tokenizer),
        options_(options),
        vocab_(std::min<int64_t>(tokenizer.vocab_size(), runner.config().vocab_size)),
        cache_(options.cache_bytes) {
    RWKV_CHECK(options.max_waiting >= 0 && options.prefill_budget >= 0 && options.cut_tokens >= 1,
               ConfigError, "scheduler: max_waiting ", options.max_waiting, ", prefill_budget ",
               options.prefill_budget, " and cut_tokens ", options.cut_tokens,
               ", expected at least 0, 0 and 1");
    for (int64_t s = runner.slots(); s-- > 0;) free_slots_.push_back(s);
    state_.resize(runner.state_bytes());
    live_.slots = runner.slots();
    publish();
    thread_ = std::thread([this] { run(); });
  }

  ~Worker() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
    thread_.join();
  }

  std::shared_ptr<Generation> submit(GenerationRequest request) {
    check(request);
    const std::lock_guard lock(mutex_);
    if (!failure_.empty()) throw UnavailableError(failure_);
    if (draining_) throw UnavailableError("the server is shutting down; it takes no new requests");
    if (std::ssize(waiting_) >= options_.max_waiting) {
      ++refused_;
      const double seconds = mean_seconds_ * static_cast<double>(waiting_.size() + 1) /
                             static_cast<double>(runner_.slots());
      throw OverloadedError(
          str(waiting_.size(), " requests are waiting already, the limit; ask ", "again later"),
          std::clamp<int64_t>(std::llround(std::ceil(seconds)), 1, 60));
    }
    auto job = std::make_unique<Job>();
    job->handle = std::shared_ptr<Generation>(
        new Generation(next_id_++, static_cast<int64_t>(request.prompt.size())));
    job->request = std::move(request);
    job->submitted = now_seconds();
    const auto handle = job->handle;
    waiting_.push_back(std::move(job));
    ++accepted_;
    ++open_;
    wake_.notify_all();
    return handle;
  }

  int64_t drain(double seconds) {
    std::unique_lock lock(mutex_);
    draining_ = true;
    const auto all_ended = [&] { return open_ == 0; };
    if (ended_.wait_for(lock, std::chrono::duration<double>(seconds), all_ended)) return 0;
    const uint64_t before = published_.ended[static_cast<size_t>(GenerationEnd::kCancelled)];
    cancel_all_ = true;
    wake_.notify_all();
    ended_.wait(lock, all_ended);
    return static_cast<int64_t>(published_.ended[static_cast<size_t>(GenerationEnd::kCancelled)] -
                                before);
  }

  SchedulerStats stats() const {
    const std::lock_guard lock(mutex_);
    SchedulerStats s = published_;
    s.waiting = std::ssize(waiting_);
    s.accepted = accepted_;
    s.refused = refused_;
    return s;
  }

  std::string failure() const {
    const std::lock_guard lock(mutex_);
    return failure_;
  }

  std::optional<StateSnapshot> snapshot(uint64_t id) {
    auto answer = std::make_shared<std::promise<std::optional<StateSnapshot>>>();
    auto result = answer->get_future();
    {
      const std::lock_guard lock(mutex_);
      if (stopping_) return std::nullopt;
      commands_.push_back([this, id, answer] {
        try {
          answer->set_value(take_snapshot(id));
        } catch (...) {
          answer->set_exception(std::current_exception());
        }
      });
    }
    wake_.notify_all();
    return result.get();
  }

 private:
  using Job = SchedulerJob;
  using Sequence = SchedulerSequence;

  void check(const GenerationRequest& r) const {
    r.sampling.check();
    const int64_t v = runner_.config().vocab_size;
    RWKV_CHECK(!r.prompt.empty(), ConfigError, "the prompt is empty");
    for (const int32_t id : r.prompt)
      RWKV_CHECK(id >= 0 && id < v, ConfigError, "token id ", id,
                 " of the prompt is outside of the model's vocabulary, 0 to ", v - 1);
    RWKV_CHECK(r.samples >= 1 && r.samples <= runner_.slots(), ConfigError, "n is ", r.samples,
               ", expected 1 to ", runner_.slots());
    RWKV_CHECK(r.max_tokens >= 0, ConfigError, "max_tokens is ", r.max_tokens,
               ", expected at least 0");
    const StopFinder stops(r.stop);
  }

  bool idle() const { return waiting_.empty() && prefilling_.empty() && decoding_.empty(); }

  void run() {
    try {
      while (round()) {
      }
    } catch (const std::exception& e) {
      fail(e.what());
    }
    // Requests that came in while the runner failed, and those that a stop leaves.
    std::unique_lock lock(mutex_);
    while (true) {
      auto waiting = std::exchange(waiting_, {});
      auto commands = std::exchange(commands_, {});
      lock.unlock();
      const std::string why = failure();
      const GenerationEnd end = why.empty() ? GenerationEnd::kCancelled : GenerationEnd::kError;
      for (auto& job : waiting) end_job(*job, end, why);
      end_running(end, why);
      for (auto& command : commands) command();
      lock.lock();
      if (stopping_ && waiting_.empty() && commands_.empty()) return;
      wake_.wait(lock, [&] { return stopping_ || !waiting_.empty() || !commands_.empty(); });
    }
  }

  /// False when it is time to stop.
  bool round() {
    std::deque<std::function<void()>> commands;
    std::vector<std::unique_ptr<Job>> dropped;
    {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [&] { return stopping_ || !idle() || !commands_.empty(); });
      if (stopping_) return false;
      commands.swap(commands_);
      const double now = now_seconds();
      for (auto it = waiting_.begin(); it != waiting_.end();) {
        if (unwanted(**it, now)) {
          dropped.push_back(std::move(*it));
          it = waiting_.erase(it);
        } else {
          ++it;
        }
      }
      size_t free = free_slots_.size();
      while (!waiting_.empty() && static_cast<size_t>(waiting_.front()->request.samples) <= free) {
        free -= static_cast<size_t>(waiting_.front()->request.samples);
        incoming_.push_back(std::move(waiting_.front()));
        waiting_.pop_front();
      }
    }
    if (!commands.empty() || !dropped.empty() || !incoming_.empty() || !prefilling_.empty()) tell();
    for (auto& command : commands) command();
    for (auto& job : dropped) end_job(*job, why_unwanted(*job));
    for (; !incoming_.empty(); incoming_.pop_front()) admit(incoming_.front());
    drop_unwanted();
    if (!prefilling_.empty()) prefill();
    if (!decoding_.empty()) decode();
    publish();
    return true;
  }

  bool unwanted(const Job& job, double now) const {
    return job.handle->cancelled() || cancel_all_ ||
           (job.request.deadline > 0 && now > job.request.deadline);
  }
  GenerationEnd why_unwanted(const Job& job) const {
    return job.handle->cancelled() || cancel_all_ ? GenerationEnd::kCancelled
                                                  : GenerationEnd::kDeadline;
  }

  void drop_unwanted() {
    const double now = now_seconds();
    for (auto it = prefilling_.begin(); it != prefilling_.end();) {
      if (unwanted(**it, now)) {
        end_job(**it, why_unwanted(**it));
        it = prefilling_.erase(it);
      } else {
        ++it;
      }
    }
    // Asked once: clients cancel at any time, and what has been drawn is told before a sequence
    // ends.
    std::vector<Sequence*> ending;
    for (auto& s : decoding_)
      if (unwanted(*s->job, now)) ending.push_back(s.get());
    if (!ending.empty()) tell_without_sweep();
    for (Sequence* s : ending)
      if (!s->ended) finish(*s, why_unwanted(*s->job), {});
    sweep();
  }

  /// Leaves the job where it is, or takes it away when it is done with.
  void admit(std::unique_ptr<Job>& job) {
    const GenerationRequest& r = job->request;
    job->admitted = now_seconds();
    for (int64_t i = 0; i < r.samples; ++i) {
      job->slots.push_back(free_slots_.back());
      free_slots_.pop_back();
    }
    live_.prompt_tokens += r.prompt.size();
    if (r.max_tokens == 0) return end_job(*job, GenerationEnd::kLength);
    job->cuts = PromptCuts(std::ssize(r.prompt), r.shared, options_.cut_tokens);
    runner_.reset(job->slots[0]);
    aim(*job);
    prefilling_.push_back(std::move(job));
  }

  static std::span<const int32_t> prefix(const Job& job, int64_t end) {
    return std::span(job.request.prompt).first(static_cast<size_t>(end));
  }
  static void aim(Job& job) {
    const size_t i = job.cuts.next(job.position);
    job.next_key =
        i == job.cuts.size() ? 0 : PrefixCache::key(prefix(job, job.cuts.at(i)), job.cuts.path(i));
  }

  /// Goes to the farthest state that the cache has on the job's way.
  void use_cache(Job& job) {
    if (job.cache_version == cache_version_) return;
    job.cache_version = cache_version_;
    for (size_t i = job.cuts.size(); i-- > job.cuts.next(job.position);) {
      const int64_t at = job.cuts.at(i);
      const auto state = cache_.find(prefix(job, at), job.cuts.path(i));
      if (state.empty()) continue;
      runner_.load(job.slots[0], state);
      job.handle->cached_tokens_ += at - job.position;
      live_.cached_tokens += static_cast<uint64_t>(at - job.position);
      job.position = at;
      aim(job);
      return;
    }
  }

  /// An older job is on the way to the same prefix: its state will be in the cache soon.
  bool follows(const Job& job) const {
    return options_.cache_bytes > 0 && job.next_key != 0 &&
           std::ranges::any_of(prefilling_, [&](const auto& other) {
             return other->next_key == job.next_key && other->handle->id() < job.handle->id();
           });
  }

  /// Requests take turns by the piece: a short prompt does not wait for a long one.
  void prefill() {
    const double start = now_seconds();
    int64_t used = 0;
    do {
      const auto next =
          std::ranges::find_if(prefilling_, [&](const auto& job) { return !follows(*job); });
      prefilling_.splice(prefilling_.end(), prefilling_, next);
      used += piece();
    } while (!prefilling_.empty() && !decoding_.empty() &&
             (options_.prefill_budget > 0 ? used < options_.prefill_budget
                                          : now_seconds() - start < decode_seconds_));
    live_.prefill_seconds += now_seconds() - start;
  }

  /// Of the last job; it stays in the list until its prompt is done.
  int64_t piece() {
    Job& job = *prefilling_.back();
    use_cache(job);
    const auto n = std::ssize(job.request.prompt);
    const size_t cut = job.cuts.next(job.position);
    const int64_t end = cut == job.cuts.size() ? n : job.cuts.at(cut);
    const int64_t take = runner_.prefill_piece(end - job.position);
    const auto ids = std::span(job.request.prompt)
                         .subspan(static_cast<size_t>(job.position), static_cast<size_t>(take));
    const TensorView logits = runner_.prefill(job.slots[0], ids);
    job.position += take;
    ++live_.prefill_pieces;
    if (job.position == n) {
      start_samples({logits.f32(), static_cast<size_t>(logits.last())});
    } else if (job.position == end) {
      keep_prefix(job, cut);
      aim(job);
    }
    return take;
  }

  /// Kept at once: the first and the last shared cut (a system message, and the history of a chat
  /// that goes on) and what other jobs wait for. Others only when they come a second time.
  void keep_prefix(const Job& job, size_t cut) {
    if (options_.cache_bytes == 0) return;
    const bool awaited = std::ranges::any_of(prefilling_, [&](const auto& other) {
      return other.get() != &job && other->next_key == job.next_key;
    });
    const auto ids = prefix(job, job.cuts.at(cut));
    const auto path = job.cuts.path(cut);
    if (!cache_.seen_before(ids, path) && !job.cuts.outermost(cut) && !awaited) return;
    runner_.save(job.slots[0], state_);
    cache_.put(ids, path, state_);
    ++cache_version_;
  }

  /// Of the last job of prefilling_.
  void start_samples(std::span<const float> logits) {
    jobs_.push_back(std::move(prefilling_.back()));
    prefilling_.pop_back();
    Job& j = *jobs_.back();
    j.samples_open = j.request.samples;
    live_.first_token.add(now_seconds() - j.submitted);
    const size_t first = decoding_.size();
    for (int64_t i = 0; i < j.request.samples; ++i)
      decoding_.push_back(std::make_unique<Sequence>(
          Sequence{&j, i, j.slots[static_cast<size_t>(i)],
                   TokenSampler(j.request.sampling, static_cast<uint64_t>(i)),
                   TextStream(tokenizer_, j.request.stop), ++samplers_}));
    for (size_t i = first; i < decoding_.size(); ++i) {
      if (i > first) runner_.copy(decoding_[i]->slot, j.slots[0]);
      decoding_[i]->sampler.see(j.request.prompt);
    }
    // The logits are the runner's until its next call, and nothing is called before all are drawn.
    for (size_t i = first; i < decoding_.size(); ++i) {
      Sequence& s = *decoding_[i];
      take(s, draw(request_of(s), logits, scratch_));
    }
    tell();
  }

  DrawRequest request_of(Sequence& s) const {
    return {.sampler = &s.sampler,
            .id = s.number,
            .vocab = vocab_,
            .top_log_probs = s.job->request.top_log_probs};
  }

  /// One token for every sample that goes on. Where a device does the work, what the step before
  /// gave is told meanwhile.
  void decode() {
    const double start = now_seconds();
    // Those are told at once: what they keep is the state as it is then.
    if (std::ranges::any_of(told_,
                            [](const Told& t) { return t.sequence->job->request.keep_state; }))
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
    for (size_t i = 0; i < stepped_.size(); ++i)
      if (!stepped_[i]->ended) take(*stepped_[i], std::move(drawn[i]));
    sweep();
    const double end = now_seconds();
    if (!runner_.draws_aside() || std::ranges::all_of(decoding_, &Sequence::last_token)) tell();
    ++live_.decode_steps;
    live_.decode_seconds += end - start;
    live_.tell_seconds += told - started + (now_seconds() - end);
    decode_seconds_ = now_seconds() - start;
  }

  /// What the next step needs to know of a draw; the rest is told when there is time.
  void take(Sequence& s, Drawn d) {
    const GenerationRequest& r = s.job->request;
    if (d.error.empty()) {
      s.last = d.token;
      ++s.drawn;
    }
    s.last_token = !d.error.empty() || ends(r, d.token) || s.drawn == r.max_tokens;
    told_.push_back({&s, std::move(d)});
  }
  static bool ends(const GenerationRequest& r, int32_t token) {
    return (token == kEndOfDocument && r.stop_at_end_of_document) ||
           std::ranges::find(r.stop_tokens, token) != r.stop_tokens.end();
  }

  /// Hands out what was drawn.
  void tell() {
    tell_without_sweep();
    sweep();
  }
  void tell_without_sweep() {
    for (Told& t : told_)
      if (!t.sequence->ended) deliver(*t.sequence, std::move(t.drawn));
    told_.clear();
  }
  void deliver(Sequence& s, Drawn d) {
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

  void finish(Sequence& s, GenerationEnd end, GenerationEvent event) {
    event.sample = s.sample;
    event.text += s.text.finish();
    event.end = end;
    ++live_.ended[static_cast<size_t>(end)];
    if (s.job->request.keep_state && s.sample == 0) keep_state(s);
    s.ended = true;
    free_slots_.push_back(s.slot);
    publish();  // before anybody can ask
    s.job->handle->push(std::move(event));
    if (--s.job->samples_open == 0) close(*s.job);
  }

  /// Ended sequences, and jobs without any, leave.
  void sweep() {
    std::erase_if(decoding_, [](const auto& s) { return s->ended; });
    std::erase_if(jobs_, [](const auto& j) { return j->samples_open == 0; });
  }

  /// Ends a job whose samples do not decode yet.
  void end_job(Job& job, GenerationEnd end, const std::string& error = {}) {
    for (const int64_t slot : job.slots) free_slots_.push_back(slot);
    for (int64_t i = 0; i < job.request.samples; ++i) {
      ++live_.ended[static_cast<size_t>(end)];
      job.handle->push({.sample = i, .end = end, .error = error});
    }
    close(job);
  }

  void close(const Job& job) {
    const double now = now_seconds();
    live_.whole.add(now - job.submitted);
    publish();
    const std::lock_guard lock(mutex_);
    if (job.admitted > 0) mean_seconds_ += kNewest * (now - job.admitted - mean_seconds_);
    --open_;
    ended_.notify_all();
  }

  void end_running(GenerationEnd end, const std::string& error) {
    for (auto& job : incoming_)
      if (job) end_job(*job, end, error);
    incoming_.clear();
    for (auto& job : prefilling_) end_job(*job, end, error);
    prefilling_.clear();
    // Nothing is asked of the runner, which may be what failed.
    for (auto& s : decoding_) s->job->request.keep_state = false;
    tell_without_sweep();
    for (auto& s : decoding_)
      if (!s->ended) finish(*s, end, {.error = error});
    sweep();
  }

  void fail(const std::string& what) {
    {
      const std::lock_guard lock(mutex_);
      failure_ = str("the model failed: ", what);
    }
    end_running(GenerationEnd::kError, what);
    publish();
  }

  void keep_state(const Sequence& s) {
    kept_.emplace_front(s.job->handle->id(), snapshot_of(s.slot, s.job->position + s.drawn - 1));
    if (kept_.size() > kKeptStates) kept_.pop_back();
  }
  StateSnapshot snapshot_of(int64_t slot, int64_t tokens) {
    StateSnapshot s{std::vector<std::byte>(runner_.state_bytes()), tokens};
    runner_.save(slot, s.bytes);
    return s;
  }
  std::optional<StateSnapshot> take_snapshot(uint64_t id) {
    for (const auto& [kept, s] : kept_)
      if (kept == id) return s;
    for (const auto& s : decoding_)
      if (s->job->handle->id() == id && s->sample == 0)
        return snapshot_of(s->slot, s->job->position + s->drawn - 1);
    for (const auto& j : prefilling_)
      if (j->handle->id() == id) return snapshot_of(j->slots[0], j->position);
    return std::nullopt;
  }

  void publish() {
    live_.prefilling = std::ssize(prefilling_);
    live_.decoding = std::ssize(decoding_);
    live_.free_slots = std::ssize(free_slots_);
    live_.cache_entries = cache_.entries();
    live_.cache_bytes = cache_.bytes();
    live_.cache_evictions = cache_.evictions();
    const std::lock_guard lock(mutex_);
    published_ = live_;
  }

  SequenceRunner& runner_;
  const Tokenizer& tokenizer_;
  const SchedulerOptions options_;
  const int64_t vocab_;

  // The worker thread's own.
  PrefixCache cache_;
  uint64_t cache_version_ = 1;  ///< grows with every state kept
  std::vector<int64_t> free_slots_;
  std::deque<std::unique_ptr<Job>> incoming_;  ///< out of waiting_, on the way to prefilling_
  std::list<std::unique_ptr<Job>> prefilling_;
  std::vector<std::unique_ptr<Job>> jobs_;  ///< those of decoding_
  std::vector<std::unique_ptr<Sequence>> decoding_;
  std::list<std::pair<uint64_t, StateSnapshot>> kept_;
  std::vector<std::byte> state_;
  double decode_seconds_ = 0;  ///< that the last step of decoding took
  uint64_t samplers_ = 0;      ///< made so far
  std::vector<int64_t> slots_;
  std::vector<int32_t> ids_;
  std::vector<DrawRequest> requests_;
  std::vector<Sequence*> stepped_;
  std::vector<Told> told_;
  DrawScratch scratch_;
  SchedulerStats live_;

  // Shared, under the mutex.
  mutable std::mutex mutex_;
  std::condition_variable wake_, ended_;
  std::deque<std::unique_ptr<Job>> waiting_;
  std::deque<std::function<void()>> commands_;
  SchedulerStats published_;
  std::string failure_;
  double mean_seconds_ = 1;  ///< that a request has slots
  uint64_t next_id_ = 1, refused_ = 0, accepted_ = 0;
  int64_t open_ = 0;  ///< requests submitted and not ended
  bool draining_ = false, stopping_ = false;
  std::atomic<bool> cancel_all_ = false;

  std::thread thread_;  ///< last: it uses all of the above
};

Scheduler::Scheduler(SequenceRunner& runner, const Tokenizer& tokenizer, SchedulerOptions options)
    : worker_(std::make_unique<Worker>(runner, tokenizer, options)) {}
Scheduler::~Scheduler() = default;
std::shared_ptr<Generation> Scheduler::submit(GenerationRequest request) {
  return worker_->submit(std::move(request));
}
int64_t Scheduler::drain(double seconds) {
  return worker_->drain(seconds);
}
SchedulerStats Scheduler::stats() const {
  return worker_->stats();
}
std::string Scheduler::failure() const {
  return worker_->failure();
}
std::optional<StateSnapshot> Scheduler::snapshot(uint64_t id) {
  return worker_->snapshot(id);
}

}  // namespace rwkv
