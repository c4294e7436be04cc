#pragma once
/// When NCCL moves data by copy engines, as far as that can be said before ranks are connected.

#include <functional>
#include <string>

namespace rwkv {

/// Versions (as ncclGetVersion gives them) whose first collective by copy engines may wait for ever
/// on two ranks that share a multicast object (NVLS): later than 2.29.3, fixed in 2.31.2 (NCCL
/// issue 2241). One rank writes its flag to the object before the other has joined it.
bool copies_hang(int version, int ranks);

/// Whether NCCL of this version moves by copies what it is asked to, by the variables of this
/// process: not with NCCL_P2P_DISABLE=1 (or NCCL_P2P_LEVEL=LOC), NCCL_CUMEM_ENABLE=0,
/// NCCL_WIN_ENABLE=0 or an NCCL_CTA_POLICY other than 2 or ZERO, and where copies_hang only with
/// NCCL_NVLS_ENABLE=0. `get` reads a variable: empty if not set.
bool copies_allowed(int version, int ranks, const std::function<std::string(const char*)>& get);

}  // namespace rwkv
