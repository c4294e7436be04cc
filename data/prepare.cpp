#include "data/prepare.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <deque>
#include <filesystem>
#include <mutex>
#include <nlohmann/json.hpp>
#include <system_error>
#include <thread>

#include "data/dataset.h"
#include "data/io/atomic_file.h"
#include "kernels/core/error.h"
#include "kernels/core/parallel.h"
#include "kernels/core/trace.h"

namespace rwkv {
namespace {

/// A work item with its result. `state` is guarded by the pipeline's mutex; the rest belongs to the
/// thread that the state names.
struct Job {
  enum { kWaiting, kRunning, kDone } state = kWaiting;
  WorkItem item;
  std::vector<int32_t> ids;
  std::vector<size_t> document_ends;   ///< positions in ids
  std::vector<std::string> bad_lines;  ///< "FILE:LINE: reason"
  std::exception_ptr error;
};

void tokenise(Job& job, const PrepareOptions& options, const Tokenizer& tokenizer) {
  const auto end_document = [&] {
    if (options.end_of_document) job.ids.push_back(kEndOfDocument);
    job.document_ends.push_back(job.ids.size());
  };
  const std::string_view raw = job.item.raw;
  if (job.item.format == TextFormat::kText) {
    for (const auto& s : job.item.segments) {
      tokenizer.encode_to(raw.substr(s.begin, s.end - s.begin), job.ids);
      if (s.ends_document) end_document();
    }
    return;
  }
  int64_t line_number = job.item.first_line;
  for (size_t at = 0; at < raw.size(); ++line_number) {
    const size_t end = std::min(raw.find('\n', at), raw.size());
    const std::string_view line = raw.substr(at, end - at);
    at = end + 1;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    try {
      tokenizer.encode_to(text_of_json_line(line, options.field), job.ids);
      end_document();
    } catch (const IoError& e) {
      job.bad_lines.push_back(str(job.item.source, ":", line_number, ": ", e.what()));
    }
  }
}

/// One reading thread, several tokenising threads, results in order to the calling thread.
class Pipeline {
 public:
  Pipeline(WorkReader reader, const PrepareOptions& options, const Tokenizer& tokenizer,
           int threads)
      : reader_(std::move(reader)),
        options_(options),
        tokenizer_(tokenizer),
        limit_(static_cast<size_t>(threads) * 2 + 2) {
    try {
      threads_.emplace_back([this] { read(); });
      for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { work(); });
    } catch (const std::system_error& e) {
      if (threads_.size() >= 2) return;  // fewer do the same
      end();
      throw DeviceError(str("tokenising: the system gives no threads: ", e.what()));
    }
  }
  ~Pipeline() { end(); }
  Pipeline(const Pipeline&) = delete;
  Pipeline& operator=(const Pipeline&) = delete;

  /// The next finished job in input order; null at the end. Rethrows what the threads threw.
  std::unique_ptr<Job> next() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock,
                  [&] { return jobs_.empty() ? read_all_ : jobs_.front()->state == Job::kDone; });
    if (jobs_.empty()) return nullptr;
    std::unique_ptr<Job> job = std::move(jobs_.front());
    jobs_.pop_front();
    lock.unlock();
    changed_.notify_all();
    if (job->error != nullptr) std::rethrow_exception(job->error);
    return job;
  }

 private:
  void end() {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
    }
    changed_.notify_all();
    for (auto& t : threads_) t.join();
  }
  void read() {
    for (bool more = true; more;) {
      auto job = std::make_unique<Job>();
      try {
        more = reader_.next(job->item);
      } catch (...) {
        job->error = std::current_exception();
        job->state = Job::kDone;
      }
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return stop_ || jobs_.size() < limit_; });
      if (stop_) return;
      if (job->error != nullptr || more) jobs_.push_back(std::move(job));
      more = more && jobs_.back()->error == nullptr;
      read_all_ = !more;
      lock.unlock();
      changed_.notify_all();
    }
  }
  void work() {
    for (;;) {
      Job* job = nullptr;
      {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [&] {
          for (const auto& j : jobs_)
            if (j->state == Job::kWaiting) {
              job = j.get();
              break;
            }
          return stop_ || job != nullptr || read_all_;
        });
        if (stop_ || job == nullptr) return;
        job->state = Job::kRunning;
      }
      try {
        tokenise(*job, options_, tokenizer_);
      } catch (...) {
        job->error = std::current_exception();
      }
      {
        const std::lock_guard lock(mutex_);
        job->state = Job::kDone;
      }
      changed_.notify_all();
    }
  }

  WorkReader reader_;
  const PrepareOptions& options_;
  const Tokenizer& tokenizer_;
  const size_t limit_;  ///< jobs in flight: bounds the memory
  std::deque<std::unique_ptr<Job>> jobs_;
  bool stop_ = false, read_all_ = false;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::thread> threads_;
};

