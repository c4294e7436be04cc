#include "tools/bench/scale_exchanges.h"

#include <functional>
#include <memory>

#include "kernels/core/arena.h"
#include "kernels/core/stream_event.h"
#include "kernels/core/trace.h"
#include "model/rwkv.h"
#include "trainer/shard_layout.h"

namespace rwkv::bench {
namespace {

/// Waits for the collectives, too.
void finish(Context& ctx, const Communicator& comm) {
  if (comm.stream() == nullptr) return;
  StreamEvent done;
  done.record_on(comm.stream());
  done.wait(ctx);
  ctx.synchronize("end of the collectives");
}

/// Seconds of one of `runs` in a row.
double time_work(Context& ctx, Communicator& comm, int runs, const std::function<void()>& work) {
  double seconds = 0;
  abort_on_error(&comm.group(), [&] {
    work();
    finish(ctx, comm);
    comm.group().barrier();
    const double start = now_seconds();
    for (int i = 0; i < runs; ++i) work();
    finish(ctx, comm);
    seconds = (now_seconds() - start) / runs;
  });
  return seconds;
}

}  // namespace

Exchanges time_exchanges(const ModelConfig& config, Communicator& comm, DType there, DType back) {
  const auto model = make_model(config);
  const ShardLayout layout(model->params(), comm.size());
  Context ctx(comm.device());
  std::unique_ptr<Arena> memory;
  agree(&comm.group(), [&] {
    memory = std::make_unique<Arena>(
        comm.device(), static_cast<size_t>(layout.elements()) * sizeof(float), "gradients");
  });
  const auto at = [&](const ShardLayout::Segment& s, DType type) {
    return memory->data() + static_cast<size_t>(s.offset) * dtype_bytes(type);
  };
  const auto part = [&](const ShardLayout::Segment& s, DType type) {
    return at(s, type) + static_cast<size_t>(comm.rank() * s.shard) * dtype_bytes(type);
  };
  constexpr int kRuns = 5;
  Exchanges e;
  e.seconds = time_work(ctx, comm, kRuns, [&] {
    for (const ShardLayout::Segment& s : layout.segments())
      comm.reduce_scatter(at(s, there), part(s, there), s.shard, there);
    for (const ShardLayout::Segment& s : layout.segments())
      comm.all_gather(part(s, back), at(s, back), s.shard, back);
  });
  const double others = 1.0 - 1.0 / comm.size();
  e.bytes = others * static_cast<double>(layout.elements()) *
            static_cast<double>(dtype_bytes(there) + dtype_bytes(back));
  const int64_t count = layout.elements();
  const double all_reduce =
      time_work(ctx, comm, kRuns, [&] { comm.all_reduce(memory->data(), count); });
  e.peak_bytes_per_second = 2 * others * static_cast<double>(count) * sizeof(float) / all_reduce;
  return e;
}

std::vector<CollectiveTime> time_collectives(Communicator& comm, size_t most) {
  Context ctx(comm.device());
  std::unique_ptr<Arena> memory;
  agree(&comm.group(),
        [&] { memory = std::make_unique<Arena>(comm.device(), most, "a collective's buffer"); });
  std::byte* const p = memory->data();
  const auto ranks = static_cast<size_t>(comm.size());
  const double others = 1.0 - 1.0 / comm.size();
  std::vector<CollectiveTime> out;
  const auto add = [&](const char* name, size_t bytes, double factor,
                       const std::function<void()>& work) {
    const int runs = bytes <= (size_t{4} << 20) ? 20 : 5;
    const double seconds = time_work(ctx, comm, runs, work);
    out.push_back({name, static_cast<double>(bytes), seconds,
                   factor * others * static_cast<double>(bytes) / seconds});
  };
  for (size_t bytes = size_t{64} << 10; bytes <= most; bytes *= 4) {
    const size_t f32 = bytes / sizeof(float) / ranks, bf16 = bytes / 2 / ranks;
    add("reduce-scatter", f32 * ranks * sizeof(float), 1, [&] {
      comm.reduce_scatter(p, p + static_cast<size_t>(comm.rank()) * f32 * sizeof(float),
                          static_cast<int64_t>(f32), DType::kF32);
    });
    add("all-gather", bf16 * ranks * 2, 1, [&] {
      comm.all_gather(p + static_cast<size_t>(comm.rank()) * bf16 * 2, p,
                      static_cast<int64_t>(bf16), DType::kBF16);
    });
    add("all-reduce", bytes, 2,
        [&] { comm.all_reduce(p, static_cast<int64_t>(bytes / sizeof(float))); });
  }
  return out;
}

}  // namespace rwkv::bench
