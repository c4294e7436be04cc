#pragma once
/// The collectives of a training step by themselves.

#include <cstdint>
#include <string>
#include <vector>

#include "model/config.h"
#include "trainer/comm/comm.h"

namespace rwkv::bench {

/// What the exchanges of one step take by themselves, and what a large all-reduce reaches.
struct Exchanges {
  double seconds = 0, bytes = 0;     ///< bytes: that cross each rank's link, one way
  double peak_bytes_per_second = 0;  ///< bus bandwidth of the all-reduce
};
struct ExchangeWish {
  DType there = DType::kF32, back = DType::kF32;  ///< types of gradients and of parameters
  bool copy_engines = true;                       ///< where the communicator has them
};
/// A collective.
Exchanges time_exchanges(const ModelConfig& model, Communicator& comm, const ExchangeWish& wish);

struct CollectiveTime {
  std::string name;  ///< "reduce-scatter" (f32), "all-gather" (bf16), "all-reduce" (f32)
  double bytes = 0;  ///< of the whole buffer
  double seconds = 0;
  double bus = 0;  ///< bytes per second over a rank's link, one way
};
/// Buffers of 64 KiB, 256 KiB, ... up to `most` bytes. A collective.
std::vector<CollectiveTime> time_collectives(Communicator& comm, size_t most, bool copy_engines);

}  // namespace rwkv::bench
