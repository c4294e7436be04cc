#pragma once
/// "wkv7.cpu.serial.f32": the plain recurrence in fp32, any number of tokens, head sizes 32, 64,
/// 128. Saves the state every 16 tokens and u = S a of every token; deterministic for any thread
/// count.

#include "kernels/wkv/wkv.h"

namespace rwkv::cpu {

extern const WkvKernel kWkv7CpuSerial;

}  // namespace rwkv::cpu
