#pragma once
/// Exceptions of the whole project and the checks that throw them.
///
/// Every message says what was being done, what was found, what was expected and what to try.
/// Programs map the classes to exit codes with `exit_code`: 0 done, 2 usage or config, 3 data or
/// file, 4 device, 5 non-finite training, 1 for a defect of ours.

#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>

namespace rwkv {

/// Base of all exceptions thrown on purpose.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
  virtual int exit_code() const noexcept { return 1; }
};

#define RWKV_DEFINE_ERROR(Name, code)                        \
  class Name : public Error {                                \
   public:                                                   \
    using Error::Error;                                      \
    int exit_code() const noexcept override { return code; } \
  }

RWKV_DEFINE_ERROR(ConfigError, 2);     ///< wrong flag, config key or value
RWKV_DEFINE_ERROR(ShapeError, 2);      ///< tensor shapes that do not fit together
RWKV_DEFINE_ERROR(DTypeError, 2);      ///< a view read as another type than it has
RWKV_DEFINE_ERROR(IoError, 3);         ///< missing, truncated, foreign or unwritable file
RWKV_DEFINE_ERROR(DeviceError, 4);     ///< no device, out of memory, failed launch
RWKV_DEFINE_ERROR(NonFiniteError, 5);  ///< loss or gradient was NaN or infinite too often
RWKV_DEFINE_ERROR(InternalError, 1);   ///< a broken invariant: a defect of this program
#undef RWKV_DEFINE_ERROR

/// Concatenates anything that has operator<<.
template <class... Args>
std::string str(Args&&... args) {
  std::ostringstream out;
  ((void)(out << std::forward<Args>(args)), ...);
  return out.str();
}

[[noreturn]] void throw_internal(const char* file, int line, const char* expr,
                                 const std::string& message);

}  // namespace rwkv

/// Always on. `RWKV_CHECK(cond, ErrorType, parts...)` throws ErrorType with the joined parts.
#define RWKV_CHECK(cond, ErrorType, ...)                 \
  do {                                                   \
    if (!(cond)) [[unlikely]]                            \
      throw ::rwkv::ErrorType(::rwkv::str(__VA_ARGS__)); \
  } while (0)

/// Always on, for invariants of our own code: throws InternalError with place and expression.
#define RWKV_ASSERT(cond, ...)                                                     \
  do {                                                                             \
    if (!(cond)) [[unlikely]]                                                      \
      ::rwkv::throw_internal(__FILE__, __LINE__, #cond, ::rwkv::str(__VA_ARGS__)); \
  } while (0)

/// Debug builds only.
#ifdef NDEBUG
#define RWKV_DCHECK(cond, ...) \
  do {                         \
  } while (0)
#else
#define RWKV_DCHECK(cond, ...) RWKV_ASSERT(cond, __VA_ARGS__)
#endif
