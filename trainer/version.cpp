#include "trainer/checkpoint.h"

namespace rwkv {

std::string code_version() {
  return RWKV_CODE_VERSION;
}

}  // namespace rwkv
