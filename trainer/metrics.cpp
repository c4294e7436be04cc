#include "trainer/metrics.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "data/io/atomic_file.h"
#include "kernels/core/arena.h"
#include "kernels/core/error.h"

namespace rwkv {
namespace {

using Json = nlohmann::ordered_json;

Json number_or_null(double x) {
  return std::isfinite(x) ? Json(x) : Json(nullptr);
}

std::string dump(const Json& j) {
  // Sampled text may end inside a character: replace what is not UTF-8.
  return j.dump(-1, ' ', false, Json::error_handler_t::replace);
}

/// The lines that belong to steps up to `last`; complete lines only.
std::string kept_lines(const std::string& text, int64_t last) {
  std::string out;
  size_t begin = 0;
  for (size_t end; (end = text.find('\n', begin)) != std::string::npos; begin = end + 1) {
    const std::string line = text.substr(begin, end - begin);
    const Json j = Json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!j.is_object()) continue;
    if (const auto step = j.find("step"); step != j.end())
      if (!step->is_number_integer() || step->get<int64_t>() > last) continue;
    out += line + "\n";
  }
  return out;
}

template <class... Args>
std::string format(const char* pattern, Args... args) {
  std::array<char, 256> buffer;
  std::snprintf(buffer.data(), buffer.size(), pattern, args...);
  return buffer.data();
}

}  // namespace

JsonLog::JsonLog(const std::string& path, int64_t keep_through) : path_(path) {
  std::string kept;
  if (keep_through >= 0 && std::filesystem::exists(path))
    kept = kept_lines(read_file(path), keep_through);
  write_file_atomic(path, kept);
  empty_ = kept.empty();
  fd_ = ::open(path.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC);
  RWKV_CHECK(fd_ >= 0, IoError, "opening the log ", path, ": ", std::strerror(errno));
}

JsonLog::~JsonLog() {
  if (fd_ >= 0) ::close(fd_);
}

void JsonLog::write(const std::string& line) {
  const std::string text = line + "\n";
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t n = ::write(fd_, text.data() + done, text.size() - done);
    if (n < 0 && errno == EINTR) continue;
    RWKV_CHECK(n > 0, IoError, "writing the log ", path_, ": ", std::strerror(errno));
    done += static_cast<size_t>(n);
  }
}

void JsonLog::run(const RunDescription& r, const TrainConfig& config) {
  Json j;
  j["type"] = "run";
  j["name"] = config.name;
  j["code_version"] = r.code_version;
  j["parameters"] = r.parameters;
  j["parameters_total"] = r.parameters_total;
  j["total_steps"] = r.total_steps;
  j["tokens_per_step"] = r.tokens_per_step;
  j["flops_per_step"] = r.flops_per_step;
  j["peak_tflops"] = r.peak_tflops;
  j["memory_bytes"] = r.memory_bytes;
  j["device"] = r.device;
  j["threads"] = r.threads;
  j["wkv"] = r.wkv;
  j["data"] = r.data;
  j["data_tokens"] = r.data_tokens;
  j["data_hash"] = r.data_hash;
  j["config"] = Json::parse(config_json(config));
  write(dump(j));
}

void JsonLog::resume(int64_t step, const std::string& checkpoint) {
  write(dump(Json{{"type", "resume"}, {"step", step}, {"checkpoint", checkpoint}}));
}

void JsonLog::step(const StepRecord& r) {
  Json j;
  j["type"] = "step";
  j["step"] = r.step;
  j["tokens"] = r.tokens;
  j["loss"] = number_or_null(r.loss);
  j["loss_avg"] = number_or_null(r.loss_avg);
  j["grad_norm"] = number_or_null(r.grad_norm);
  j["lr"] = r.lr;
  j["tokens_per_s"] = r.tokens_per_s;
  j["mfu"] = r.mfu;
  j["elapsed_s"] = r.elapsed_s;
  j["memory_bytes"] = r.memory_bytes;
  if (!r.finite) j["nonfinite"] = true;
  write(dump(j));
}

void JsonLog::valid(int64_t step, double loss) {
  Json j{{"type", "valid"}, {"step", step}, {"valid_loss", number_or_null(loss)}};
  if (!std::isfinite(loss)) j["nonfinite"] = true;
  write(dump(j));
}

void JsonLog::sample(int64_t step, const std::string& text) {
  write(dump(Json{{"type", "sample"}, {"step", step}, {"text", text}}));
}

void JsonLog::end(int64_t step, const std::string& reason) {
  write(dump(Json{{"type", "end"}, {"step", step}, {"reason", reason}}));
}

std::string format_count(double n) {
  if (n < 1000) return format("%.0f", n);
  if (n < 1e6) return format("%.1fk", n / 1e3);
  if (n < 1e9) return format("%.1fM", n / 1e6);
  if (n < 1e12) return format("%.1fG", n / 1e9);
  return format("%.1fT", n / 1e12);
}

std::string format_duration(double s) {
  if (s < 60) return format("%.1f s", s);
  const auto total = static_cast<long long>(s + 0.5);
  if (total < 3600) return format("%lld min %lld s", total / 60, total % 60);
  if (total < 48 * 3600) return format("%lld h %lld min", total / 3600, total / 60 % 60);
  return format("%lld d %lld h", total / 86400, total / 3600 % 24);
}

std::string format_step(const StepRecord& r) {
  std::string line = format("step %lld/%lld  loss %.4f", static_cast<long long>(r.step),
                            static_cast<long long>(r.total_steps), r.loss);
  if (!r.finite) line += " (not finite: update left out)";
  if (r.valid_loss >= 0) line += format("  valid %.4f", r.valid_loss);
  line += format("  grad %.3g  lr %.3g  ", r.grad_norm, r.lr);
  line += format_count(r.tokens_per_s) + " tok/s";
  line += format("  mfu %.0f%%  mem ", 100 * r.mfu) + format_bytes(r.memory_bytes);
  line += "  eta " + format_duration(r.eta_s);
  return line;
}

StatusLine::StatusLine(bool quiet) : quiet_(quiet), terminal_(isatty(STDOUT_FILENO) == 1) {}

StatusLine::~StatusLine() {
  if (live_) std::fputs("\n", stdout);
  std::fflush(stdout);
}

void StatusLine::show(const StepRecord& r, bool always) {
  if (quiet_ || (!terminal_ && !always)) return;
  std::string line = format_step(r);
  if (terminal_) {
    winsize size{};  // a line that wraps could not be rewritten
    if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 1 &&
        line.size() >= size.ws_col)
      line.resize(size.ws_col - 1u);
    std::printf("\r%s\x1b[K", line.c_str());
    live_ = true;
  } else {
    std::printf("%s\n", line.c_str());
  }
  std::fflush(stdout);
}

void StatusLine::message(const std::string& text) {
  if (quiet_) return;
  if (live_) std::fputs("\r\x1b[K", stdout);
  live_ = false;
  std::printf("%s\n", text.c_str());
  std::fflush(stdout);
}

}  // namespace rwkv
