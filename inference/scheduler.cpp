#include "inference/scheduler.h"

#include <algorithm>
#include <cmath>
#include <future>

#include "inference/scheduler_worker.h"
#include "kernels/core/trace.h"

namespace rwkv {
namespace {

/// A running mean of requests' durations: the weight of the newest.
constexpr double kNewest = 0.1;

}  // namespace

Scheduler::Worker::Worker(SequenceRunner& runner, const Tokenizer& tokenizer,
                          SchedulerOptions options)
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

Scheduler::Worker::~Worker() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  thread_.join();
}

std::shared_ptr<Generation> Scheduler::Worker::submit(GenerationRequest request) {
  check(request);
  std::ranges::sort(request.stop_tokens);  // looked up for every token
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

int64_t Scheduler::Worker::drain(double seconds) {
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

SchedulerStats Scheduler::Worker::stats() const {
  const std::lock_guard lock(mutex_);
  SchedulerStats s = published_;
  s.waiting = std::ssize(waiting_);
  s.accepted = accepted_;
  s.refused = refused_;
  return s;
}

std::string Scheduler::Worker::failure() const {
  const std::lock_guard lock(mutex_);
  return failure_;
}

std::optional<StateSnapshot> Scheduler::Worker::snapshot(uint64_t id) {
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

void Scheduler::Worker::check(const GenerationRequest& r) const {
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

void Scheduler::Worker::run() {
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
    run_commands();  // those of a round that failed
    asked_.swap(commands);
    run_commands();
    lock.lock();
    if (stopping_ && waiting_.empty() && commands_.empty()) return;
    wake_.wait(lock, [&] { return stopping_ || !waiting_.empty() || !commands_.empty(); });
  }
}

bool Scheduler::Worker::round() {
  {
    std::unique_lock lock(mutex_);
    wake_.wait(lock, [&] { return stopping_ || !idle() || !commands_.empty(); });
    if (stopping_) return false;
    asked_.swap(commands_);
    const double now = now_seconds();
    for (auto it = waiting_.begin(); it != waiting_.end();) {
      if (unwanted(**it, now)) {
        dropped_.push_back(std::move(*it));
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
  if (!asked_.empty() || !dropped_.empty() || !incoming_.empty() || !prefilling_.empty()) tell();
  run_commands();
  end_dropped();
  for (; !incoming_.empty(); incoming_.pop_front()) admit(incoming_.front());
  drop_unwanted();
  if (!prefilling_.empty()) prefill();
  if (!decoding_.empty()) decode();
  publish();
  return true;
}

void Scheduler::Worker::run_commands() {
  for (; !asked_.empty(); asked_.pop_front()) asked_.front()();
}

void Scheduler::Worker::end_dropped() {
  for (; !dropped_.empty(); dropped_.pop_front())
    end_job(*dropped_.front(), why_unwanted(*dropped_.front()));
}

bool Scheduler::Worker::unwanted(const Job& job, double now) const {
  return job.handle->cancelled() || cancel_all_ ||
         (job.request.deadline > 0 && now > job.request.deadline);
}

GenerationEnd Scheduler::Worker::why_unwanted(const Job& job) const {
  return job.handle->cancelled() || cancel_all_ ? GenerationEnd::kCancelled
                                                : GenerationEnd::kDeadline;
}

void Scheduler::Worker::drop_unwanted() {
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

void Scheduler::Worker::end_job(Job& job, GenerationEnd end, const std::string& error) {
  for (const int64_t slot : job.slots) free_slots_.push_back(slot);
  for (int64_t i = 0; i < job.request.samples; ++i) {
    ++live_.ended[static_cast<size_t>(end)];
    job.handle->push({.sample = i, .end = end, .error = error});
  }
  close(job);
}

void Scheduler::Worker::close(const Job& job) {
  const double now = now_seconds();
  live_.whole.add(now - job.submitted);
  publish();
  const std::lock_guard lock(mutex_);
  if (job.admitted > 0) mean_seconds_ += kNewest * (now - job.admitted - mean_seconds_);
  --open_;
  ended_.notify_all();
}

void Scheduler::Worker::end_running(GenerationEnd end, const std::string& error) {
  end_dropped();
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

void Scheduler::Worker::fail(const std::string& what) {
  {
    const std::lock_guard lock(mutex_);
    failure_ = str("the model failed: ", what);
  }
  end_running(GenerationEnd::kError, what);
  publish();
}

void Scheduler::Worker::publish() {
  live_.prefilling = std::ssize(prefilling_);
  live_.decoding = std::ssize(decoding_);
  live_.free_slots = std::ssize(free_slots_);
  live_.cache_entries = cache_.entries();
  live_.cache_bytes = cache_.bytes();
  live_.cache_evictions = cache_.evictions();
  const std::lock_guard lock(mutex_);
  published_ = live_;
}

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
