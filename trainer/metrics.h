#pragma once
/// What a run says about itself: the JSON-lines log and the line in the terminal.

#include <cstdint>
#include <string>

#include "trainer/config.h"

namespace rwkv {

struct StepRecord {
  int64_t step = 0, total_steps = 0;  ///< step counts from 1
  int64_t tokens = 0;                 ///< consumed by the run so far
  double loss = 0;                    ///< of this step, nats per token
  double loss_avg = 0;                ///< running mean
  double valid_loss = -1;             ///< newest, -1: none yet
  double grad_norm = 0;               ///< before clipping
  double lr = 0;
  double tokens_per_s = 0;  ///< over the steps since the last record
  double mfu = 0;           ///< share of peak_tflops, 0 to 1
  double elapsed_s = 0;     ///< of this process
  double eta_s = 0;
  size_t memory_bytes = 0;  ///< resident
  bool finite = true;
};

/// What the first line of the log says.
struct RunDescription {
  int64_t parameters = 0, parameters_total = 0;  ///< without and with layer 0's unused tensors
  int64_t total_steps = 0, tokens_per_step = 0;
  double flops_per_step = 0, peak_tflops = 0;
  size_t memory_bytes = 0;  ///< estimate
  int threads = 0;
  std::string device, wkv, data, data_hash, code_version;
  int64_t data_tokens = 0;
};

/// One JSON object per line; docs/training.md lists the fields. Every line is one write, so a
/// killed run leaves at most one incomplete line, which resuming removes.
class JsonLog {
 public:
  /// keep_through >= 0: keeps the lines of steps up to that one and continues; -1: starts anew.
  /// Throws IoError.
  JsonLog(const std::string& path, int64_t keep_through);
  ~JsonLog();
  JsonLog(const JsonLog&) = delete;
  JsonLog& operator=(const JsonLog&) = delete;

  bool empty() const { return empty_; }  ///< nothing was kept
  void run(const RunDescription& run, const TrainConfig& config);
  void resume(int64_t step, const std::string& checkpoint);
  void step(const StepRecord& r);
  void valid(int64_t step, double loss);
  void sample(int64_t step, const std::string& text);
  void end(int64_t step, const std::string& reason);

 private:
  void write(const std::string& line);
  std::string path_;
  int fd_ = -1;
  bool empty_ = true;
};

/// One line that is rewritten in place on a terminal, plain lines elsewhere.
class StatusLine {
 public:
  explicit StatusLine(bool quiet);
  ~StatusLine();
  StatusLine(const StatusLine&) = delete;
  StatusLine& operator=(const StatusLine&) = delete;

  bool terminal() const { return terminal_; }
  /// Shows the record; `always`: also as a lasting line (when not on a terminal only these show).
  void show(const StepRecord& r, bool always);
  /// A line of its own, above the live line.
  void message(const std::string& text);

 private:
  bool quiet_, terminal_, live_ = false;
};

std::string format_step(const StepRecord& r);
std::string format_duration(double seconds);  ///< "4.2 s", "3 min 20 s", "5 h 12 min"
std::string format_count(double n);           ///< "950", "12.3k", "167.7M", "1.5G"

}  // namespace rwkv
