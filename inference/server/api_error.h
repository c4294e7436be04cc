#pragma once
/// Errors as OpenAI's API has them (spec formats g.5).

#include <cstdint>
#include <string>

#include "kernels/core/error.h"

namespace rwkv {

/// Answered as {"error": {message, type, param, code}} with its HTTP status.
class ApiError : public Error {
 public:
  ApiError(int http_status, const std::string& message, std::string param_name = {},
           std::string error_code = {})
      : Error(message),
        status(http_status),
        param(std::move(param_name)),
        code(std::move(error_code)) {}
  int status;
  std::string param, code;  ///< null where empty
  int64_t retry_after = 0;  ///< seconds; 0: no such header
};

/// "invalid_request_error", "rate_limit_error", ...: follows from the status.
std::string api_error_type(int status);
std::string api_error_json(const ApiError& error);

}  // namespace rwkv
