/// Host side of one token of one sequence: places in shared memory and in the exchange.

#include <algorithm>

#include "kernels/core/cuda/cuda_state.h"
#include "kernels/cuda/decode/step.cuh"

namespace rwkv::decode {
namespace {

using cuda::decode::Args;
using cuda::decode::Tagged;

/// Places of the exchange: a counter, then one vector after the other.
struct Exchange {
  explicit Exchange(const Layout& l) {
    const auto place = [&](int values) {
      const size_t at = bytes;
      bytes += align_up(static_cast<size_t>(values) * sizeof(Tagged));
      return at;
    };
    in = place(l.in_rows());
    gated = place(l.shape.width);
    added = place(l.shape.width);
    hidden = place(l.shape.ffn);
    parts = place(l.shape.width * l.splits);
  }
  size_t bytes = kArenaAlignment, in, gated, added, hidden, parts;
};

}  // namespace

size_t exchange_bytes(const Layout& layout) {
  return Exchange(layout).bytes;
}

std::vector<float> read_hidden(Context& ctx, const Layout& layout, const void* exchange) {
  std::vector<Tagged> tagged(static_cast<size_t>(layout.shape.ffn));
  const auto stream = static_cast<cudaStream_t>(ctx.stream());
  RWKV_CUDA(cudaMemcpyAsync(tagged.data(),
                            static_cast<const std::byte*>(exchange) + Exchange(layout).hidden,
                            tagged.size() * sizeof(Tagged), cudaMemcpyDeviceToHost, stream));
  RWKV_CUDA(cudaStreamSynchronize(stream));
  std::vector<float> values;
  for (const Tagged& t : tagged) values.push_back(bits_float(t.bits));
  return values;
}

int multiprocessors(const Context& ctx) {
  return ctx.cuda().sm_count;
}

void step(Context& ctx, const Layout& l, DType weights, const StepCall& c) {
  RWKV_ASSERT(static_cast<int>(dtype_bytes(weights)) == l.element, "decode step: layout of ",
              l.element, " bytes a weight for ", dtype_name(weights));
  RWKV_ASSERT(l.blocks <= ctx.cuda().sm_count, "decode step: ", l.blocks, " blocks");
  RWKV_ASSERT(l.inputs <= cuda::decode::kMostInputs, "decode step: ", l.inputs, " inputs");
  const Exchange e(l);
  const auto at = [&](size_t offset) { return reinterpret_cast<Tagged*>(c.exchange + offset); };
  Args a{};
  a.l = l;
  a.weights = c.weights;
  a.params = c.params;
  a.shift = c.shift;
  a.wkv = c.wkv;
  a.exponents = c.exponents;
  a.elapsed = c.elapsed;
  a.slot = c.slot;
  a.token = c.token;
  a.logits = c.logits;
  a.epoch = reinterpret_cast<uint32_t*>(c.exchange);
  a.in = at(e.in);
  a.gated = at(e.gated);
  a.added = at(e.added);
  a.hidden = at(e.hidden);
  a.parts = at(e.parts);
  a.stamps = c.stamps;
  a.nap = static_cast<uint32_t>(c.nap);
  a.skip = c.skip;
  a.scale = c.state_scale;
  a.inverse = 1 / c.state_scale;
  a.stream_value = c.stream_value;

  const int packs = l.shape.width / l.pack(),
            packs_of_row =
                cuda::decode::packs_of_row(cuda::decode::pairs_of_width(l.shape.width), l.pack());
  a.row_warps = (packs + 32 * packs_of_row - 1) / (32 * packs_of_row);
  a.groups = kWarps / a.row_warps;
  a.pass_bytes = a.groups * l.shape.width * l.element;
  a.chunk_rows = cuda::decode::kChunkRows / (kSlotPasses * a.groups) * kSlotPasses * a.groups;
  while (l.pack() << a.slice_shift < l.slice) ++a.slice_shift;
  const int slot_bytes = cuda::decode::slot_bytes(packs_of_row);

  const int rows = l.shape.ffn / l.splits;
  const int listed = (rows + 2 * kThreads - 1) / (2 * kThreads) * 2 * kThreads;
  const auto up = [](int bytes) {
    return static_cast<int>(align_up(static_cast<size_t>(bytes), 128));
  };
  a.lora_at = up(cuda::decode::kHeadAt + static_cast<int>(sizeof(cuda::decode::HeadMemory)));
  a.residual_at = a.lora_at + up(4 * l.padded_ranks());
  a.kept_at = a.residual_at + 8 * kThreads * cuda::decode::pairs_of_width(l.shape.width);
  a.x_at = a.kept_at + up(2 * 8 * (l.shape.width / 2 / l.blocks + 1));
  a.sums_at =
      a.x_at +
      up(std::max({4 * l.inputs * l.shape.width, 6 * listed,
                   4 * (cuda::decode::kStateFloats + cuda::decode::kHeadVectors * kHeadSize)}));
  a.ring_at = a.sums_at + up(4 * kWarps * std::max(cuda::decode::kChunkRows, l.slice));
  int most = 0;
  RWKV_CUDA(
      cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, ctx.cuda().device));
  const int fit = std::min((most - a.ring_at) / slot_bytes, kMaxSlots);
  a.slots = c.slots > 0 ? std::min(c.slots, fit) : fit;
  a.flight = c.flight > 0 ? std::min(c.flight, a.slots) : a.slots;
  RWKV_CHECK(a.slots >= 2, ConfigError, "decode step: width ", l.shape.width,
             " and channel mix of ", l.shape.ffn, " need ", a.ring_at, " of ", most,
             " bytes of shared memory");
  const int shared = a.ring_at + a.slots * slot_bytes;
  if (weights == DType::kF16)
    cuda::decode::launch_step<__half>(ctx, a, c.half_state, shared);
  else if (weights == DType::kBF16)
    cuda::decode::launch_step<__nv_bfloat16>(ctx, a, c.half_state, shared);
  else
    cuda::decode::launch_step<float>(ctx, a, c.half_state, shared);
}

}  // namespace rwkv::decode
