#include "tools/bench/report.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <fstream>
#include <nlohmann/json.hpp>

#include "generated/build_info.h"
#include "kernels/core/backend.h"
#include "kernels/core/error.h"
#include "kernels/core/parallel.h"
#include "kernels/core/trace.h"

namespace rwkv::bench {

Environment environment(Device device) {
  Environment env;
  env.commit = RWKV_GIT_DESCRIBE;
  env.kernel_hash = RWKV_KERNEL_HASH;
  if (device == Device::kCuda) env.device = backend::cuda_device_text();
  env.cpu = "unknown processor";
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    if (line.rfind("model name", 0) == 0) {
      const size_t colon = line.find(':');
      if (colon != std::string::npos && colon + 2 < line.size()) env.cpu = line.substr(colon + 2);
      break;
    }
  }
  env.threads = num_threads();
  return env;
}

std::string to_string(const Environment& env) {
  if (!env.device.empty()) return str("commit ", env.commit, ", ", env.device);
  return str("commit ", env.commit, ", ", env.cpu, ", ", env.threads,
             env.threads == 1 ? " thread" : " threads");
}

Timing summarize(std::vector<double> seconds) {
  RWKV_ASSERT(!seconds.empty(), "no repeats to summarize");
  std::sort(seconds.begin(), seconds.end());
  const size_t n = seconds.size();
  const double median = n % 2 == 1 ? seconds[n / 2] : 0.5 * (seconds[n / 2 - 1] + seconds[n / 2]);
  return {median, seconds.front(), (seconds.back() - seconds.front()) / median};
}

void CacheFlusher::flush() {
  ++value_;
  const int64_t pieces = 64;
  const auto bytes = static_cast<int64_t>(buffer_.size());
  parallel_for(pieces, 1, [&](int64_t i, int64_t) {
    const int64_t begin = i * bytes / pieces, end = (i + 1) * bytes / pieces;
    std::memset(buffer_.data() + begin, value_, static_cast<size_t>(end - begin));
  });
}

double copy_bandwidth() {
  constexpr int64_t bytes = int64_t{128} << 20, piece = int64_t{1} << 20;
  std::vector<char> from(bytes, 1), to(bytes, 2);
  double best = 1e30;
  for (int i = 0; i < 6; ++i) {
    const double start = now_seconds();
    parallel_for(bytes, piece, [&](int64_t begin, int64_t end) {
      std::memcpy(to.data() + begin, from.data() + begin, static_cast<size_t>(end - begin));
    });
    best = std::min(best, now_seconds() - start);
  }
  return 2.0 * static_cast<double>(bytes) / best;
}

std::string today() {
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&now, &utc);
  char text[16];
  std::strftime(text, sizeof text, "%Y-%m-%d", &utc);
  return text;
}

std::string record_text(const std::string& json) {
  const auto doc = nlohmann::ordered_json::parse(json);
  std::string text = "{\n";
  const char* comma = "";
  for (const auto& [key, value] : doc.items()) {
    text += str(comma, " \"", key, "\": ");
    if (value.is_array() && !value.empty()) {
      const char* inner = "[\n  ";
      for (const auto& item : value) {
        text += str(inner, item.dump());
        inner = ",\n  ";
      }
      text += "\n ]";
    } else {
      text += value.dump();
    }
    comma = ",\n";
  }
  return text + "\n}\n";
}

}  // namespace rwkv::bench
