#pragma once
/// Reading a file in a child process first, for libraries that crash on damaged ones.

#include <functional>
#include <string>

namespace rwkv {

/// Runs `read`, which opens and reads the HDF5 file `path`, in a child process with bounds on time
/// and memory that grow with the file's size. Returns if it returned there: the caller may do the
/// same now. `read` may not use other threads. Throws IoError, with the message of what `read`
/// threw, or saying that the library failed.
void try_in_child(const std::string& path, const std::function<void()>& read);

}  // namespace rwkv
