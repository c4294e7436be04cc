#pragma once
/// What the core needs from CUDA, in types that every compiler knows. Implemented by core/cuda/ in
/// builds with CUDA and by core/cuda_absent.cpp, which throws DeviceError, in others.

#include <cstddef>
#include <string>
#include <string_view>

#include "kernels/core/context.h"
#include "kernels/core/gemm.h"

namespace rwkv::backend {

/// This build has CUDA kernels (a device may still be missing).
bool has_cuda();
/// "NVIDIA H200, 132 SM, compute capability 9.0, driver 13.0"; throws DeviceError without a device.
std::string cuda_device_text();

CudaState* cuda_create();
void cuda_destroy(CudaState* state) noexcept;
Stream cuda_stream(const CudaState& state);
void cuda_synchronize(Stream stream);
/// Begins and ends what a profiler looks at, if one waits for that (ncu --profile-from-start off).
void cuda_profile(bool on);

/// Memory of the current device, in bytes. What this process holds already does not count as free.
struct DeviceMemory {
  size_t free, total;
};
/// Throws DeviceError without a device.
DeviceMemory cuda_memory();
/// Device memory that a context takes for cuBLASLt: what NVIDIA advises for Hopper.
inline constexpr size_t kGemmWorkspaceBytes = size_t{32} << 20;

/// Device memory, zero-filled. Throws DeviceError naming purpose and size.
void* cuda_allocate(size_t bytes, const std::string& purpose);
void cuda_release(void* p) noexcept;

enum class CopyKind { kToDevice, kToHost, kOnDevice };
/// Queued on the stream; host memory that is not pinned makes the call wait.
void cuda_copy(Stream stream, void* to, const void* from, size_t bytes, CopyKind kind);
void cuda_fill_zero(Stream stream, void* p, size_t bytes);

/// Host memory that copies to and from the device need not stage. Throws DeviceError.
void* cuda_allocate_host(size_t bytes);
void cuda_release_host(void* p) noexcept;

/// From here to cuda_capture_end the stream's work is recorded, not run.
void cuda_capture_begin(Stream stream);
/// The recorded work, ready for cuda_graph_launch; null if `discard`. Counts its kernels and
/// copies.
void* cuda_capture_end(Stream stream, bool discard, size_t* nodes);
void cuda_graph_launch(void* graph, Stream stream);
void cuda_graph_release(void* graph) noexcept;

/// Points in a stream's time.
void* cuda_event_create();
void cuda_event_record(void* event, Stream stream);
/// While the stream's work is recorded: every replay of the graph records the event.
void cuda_event_record_in_graph(void* event, Stream stream);
/// Work queued on the stream from now on waits for the event's latest record.
void cuda_stream_wait(Stream stream, void* event);
/// Waits for `end`.
double cuda_event_seconds(void* begin, void* end);
void cuda_event_release(void* event) noexcept;

void cuda_gemm(Context& ctx, const GemmCall& call);
/// Products of `lane` look up and keep their algorithms in `owner`, which must outlive it.
void cuda_share_gemms(CudaState& lane, CudaState& owner);
void cuda_measure_gemms(CudaState& state, bool on);
std::string cuda_export_gemms(const CudaState& state, GemmChoices which);
size_t cuda_import_gemms(CudaState& state, std::string_view text);

}  // namespace rwkv::backend
