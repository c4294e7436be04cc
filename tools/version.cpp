#include "generated/build_info.h"
#include "tools/cli_common.h"

namespace rwkv {

std::string version_text() {
  return RWKV_VERSION ", commit " RWKV_GIT_DESCRIBE;
}

}  // namespace rwkv
