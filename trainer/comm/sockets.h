#pragma once
/// TCP sockets of the ranks' meeting and of their group.

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

namespace rwkv {

using SocketClock = std::chrono::steady_clock;

/// A file descriptor that closes itself.
class Socket {
 public:
  Socket() = default;
  explicit Socket(int fd) : fd_(fd) {}
  ~Socket() { reset(); }
  Socket(Socket&& o) noexcept : fd_(std::exchange(o.fd_, -1)) {}
  Socket& operator=(Socket&& o) noexcept {
    std::swap(fd_, o.fd_);
    return *this;
  }
  int fd() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }
  int release() { return std::exchange(fd_, -1); }
  void reset();

 private:
  int fd_ = -1;
};

enum class FrameKind : uint32_t {
  // While ranks meet, from rank 0.
  kNoted = 10,  ///< it knows this rank now and waits for the others; the payload names its machine
  kComplete,    ///< all ranks have come
  kOtherJob,    ///< it belongs to another job, which the payload names; try the next port
  kRefused,     ///< this rank contradicts the others: `code` and why
  kCancelled,   ///< the start failed for a reason that rank 0 prints: `code` and why
  // In a group.
  kData = 1,
  kAbort,     ///< the sender ends: `code` and why
  kLifeSign,  ///< nothing but that the sender lives
};

/// Ahead of every payload.
struct Frame {
  static constexpr uint32_t kMagic = 0x6772796c;
  uint32_t magic = kMagic;
  FrameKind kind = FrameKind::kData;
  int32_t code = 0;  ///< an exit code
  uint32_t bytes = 0;
};

/// The longest text that comes with an error.
inline constexpr uint32_t kLongestCause = 4096;

SocketClock::time_point in_seconds(double seconds);

/// False if the connection ended or the deadline passed; `why` says which.
bool receive(int fd, void* data, size_t bytes, SocketClock::time_point deadline, std::string* why);

/// Waits while the other side does not read. False if the connection ended.
bool send_all(int fd, const void* data, size_t bytes);
/// A frame with text, cut at kLongestCause.
bool send_frame(int fd, FrameKind kind, int code, const std::string& text);

/// From here on the system probes a quiet connection, which ends if nobody answers for `seconds`.
void watch_silence(int fd, int seconds);
/// Sending gives up after so long: for last words.
void limit_sending(int fd, int seconds);

/// A listening socket on all addresses of this machine, or on 127.0.0.1 only; not open if the port
/// is taken.
Socket listen_on(int port, bool local);

/// Tries all addresses of a name, `seconds` for each. If none answers the socket is not open and
/// `why` says what the last one did: "connection refused", "no answer", "unknown name: ...".
Socket connect_to(const std::string& address, int port, double seconds, std::string* why);

std::string host_name();

}  // namespace rwkv
