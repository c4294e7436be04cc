#pragma once
/// Sizes that the two directions of the WKV-4 scan and their planning share.

#include "kernels/wkv/cuda/wkv4_cuda.h"

namespace rwkv::cuda::wkv4 {

// Three blocks of 8 warps fill a multiprocessor: 80 registers per thread.
inline constexpr int kForwardTime = 8;     ///< threads along time
inline constexpr int kForwardOwn = 16;     ///< tokens of a thread
inline constexpr int kForwardOwnSums = 8;  ///< the same for cumsum
inline constexpr int kBackwardTime = 8;
inline constexpr int kBlocks = 3;

// The plan of a scan, by measurements (tools/gpu/wkv4_notes.md). A chain is 32 channels of a
// sequence.
/// Tiles that one block walks faster than several pass on what they have.
inline constexpr int kWalkedTiles = 2;
/// From as many chains on as an H100 or H200 has multiprocessors (memory is planned before a device
/// is chosen, whatever the card has), it walks these.
inline constexpr unsigned kFullGpu = 132;
inline constexpr int kForwardWalked = 4, kBackwardWalked = 8;
/// With so few tiles, or so many chains, a tile takes over from the one before it. Else the way
/// along a chain would take longer than the work, and tiles are combined in groups.
inline constexpr int kFewTiles = 4;
inline constexpr unsigned kForwardChains = 48, kBackwardChains = 64;

int forward_tiles(const Wkv4Shape& s);
int backward_tiles(const Wkv4Shape& s);
size_t forward_workspace_bytes(const Wkv4Shape& s);
size_t backward_workspace_bytes(const Wkv4Shape& s);

}  // namespace rwkv::cuda::wkv4
