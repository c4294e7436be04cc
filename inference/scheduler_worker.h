#pragma once
/// The thread behind a Scheduler, and all that it keeps. For inference/scheduler*.cpp alone:
/// scheduler.cpp takes requests in and ends them, scheduler_prompts.cpp computes prompts,
/// scheduler_steps.cpp decodes and tells.

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <limits>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "inference/prefix_cache.h"
#include "inference/scheduler.h"
#include "inference/scheduler_jobs.h"

namespace rwkv {

class Scheduler::Worker {
 public:
  Worker(SequenceRunner& runner, const Tokenizer& tokenizer, SchedulerOptions options);
  ~Worker();

  // As the Scheduler has them.
  std::shared_ptr<Generation> submit(GenerationRequest request);
  int64_t drain(double seconds);
  SchedulerStats stats() const;
  std::string failure() const;
  std::optional<StateSnapshot> snapshot(uint64_t id);

 private:
  using Job = SchedulerJob;
  using Sequence = SchedulerSequence;

  void check(const GenerationRequest& r) const;
  bool idle() const { return waiting_.empty() && prefilling_.empty() && decoding_.empty(); }
  void run();
  /// False when it is time to stop.
  bool round();
  /// Asked_ and dropped_ of the round, or of the one that failed.
  void run_commands();
  void end_dropped();
  bool unwanted(const Job& job, double now) const;
  GenerationEnd why_unwanted(const Job& job) const;
  void drop_unwanted();
  /// Ends a job whose samples do not decode yet.
  void end_job(Job& job, GenerationEnd end, const std::string& error = {});
  void close(const Job& job);
  void end_running(GenerationEnd end, const std::string& error);
  void fail(const std::string& what);
  void publish();

  // Prompts.
  using Place = std::list<std::unique_ptr<Job>>::iterator;  ///< in prefilling_
  /// What a call of the runner takes of a job's prompt: up to `end`, where it is cut or over, or
  /// less.
  struct Piece {
    Place place;
    size_t cut;
    int64_t end, tokens;
  };
  /// Leaves the job where it is, or takes it away when it is done with.
  void admit(std::unique_ptr<Job>& job);
  static std::span<const int32_t> prefix(const Job& job, int64_t end) {
    return std::span(job.request.prompt).first(static_cast<size_t>(end));
  }
  /// Up to the i-th cut, as the cache wants it.
  static PrefixCache::Prefix cut_prefix(const Job& job, size_t i) {
    return {job.keys[i], prefix(job, job.cuts.at(i)), job.cuts.path(i)};
  }
  static void aim(Job& job);
  /// Goes to the farthest state that the cache has on the job's way; whether there was one.
  bool use_cache(Job& job);
  /// By the prefix that jobs are on the way to: the oldest of them. The others wait: its state will
  /// be in the cache soon.
  std::unordered_map<uint64_t, uint64_t> leaders() const;
  Piece next_piece(Place place) const;
  /// Requests take turns: a short prompt does not wait for a long one.
  void prefill();
  /// One call of the runner: for the first job that need not wait, and for others whose pieces go
  /// with its, of at most `most` tokens in all but for the first. They go to the end of the list
  /// until their prompts are done. Returns the tokens.
  int64_t pieces(int64_t most);
  /// What pieces() chose.
  void compute_pieces();
  /// Kept at once: the first and the last shared cut (a system message, and the history of a chat
  /// that goes on) and what other jobs wait for. Others only when they come a second time.
  void keep_prefix(const Job& job, size_t cut);
  std::vector<std::unique_ptr<Sequence>> samples_of(Job& job);
  /// Of a job whose prompt is done, with their first tokens.
  void start_samples(Place place, std::span<std::unique_ptr<Sequence>> samples,
                     std::span<Drawn> drawn);

  // Steps.
  DrawRequest request_of(Sequence& s) const;
  /// One token for every sample that goes on. Where a device does the work, what the step before
  /// gave is told meanwhile.
  void decode();
  /// What the next step needs to know of a draw; the rest is told when there is time.
  void take(Sequence& s, Drawn d);
  static bool ends(const GenerationRequest& r, int32_t token);
  /// Hands out what was drawn.
  void tell();
  void tell_without_sweep();
  void deliver(Sequence& s, Drawn d);
  void finish(Sequence& s, GenerationEnd end, GenerationEvent event);
  /// Ended sequences, and jobs without any, leave.
  void sweep();
  void keep_state(const Sequence& s);
  StateSnapshot snapshot_of(int64_t slot, int64_t tokens);
  std::optional<StateSnapshot> take_snapshot(uint64_t id);

  SequenceRunner& runner_;
  const Tokenizer& tokenizer_;
  const SchedulerOptions options_;
  const int64_t vocab_;

  // The worker thread's own.
  PrefixCache cache_;
  uint64_t cache_version_ = 1;  ///< grows with every state kept
  std::vector<int64_t> free_slots_;
  // Out of commands_ and waiting_. Members, so that nothing is lost when the runner fails halfway.
  std::deque<std::function<void()>> asked_;
  std::deque<std::unique_ptr<Job>> dropped_;   ///< unwanted
  std::deque<std::unique_ptr<Job>> incoming_;  ///< on the way to prefilling_
  std::list<std::unique_ptr<Job>> prefilling_;
  std::vector<std::unique_ptr<Job>> jobs_;  ///< those of decoding_
  std::vector<std::unique_ptr<Sequence>> decoding_;
  std::list<std::pair<uint64_t, StateSnapshot>> kept_;
  std::vector<std::byte> state_;
  double decode_seconds_ = 0;  ///< that the last step of decoding took
  uint64_t samplers_ = 0;      ///< made so far
  std::vector<int64_t> slots_;
  std::vector<int32_t> ids_;
  std::vector<std::span<const int32_t>> piece_ids_;
  std::vector<Piece> pieces_;
  std::vector<DrawRequest> requests_;
  std::vector<Sequence*> stepped_;
  std::deque<Told> told_;  ///< taken out one by one: nothing is told twice
  std::vector<DrawScratch> scratch_;
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

}  // namespace rwkv
