#include "inference/text_stream.h"

#include <algorithm>

#include "kernels/core/error.h"

namespace rwkv {

StopFinder::StopFinder(std::vector<std::string> stops) : stops_(std::move(stops)) {
  for (const std::string& s : stops_)
    RWKV_CHECK(!s.empty(), ConfigError, "a stop string is empty; it would stop before any text");
  std::ranges::stable_sort(stops_, std::greater<>(), &std::string::size);
}

std::string StopFinder::push(std::string_view bytes) {
  std::string certain;
  for (const char c : bytes) {
    if (found_) break;
    held_ += c;
    for (const std::string& s : stops_) {
      if (!held_.ends_with(s)) continue;
      found_ = true;
      stop_ = s;
      held_.resize(held_.size() - s.size());
      certain += held_;
      held_.clear();
      break;
    }
    // Keep the longest end that is the beginning of a stop string.
    size_t keep = 0;
    for (const std::string& s : stops_)
      for (size_t n = std::min(held_.size(), s.size() - 1); n > keep; --n)
        if (held_.ends_with(std::string_view(s).substr(0, n))) keep = n;
    certain.append(held_, 0, held_.size() - keep);
    held_.erase(0, held_.size() - keep);
  }
  return certain;
}

std::string StopFinder::finish() {
  return std::exchange(held_, {});
}

std::string TextStream::push(int32_t id) {
  return utf8_.push(stop_.push(tokenizer_.token_bytes(id)));
}

std::string TextStream::finish() {
  std::string rest = utf8_.push(stop_.finish());
  return rest + utf8_.finish();
}

}  // namespace rwkv
