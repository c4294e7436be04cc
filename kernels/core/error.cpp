#include "kernels/core/error.h"

namespace rwkv {

void throw_internal(const char* file, int line, const char* expr, const std::string& message) {
  throw InternalError(str("internal error at ", file, ":", line, ": ", expr, " does not hold",
                          message.empty() ? "" : ": ", message, "; please report this"));
}

}  // namespace rwkv
