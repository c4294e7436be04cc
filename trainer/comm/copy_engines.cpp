#include "trainer/comm/copy_engines.h"

#include <cstdlib>

namespace rwkv {
namespace {

/// As NCCL reads numbers: prefixes 0x and 0 count, what follows a number does not.
bool is_number(const std::string& text, long wanted) {
  return !text.empty() && std::strtol(text.c_str(), nullptr, 0) == wanted;
}

}  // namespace

bool copies_hang(int version, int ranks) {
  return ranks == 2 && version > 22903 && version < 23102;
}

bool copies_allowed(int version, int ranks, const std::function<std::string(const char*)>& get) {
  if (is_number(get("NCCL_P2P_DISABLE"), 1)) return false;
  const std::string level = get("NCCL_P2P_LEVEL"), policy = get("NCCL_CTA_POLICY");
  if (level == "LOC" || level == "0") return false;
  if (is_number(get("NCCL_CUMEM_ENABLE"), 0) || is_number(get("NCCL_WIN_ENABLE"), 0)) return false;
  if (!policy.empty() && policy != "2" && policy != "ZERO") return false;
  return !copies_hang(version, ranks) || is_number(get("NCCL_NVLS_ENABLE"), 0);
}

}  // namespace rwkv