std::string describe_creation(const PrepareOptions& o, const std::vector<InputFile>& inputs) {
  nlohmann::ordered_json j;
  j["program"] = "rwkv-data tokenize";
  for (const auto& in : inputs) {
    j["inputs"].push_back(in.path);
    if (j["inputs"].size() == 1000) break;  // a folder may hold very many
  }
  j["input_count"] = inputs.size();
  j["field"] = o.field;
  j["split_at"] = o.split_at;
  j["end_of_document"] = o.end_of_document;
  j["valid_fraction"] = o.valid_fraction;
  // Names and separators are bytes; what is not UTF-8 is replaced.
  return j.dump(1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

/// Hands every document to one of the two files.
class Splitter {
 public:
  Splitter(const PrepareOptions& options, const std::shared_ptr<const Tokenizer>& tokenizer,
           const std::string& created)
      : fraction_(options.valid_fraction), train_(options.output, tokenizer, created) {
    if (fraction_ > 0)
      valid_ = std::make_unique<TokenFileWriter>(options.valid_output, tokenizer, created);
  }
  void add_tokens(std::span<const int32_t> ids) { current().add_tokens(ids); }
  void end_document() {
    current().end_document();
    ++index_;
  }
  int64_t tokens() const { return train_.tokens() + (valid_ ? valid_->tokens() : 0); }
  int64_t documents() const { return index_; }
  int64_t text_bytes() const { return train_.text_bytes() + (valid_ ? valid_->text_bytes() : 0); }

  void finish(PrepareResult& result) {
    if (valid_ != nullptr && valid_->documents() == 0) {
      cut_the_end();
    } else {
      if (valid_ != nullptr) valid_->finish();
      train_.finish();
    }
    const auto count = [](const std::string& path, int64_t& tokens, int64_t& documents) {
      const auto file = TokenFile::open(path);
      tokens = file->size();
      documents = file->documents();
      return file->text_bytes();
    };
    if (valid_ != nullptr) {
      result.valid_output = valid_->path();
      count(valid_->path(), result.valid_tokens, result.valid_documents);
    }
    result.text_bytes = count(train_path_, result.tokens, result.documents);
  }

 private:
  TokenFileWriter& current() {
    const double i = static_cast<double>(index_);
    const bool valid =
        valid_ != nullptr && std::floor((i + 1) * fraction_) > std::floor(i * fraction_);
    return valid ? *valid_ : train_;
  }
  /// Too few documents to choose whole ones.
  void cut_the_end() {
    const int64_t n = train_.tokens();
    const auto part = static_cast<int64_t>(std::llround(fraction_ * static_cast<double>(n)));
    RWKV_CHECK(n >= 2, ConfigError, "splitting off a validation part: there are only ", n,
               " tokens");
    const std::string valid_path = valid_->path();
    const struct Whole {
      std::string path;
      Unfinished unfinished{path};
      ~Whole() {
        std::error_code ignored;
        std::filesystem::remove(path, ignored);
      }
    } whole{train_path_ + ".whole.tmp"};
    train_.finish_as(whole.path);
    split_token_file(whole.path, n - std::clamp<int64_t>(part, 1, n - 1), train_path_, valid_path);
  }

  double fraction_;
  TokenFileWriter train_;
  std::unique_ptr<TokenFileWriter> valid_;
  std::string train_path_ = train_.path();
  int64_t index_ = 0;
};

}  // namespace

std::string default_valid_path(const std::string& output) {
  std::filesystem::path p(output);
  const std::string name = p.stem().string() + ".valid" + p.extension().string();
  return p.replace_filename(name).string();
}

PrepareResult prepare_tokens(const PrepareOptions& given,
                             std::shared_ptr<const Tokenizer> tokenizer) {
  PrepareOptions options = given;
  RWKV_CHECK(options.valid_fraction >= 0 && options.valid_fraction < 1, ConfigError,
             "the validation fraction must be at least 0 and below 1, got ",
             options.valid_fraction);
  if (options.valid_fraction > 0 && options.valid_output.empty())
    options.valid_output = default_valid_path(options.output);
  RWKV_CHECK(options.valid_fraction > 0 || options.valid_output.empty(), ConfigError,
             "writing a validation part to ", options.valid_output,
             ": give the share of the documents that goes there with --valid-fraction");
  RWKV_CHECK(options.valid_fraction == 0 || !same_file(options.valid_output, options.output),
             ConfigError, "training and validation part have the same file name ", options.output);
  const int threads = options.threads > 0 ? options.threads : num_threads();
  auto inputs = find_inputs(options.inputs, options.format);
  for (const auto& in : inputs)
    for (const std::string& out : {options.output, options.valid_output})
      RWKV_CHECK(out.empty() || !same_file(in.path, out), ConfigError, "tokenising ", in.path,
                 ": the output ", out, " is the same file; give another name");

  PrepareProgress progress;
  progress.input_total = 0;
  for (const auto& in : inputs)
    progress.input_total =
        in.bytes < 0 || progress.input_total < 0 ? -1 : progress.input_total + in.bytes;

  Splitter out(options, tokenizer, describe_creation(options, inputs));
  PrepareResult result;
  const double start = now_seconds();
  double reported = start;
  const auto report = [&](bool finished) {
    reported = now_seconds();
    progress.seconds = reported - start;
    progress.tokens = out.tokens();
    progress.documents = out.documents();
    progress.text_bytes = out.text_bytes();
    progress.finished = finished;
    if (options.progress) options.progress(progress);
  };
  Pipeline pipeline(WorkReader(std::move(inputs), tokenizer, options.split_at, options.piece_bytes),
                    options, *tokenizer, threads);
  while (const auto job = pipeline.next()) {
    for (const auto& bad : job->bad_lines) {
      RWKV_CHECK(options.skip_bad_lines, IoError, bad,
                 "; repair it, or skip such lines with --on-error skip");
      ++result.bad_lines;
      if (options.report_bad_line) options.report_bad_line(bad);
    }
    size_t begin = 0;
    const std::span<const int32_t> ids(job->ids);
    for (const size_t end : job->document_ends) {
      out.add_tokens(ids.subspan(begin, end - begin));
      out.end_document();
      begin = end;
    }
    out.add_tokens(ids.subspan(begin));
    progress.input_bytes = job->item.consumed;
    if (now_seconds() - reported > 0.2) report(false);
  }
  RWKV_CHECK(out.text_bytes() > 0, IoError, "tokenising ", options.inputs[0],
             options.inputs.size() > 1 ? " and others" : "", ": the input holds no text");
  report(true);
  out.finish(result);
  return result;
}

}  // namespace rwkv
