// Stands in for core/cuda/ in builds without CUDA.

#include "kernels/core/backend.h"

namespace rwkv::backend {
namespace {

[[noreturn]] void absent() {
  throw DeviceError(
      "device 'cuda' was asked for, but this build has CPU kernels only; use --device cpu, or "
      "build with a CUDA toolkit (nvcc on the PATH)");
}

}  // namespace

bool has_cuda() {
  return false;
}
std::string cuda_device_text() {
  absent();
}
CudaState* cuda_create() {
  absent();
}
void cuda_destroy(CudaState*) noexcept {}
Stream cuda_stream(const CudaState&) {
  absent();
}
void cuda_synchronize(Stream) {
  absent();
}
void cuda_profile(bool) {
  absent();
}
DeviceMemory cuda_memory() {
  absent();
}
void* cuda_allocate(size_t, const std::string&) {
  absent();
}
void cuda_release(void*) noexcept {}
void cuda_copy(Stream, void*, const void*, size_t, CopyKind) {
  absent();
}
void cuda_fill_zero(Stream, void*, size_t) {
  absent();
}
void* cuda_allocate_host(size_t) {
  absent();
}
void cuda_release_host(void*) noexcept {}
void cuda_capture_begin(Stream) {
  absent();
}
void* cuda_capture_end(Stream, bool, size_t*) {
  absent();
}
void cuda_graph_launch(void*, Stream) {
  absent();
}
void cuda_graph_release(void*) noexcept {}
void* cuda_event_create() {
  absent();
}
void cuda_event_record_in_graph(void*, Stream) {
  absent();
}
void cuda_event_record(void*, Stream) {
  absent();
}
void cuda_stream_wait(Stream, void*) {
  absent();
}
double cuda_event_seconds(void*, void*) {
  absent();
}
void cuda_event_release(void*) noexcept {}
void cuda_gemm(Context&, const GemmCall&) {
  absent();
}
void cuda_share_gemms(CudaState&, CudaState&) {
  absent();
}
void cuda_measure_gemms(CudaState&, bool) {
  absent();
}
std::string cuda_export_gemms(const CudaState&, GemmChoices) {
  absent();
}
size_t cuda_import_gemms(CudaState&, std::string_view) {
  absent();
}

}  // namespace rwkv::backend
