// Prompts: where they are cut, what the cache knows of them, whose turn it is.

#include <algorithm>

#include "inference/scheduler_worker.h"
#include "kernels/core/trace.h"

namespace rwkv {

void Scheduler::Worker::admit(std::unique_ptr<Job>& job) {
  const GenerationRequest& r = job->request;
  job->admitted = now_seconds();
  for (int64_t i = 0; i < r.samples; ++i) {
    job->slots.push_back(free_slots_.back());
    free_slots_.pop_back();
  }
  live_.prompt_tokens += r.prompt.size();
  if (r.max_tokens == 0) return end_job(*job, GenerationEnd::kLength);
  job->cuts = PromptCuts(std::ssize(r.prompt), r.shared, options_.cut_tokens);
  if (options_.cache_bytes > 0) job->keys = PrefixCache::keys(r.prompt, job->cuts.all());
  runner_.reset(job->slots[0]);
  aim(*job);
  prefilling_.push_back(std::move(job));
}

void Scheduler::Worker::aim(Job& job) {
  const size_t i = job.cuts.next(job.position);
  job.next_key = i < job.keys.size() ? job.keys[i] : 0;
}

bool Scheduler::Worker::use_cache(Job& job) {
  if (job.keys.empty() || job.cache_version == cache_version_) return false;
  job.cache_version = cache_version_;
  for (size_t i = job.cuts.size(); i-- > job.cuts.next(job.position);) {
    const int64_t at = job.cuts.at(i);
    const auto state = cache_.find(cut_prefix(job, i));
    if (state.empty()) continue;
    runner_.load(job.slots[0], state);
    job.handle->cached_tokens_ += at - job.position;
    live_.cached_tokens += static_cast<uint64_t>(at - job.position);
    job.position = at;
    aim(job);
    return true;
  }
  return false;
}

std::unordered_map<uint64_t, uint64_t> Scheduler::Worker::leaders() const {
  std::unordered_map<uint64_t, uint64_t> oldest;
  if (options_.cache_bytes == 0) return oldest;
  for (const auto& job : prefilling_) {
    if (job->next_key == 0) continue;
    const auto [at, first] = oldest.emplace(job->next_key, job->handle->id());
    if (!first) at->second = std::min(at->second, job->handle->id());
  }
  return oldest;
}

Scheduler::Worker::Piece Scheduler::Worker::next_piece(Place place) const {
  const Job& job = **place;
  const size_t cut = job.cuts.next(job.position);
  const int64_t end = cut == job.cuts.size() ? std::ssize(job.request.prompt) : job.cuts.at(cut);
  return {place, cut, end, runner_.prefill_piece(end - job.position)};
}

void Scheduler::Worker::prefill() {
  const double start = now_seconds();
  const int64_t budget = options_.prefill_budget;
  int64_t used = 0;
  do {
    used += pieces(budget > 0 && !decoding_.empty() ? budget - used
                                                    : std::numeric_limits<int64_t>::max());
  } while (!prefilling_.empty() && !decoding_.empty() &&
           (budget > 0 ? used < budget : now_seconds() - start < decode_seconds_));
  live_.prefill_seconds += now_seconds() - start;
}

int64_t Scheduler::Worker::pieces(int64_t most) {
  const auto oldest = leaders();
  pieces_.clear();
  slots_.clear();
  piece_ids_.clear();
  SequenceRunner::PrefillGroup group;
  int64_t tokens = 0, loads = 0;
  for (Place place = prefilling_.begin(); place != prefilling_.end(); ++place) {
    Job& job = **place;
    const auto leader = oldest.find(job.next_key);
    if (leader != oldest.end() && leader->second < job.handle->id()) continue;
    loads += use_cache(job) ? 1 : 0;
    const Piece piece = next_piece(place);
    const SequenceRunner::PrefillGroup own = runner_.prefill_group(piece.tokens);
    if (pieces_.empty()) group = own;
    if (own.group == group.group && (pieces_.empty() || tokens + piece.tokens <= most)) {
      tokens += piece.tokens;
      pieces_.push_back(piece);
      slots_.push_back(job.slots[0]);
      piece_ids_.push_back(
          prefix(job, job.position + piece.tokens).subspan(static_cast<size_t>(job.position)));
    }
    // States that are loaded take time, too.
    if (std::ssize(pieces_) >= group.batch || tokens >= most || loads >= group.batch) break;
  }
  for (const Piece& p : pieces_) prefilling_.splice(prefilling_.end(), prefilling_, p.place);

  compute_pieces();
  return tokens;
}

void Scheduler::Worker::compute_pieces() {
  // The samples of prompts that end here, and what draws their first tokens.
  std::vector<std::vector<std::unique_ptr<Sequence>>> samples(pieces_.size());
  std::vector<DrawRequest> firsts(pieces_.size());
  bool one_each = true;
  for (size_t i = 0; i < pieces_.size(); ++i) {
    Job& job = **pieces_[i].place;
    if (job.position + pieces_[i].tokens < std::ssize(job.request.prompt)) continue;
    samples[i] = samples_of(job);
    firsts[i] = request_of(*samples[i][0]);
    one_each &= samples[i].size() == 1;
  }
  std::vector<Drawn> drawn;
  if (one_each) {
    runner_.start_prefill_draws(slots_, piece_ids_, firsts);
    const std::span<Drawn> by_piece = runner_.finish_draws();
    for (size_t i = 0; i < pieces_.size(); ++i)
      if (!samples[i].empty()) drawn.push_back(std::move(by_piece[i]));
  } else {  // several draws from the same logits
    const TensorView logits = runner_.prefill_batch(slots_, piece_ids_);
    const auto row = static_cast<size_t>(logits.last());
    std::vector<std::span<const float>> rows;
    requests_.clear();
    for (size_t i = 0; i < pieces_.size(); ++i)
      for (const auto& s : samples[i]) {
        rows.emplace_back(logits.f32() + i * row, row);
        requests_.push_back(request_of(*s));
      }
    drawn.resize(rows.size());
    draw_all(requests_, rows, drawn, scratch_);
  }
  ++live_.prefill_calls;
  live_.prefill_pieces += pieces_.size();

  const double now = now_seconds();
  auto next = drawn.begin();
  for (size_t i = 0; i < pieces_.size(); ++i) {
    const Piece& p = pieces_[i];
    Job& job = **p.place;
    job.position += p.tokens;
    if (!samples[i].empty()) {
      live_.first_token.add(now - job.submitted);
      start_samples(p.place, samples[i], {next, samples[i].size()});
      next += std::ssize(samples[i]);
    } else if (job.position == p.end) {
      keep_prefix(job, p.cut);
      aim(job);
    }
  }
  tell();
}

std::vector<std::unique_ptr<SchedulerSequence>> Scheduler::Worker::samples_of(Job& job) {
  std::vector<std::unique_ptr<Sequence>> samples;
  for (int64_t i = 0; i < job.request.samples; ++i) {
    samples.push_back(std::make_unique<Sequence>(
        Sequence{&job, i, job.slots[static_cast<size_t>(i)],
                 TokenSampler(job.request.sampling, static_cast<uint64_t>(i)),
                 TextStream(tokenizer_, job.request.stop), ++samplers_}));
    samples.back()->sampler.see(job.request.prompt);
  }
  return samples;
}

void Scheduler::Worker::keep_prefix(const Job& job, size_t cut) {
  if (options_.cache_bytes == 0) return;
  const bool awaited = std::ranges::any_of(prefilling_, [&](const auto& other) {
    return other.get() != &job && other->next_key == job.next_key;
  });
  const PrefixCache::Prefix here = cut_prefix(job, cut);
  if (!cache_.seen_before(here) && !job.cuts.outermost(cut) && !awaited) return;
  runner_.save(job.slots[0], state_);
  if (cache_.put(here, state_)) ++cache_version_;
}

void Scheduler::Worker::start_samples(Place place, std::span<std::unique_ptr<Sequence>> samples,
                                      std::span<Drawn> drawn) {
  jobs_.push_back(std::move(*place));
  prefilling_.erase(place);
  Job& job = *jobs_.back();
  job.samples_open = job.request.samples;
  for (size_t i = 0; i < samples.size(); ++i) {
    decoding_.push_back(std::move(samples[i]));
    take(*decoding_.back(), std::move(drawn[i]));
  }
  for (const int64_t slot : std::span(job.slots).subspan(1)) runner_.copy(slot, job.slots[0]);
}

}  // namespace rwkv
