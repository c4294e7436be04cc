#pragma once
/// A point in a context's queue that others can wait for.

#include "kernels/core/context.h"

namespace rwkv {

/// CUDA only. Move-only; made at the first record().
class StreamEvent {
 public:
  StreamEvent() = default;
  ~StreamEvent();
  StreamEvent(StreamEvent&& o) noexcept;
  StreamEvent& operator=(StreamEvent&& o) noexcept;
  StreamEvent(const StreamEvent&) = delete;
  StreamEvent& operator=(const StreamEvent&) = delete;

  /// What is queued on ctx so far. Replaces the earlier record, for later waits.
  void record(const Context& ctx);
  /// What is queued on ctx from now on waits for the latest record; nothing if there was none.
  void wait(const Context& ctx) const;
  /// The same for a stream that belongs to no context.
  void record_on(Stream stream);
  void wait_on(Stream stream) const;

 private:
  void* event_ = nullptr;
};

}  // namespace rwkv
