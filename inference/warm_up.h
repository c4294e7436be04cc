#pragma once
/// First uses of a runner's shapes, ahead of the first request.

#include <cstdint>
#include <span>

#include "inference/sequence_runner.h"

namespace rwkv {

/// What a runner does for the first time may take long (products are tried out, launch graphs
/// recorded): not in the middle of somebody's text. Decodes in every bucket (at most slots()), and
/// alone where that goes another way; computes the longest piece of a prompt first and then one of
/// every length to which pieces are padded (runners whose groups are numbered by it): in the one
/// size of calls if the runner is exact, else with 1, 2, 4, ... pieces up to the group's, the sizes
/// that calls are filled up to. All slots are fresh afterwards.
void warm_up(SequenceRunner& runner, std::span<const int64_t> buckets);

}  // namespace rwkv
