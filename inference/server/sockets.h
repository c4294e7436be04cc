#pragma once
/// What the HTTP library does not do with sockets.

#include <cstdint>
#include <string>

namespace rwkv {

/// Throws IoError, naming the reason, if nobody could listen there now: the port is in use or
/// reserved, or the address is not this machine's. Port 0 is any free one.
void check_address(const std::string& host, int port);

/// Allows this process as many open files as so many connections take, as far as the system lets
/// it. Returns the connections that it can have now.
int64_t allow_connections(int64_t wanted);

/// Connections of this process that came in at `port`: nothing more is read from them, and with
/// `writing` nothing more is written either.
void end_connections(int port, bool writing);

}  // namespace rwkv
