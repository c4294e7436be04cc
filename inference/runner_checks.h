#pragma once
/// What every SequenceRunner checks of its calls before any state moves: what throws later must not
/// have touched a slot.

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "kernels/core/error.h"

namespace rwkv {

class RunnerChecks {
 public:
  RunnerChecks(int64_t slots, int64_t vocab)
      : vocab_(vocab), named_(static_cast<size_t>(slots), 0) {}

  /// Throws ConfigError.
  void slot(int64_t slot, const char* doing) const {
    const auto slots = std::ssize(named_);
    RWKV_CHECK(slot >= 0 && slot < slots, ConfigError, doing, ": slot ", slot, ", expected 0 to ",
               slots - 1);
  }
  /// Throws ConfigError, also for one that is named twice.
  void slots(std::span<const int64_t> slots, const char* doing) {
    for (const int64_t s : slots) slot(s, doing);
    bool twice = false;
    for (const int64_t s : slots) twice |= std::exchange(named_[static_cast<size_t>(s)], 1) != 0;
    for (const int64_t s : slots) named_[static_cast<size_t>(s)] = 0;
    RWKV_CHECK(!twice, ConfigError, doing, ": a slot is named twice");
  }
  /// Throws ConfigError.
  void ids(std::span<const int32_t> ids, const char* doing) const {
    for (const int32_t id : ids)
      RWKV_CHECK(id >= 0 && id < vocab_, ConfigError, doing, ": token id ", id,
                 " is outside of the model's vocabulary, 0 to ", vocab_ - 1);
  }
  /// A saved state of `found` bytes. Throws ShapeError.
  static void bytes(size_t found, size_t expected, const char* doing) {
    RWKV_CHECK(found == expected, ShapeError, doing, ": ", found, " bytes for a state, expected ",
               expected);
  }
  /// Of decode. Throws ShapeError for a different number of both, ConfigError for the rest.
  void decode(std::span<const int64_t> of, std::span<const int32_t> tokens) {
    RWKV_CHECK(!of.empty() && of.size() == tokens.size(), ShapeError, "decode: ", of.size(),
               " slots and ", tokens.size(), " ids, expected the same number of at least 1");
    ids(tokens, "decode");
    slots(of, "decode");
  }

 private:
  int64_t vocab_;
  std::vector<char> named_;  ///< all 0 between calls
};

}  // namespace rwkv
