#pragma once
/// Whether a client is still there. The HTTP library does not tell handlers which socket they
/// serve.

#include <string>

namespace rwkv {

/// A connection of this process, found by the address of its other end.
class ClientSocket {
 public:
  /// Call it in the thread that serves the connection, which keeps it open meanwhile. If it is not
  /// found, the client counts as there.
  ClientSocket(const std::string& address, int port);
  /// The client has closed its end, or reset the connection.
  bool gone() const;
  /// No further request is read from it.
  void end_reading() const;

 private:
  int fd_ = -1;
};

}  // namespace rwkv
