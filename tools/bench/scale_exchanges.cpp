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

/// Memory of a benchmark's collectives: of the communicator, with as much again for what arrives,
/// if copy engines move it.
class Buffers {
 public:
  Buffers(Communicator& comm, size_t bytes, bool copy_engines)
      : comm_(comm), copies_(copy_engines && comm.uses_copy_engines()) {
    agree(&comm.group(), [&] {
      data_ = copies_ ? comm.allocate(bytes, "a collective's buffer")
                      : Arena(comm.device(), bytes, "a collective's buffer");
      if (copies_) scratch_ = comm.allocate(bytes, "what arrives");
    });
  }
  std::byte* data() const { return data_.data(); }
  /// In place, of elements from data() + offset (bytes).
  void reduce_scatter(size_t offset, int64_t count, DType type) {
    std::byte* p = data() + offset;
    std::byte* part = p + static_cast<size_t>(comm_.rank() * count) * dtype_bytes(type);
    if (copies_)
      comm_.reduce_scatter_by_copies(p, scratch_.data() + offset, part, count, type);
    else
      comm_.reduce_scatter(p, part, count, type);
  }
  void all_gather(size_t offset, int64_t count, DType type) {
    std::byte* p = data() + offset;
    comm_.all_gather(p + static_cast<size_t>(comm_.rank() * count) * dtype_bytes(type), p, count,
                     type);
  }

 private:
  Communicator& comm_;
  bool copies_;
  Arena data_, scratch_;
};

}  // namespace

Exchanges time_exchanges(const ModelConfig& config, Communicator& comm, const ExchangeWish& wish) {
  const auto model = make_model(config);
  const ShardLayout layout(model->params(), comm.size());
  Context ctx(comm.device());
  Buffers memory(comm, static_cast<size_t>(layout.elements()) * sizeof(float), wish.copy_engines);
  const auto at = [](const ShardLayout::Segment& s, DType type) {
    return static_cast<size_t>(s.offset) * dtype_bytes(type);
  };
  constexpr int kRuns = 5;
  Exchanges e;
  e.seconds = time_work(ctx, comm, kRuns, [&] {
    for (const ShardLayout::Segment& s : layout.segments())
      memory.reduce_scatter(at(s, wish.there), s.shard, wish.there);
    for (const ShardLayout::Segment& s : layout.segments())
      memory.all_gather(at(s, wish.back), s.shard, wish.back);
  });
  const double others = 1.0 - 1.0 / comm.size();
  e.bytes = others * static_cast<double>(layout.elements()) *
            static_cast<double>(dtype_bytes(wish.there) + dtype_bytes(wish.back));
  const int64_t count = layout.elements();
  const double all_reduce =
      time_work(ctx, comm, kRuns, [&] { comm.all_reduce(memory.data(), count); });
  e.peak_bytes_per_second = 2 * others * static_cast<double>(count) * sizeof(float) / all_reduce;
  return e;
}

std::vector<CollectiveTime> time_collectives(Communicator& comm, size_t most, bool copy_engines) {
  Context ctx(comm.device());
  Buffers memory(comm, most, copy_engines);
  std::byte* const p = memory.data();
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
    const size_t f32 = bytes / sizeof(float) / ranks / 8 * 8, bf16 = bytes / 2 / ranks / 8 * 8;
    add("reduce-scatter", f32 * ranks * sizeof(float), 1,
        [&] { memory.reduce_scatter(0, static_cast<int64_t>(f32), DType::kF32); });
    add("all-gather", bf16 * ranks * 2, 1,
        [&] { memory.all_gather(0, static_cast<int64_t>(bf16), DType::kBF16); });
    add("all-reduce", bytes, 2,
        [&] { comm.all_reduce(p, static_cast<int64_t>(bytes / sizeof(float))); });
  }
  return out;
}

}  // namespace rwkv::bench
