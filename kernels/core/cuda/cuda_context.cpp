#include <cuda_profiler_api.h>

#include <cstdlib>
#include <memory>

#include "kernels/core/backend.h"
#include "kernels/core/cuda/cuda_state.h"
#include "kernels/core/error.h"

namespace rwkv {
namespace cuda {

void throw_cuda(cudaError_t error, const char* what, const char* file, int line) {
  cudaGetLastError();  // a pending error would be reported again by the next, innocent call
  int device = -1;
  cudaGetDevice(&device);
  throw DeviceError(str("CUDA error on device ", device, ": ", what, " gave ",
                        cudaGetErrorName(error), ": ", cudaGetErrorString(error), " (", file, ":",
                        line, ")"));
}

void throw_cublas(cublasStatus_t status, const char* what, const char* file, int line) {
  throw DeviceError(str("cuBLASLt error: ", what, " gave ", cublasLtGetStatusName(status), ": ",
                        cublasLtGetStatusString(status), " (", file, ":", line, ")"));
}

void check_launch(const char* what, cudaStream_t stream, const char* file, int line) {
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) throw_cuda(error, what, file, line);
  static const bool wait = [] {
    const char* v = std::getenv("RWKV_SYNC_LAUNCHES");
    return v != nullptr && v[0] == '1';
  }();
  if (!wait) return;
  cudaStreamCaptureStatus recording = cudaStreamCaptureStatusNone;
  if (cudaStreamIsCapturing(stream, &recording) != cudaSuccess ||
      recording != cudaStreamCaptureStatusNone)
    return;  // nothing runs now, so there is nothing to wait for
  const cudaError_t later = cudaStreamSynchronize(stream);
  if (later != cudaSuccess) throw_cuda(later, what, file, line);
}

}  // namespace cuda

void CudaState::open() {
  RWKV_CUDA(cudaGetDevice(&device));
  RWKV_CUDA(cudaDeviceGetAttribute(&sm_count, cudaDevAttrMultiProcessorCount, device));
  RWKV_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  RWKV_CUBLAS(cublasLtCreate(&lt));
  lt_workspace = backend::cuda_allocate(lt_workspace_bytes, "the workspace of cuBLASLt");
  zero_one = static_cast<float*>(backend::cuda_allocate(2 * sizeof(float), "constants"));
  const float values[2] = {0, 1};
  RWKV_CUDA(cudaMemcpyAsync(zero_one, values, sizeof values, cudaMemcpyHostToDevice, stream));
  RWKV_CUDA(cudaStreamSynchronize(stream));
}

CudaState::~CudaState() {
  if (stream != nullptr) cudaStreamSynchronize(stream);
  if (lt_workspace != nullptr) cudaFree(lt_workspace);
  if (zero_one != nullptr) cudaFree(zero_one);
  if (lt != nullptr) cublasLtDestroy(lt);
  if (stream != nullptr) cudaStreamDestroy(stream);
}

namespace backend {
namespace {

/// Code for sm_90a runs on no other compute capability.
constexpr int kMajor = 9, kMinor = 0;

void require_gpu() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  RWKV_CHECK(error == cudaSuccess && count > 0, DeviceError,
             "device 'cuda' was asked for, but no GPU can be used: ",
             error == cudaSuccess                   ? "there is none"
             : error == cudaErrorInsufficientDriver ? "no NVIDIA driver is installed, or one "
                                                      "older than the CUDA toolkit of this "
                                                      "build"
                                                    : cudaGetErrorString(error),
             "; use --device cpu, or check nvidia-smi and CUDA_VISIBLE_DEVICES");
  int device = 0, major = 0, minor = 0;
  RWKV_CUDA(cudaGetDevice(&device));
  RWKV_CUDA(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  RWKV_CUDA(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
  if (major == kMajor && minor == kMinor) return;
  cudaDeviceProp prop{};
  RWKV_CUDA(cudaGetDeviceProperties(&prop, device));
  throw DeviceError(str("GPU ", device, " is a ", prop.name, " of compute capability ", major, ".",
                        minor, "; the kernels of this build are for ", kMajor, ".", kMinor,
                        " (Hopper: H100, H200, GH200); choose another GPU with "
                        "CUDA_VISIBLE_DEVICES, or use --device cpu"));
}

}  // namespace

bool has_cuda() {
  return true;
}

std::string cuda_device_text() {
  require_gpu();
  int device = 0;
  RWKV_CUDA(cudaGetDevice(&device));
  cudaDeviceProp prop{};
  RWKV_CUDA(cudaGetDeviceProperties(&prop, device));
  int driver = 0;
  RWKV_CUDA(cudaDriverGetVersion(&driver));
  return str(prop.name, ", ", prop.multiProcessorCount, " SM, compute capability ", prop.major, ".",
             prop.minor, ", driver ", driver / 1000, ".", driver % 1000 / 10);
}

CudaState* cuda_create() {
  require_gpu();
  auto state = std::make_unique<CudaState>();
  state->open();
  return state.release();
}

void cuda_destroy(CudaState* state) noexcept {
  delete state;
}

Stream cuda_stream(const CudaState& state) {
  return state.stream;
}

void cuda_synchronize(Stream stream) {
  RWKV_CUDA(cudaStreamSynchronize(static_cast<cudaStream_t>(stream)));
}

void cuda_profile(bool on) {
  RWKV_CUDA(on ? cudaProfilerStart() : cudaProfilerStop());
}

DeviceMemory cuda_memory() {
  require_gpu();
  DeviceMemory m{};
  RWKV_CUDA(cudaMemGetInfo(&m.free, &m.total));
  return m;
}

void* cuda_allocate(size_t bytes, const std::string& purpose) {
  void* p = nullptr;
  const cudaError_t error = cudaMalloc(&p, bytes);
  if (error != cudaSuccess && error != cudaErrorMemoryAllocation)  // an earlier kernel's, say
    cuda::throw_cuda(error, str("allocating for ", purpose).c_str(), __FILE__, __LINE__);
  if (error != cudaSuccess) {
    cudaGetLastError();
    size_t free_bytes = 0, total = 0;
    cudaMemGetInfo(&free_bytes, &total);
    throw DeviceError(str("allocating ", format_bytes(bytes), " for ", purpose, " on the GPU: ",
                          cudaGetErrorString(error), "; ", format_bytes(free_bytes), " of ",
                          format_bytes(total), " are free; use a smaller batch or context, or ",
                          "train.grad_checkpointing=block"));
  }
  // cudaMemset returns before the bytes are zero, and our streams do not wait for its stream:
  // without this wait it could wipe out what is copied here first.
  cudaError_t cleared = cudaMemset(p, 0, bytes);
  if (cleared == cudaSuccess) cleared = cudaStreamSynchronize(cudaStreamLegacy);
  if (cleared != cudaSuccess) cudaFree(p);
  RWKV_CUDA(cleared);
  return p;
}

void cuda_release(void* p) noexcept {
  cudaFree(p);
}

void cuda_copy(Stream stream, void* to, const void* from, size_t bytes, CopyKind kind) {
  const auto direction = kind == CopyKind::kToDevice ? cudaMemcpyHostToDevice
                         : kind == CopyKind::kToHost ? cudaMemcpyDeviceToHost
                                                     : cudaMemcpyDeviceToDevice;
  RWKV_CUDA(cudaMemcpyAsync(to, from, bytes, direction, static_cast<cudaStream_t>(stream)));
}

void cuda_fill_zero(Stream stream, void* p, size_t bytes) {
  RWKV_CUDA(cudaMemsetAsync(p, 0, bytes, static_cast<cudaStream_t>(stream)));
}

void* cuda_allocate_host(size_t bytes) {
  void* p = nullptr;
  RWKV_CUDA(cudaMallocHost(&p, bytes));
  return p;
}

void cuda_release_host(void* p) noexcept {
  cudaFreeHost(p);
}

void cuda_capture_begin(Stream stream) {
  RWKV_CUDA(
      cudaStreamBeginCapture(static_cast<cudaStream_t>(stream), cudaStreamCaptureModeThreadLocal));
}

void* cuda_capture_end(Stream stream, bool discard, size_t* nodes) {
  cudaGraph_t graph = nullptr;
  const cudaError_t ended = cudaStreamEndCapture(static_cast<cudaStream_t>(stream), &graph);
  if (discard) {  // the recording failed, and its own error is on the way
    if (graph != nullptr) cudaGraphDestroy(graph);
    cudaGetLastError();
    return nullptr;
  }
  RWKV_CUDA(ended);
  cudaGraphExec_t ready = nullptr;
  cudaError_t error = cudaGraphGetNodes(graph, nullptr, nodes);
  if (error == cudaSuccess) error = cudaGraphInstantiate(&ready, graph, 0);
  cudaGraphDestroy(graph);
  if (error == cudaSuccess) error = cudaGraphUpload(ready, static_cast<cudaStream_t>(stream));
  if (error != cudaSuccess && ready != nullptr) cudaGraphExecDestroy(ready);
  RWKV_CUDA(error);
  return ready;
}

void cuda_graph_launch(void* graph, Stream stream) {
  RWKV_CUDA(
      cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph), static_cast<cudaStream_t>(stream)));
}

void cuda_graph_release(void* graph) noexcept {
  cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph));
}

void* cuda_event_create() {
  cudaEvent_t event = nullptr;
  RWKV_CUDA(cudaEventCreate(&event));
  return event;
}

void cuda_event_record(void* event, Stream stream) {
  RWKV_CUDA(cudaEventRecord(static_cast<cudaEvent_t>(event), static_cast<cudaStream_t>(stream)));
}

void cuda_event_record_in_graph(void* event, Stream stream) {
  RWKV_CUDA(cudaEventRecordWithFlags(static_cast<cudaEvent_t>(event),
                                     static_cast<cudaStream_t>(stream), cudaEventRecordExternal));
}

void cuda_stream_wait(Stream stream, void* event) {
  RWKV_CUDA(
      cudaStreamWaitEvent(static_cast<cudaStream_t>(stream), static_cast<cudaEvent_t>(event), 0));
}

double cuda_event_seconds(void* begin, void* end) {
  float ms = 0;
  RWKV_CUDA(cudaEventSynchronize(static_cast<cudaEvent_t>(end)));
  RWKV_CUDA(
      cudaEventElapsedTime(&ms, static_cast<cudaEvent_t>(begin), static_cast<cudaEvent_t>(end)));
  return static_cast<double>(ms) * 1e-3;
}

void cuda_event_release(void* event) noexcept {
  cudaEventDestroy(static_cast<cudaEvent_t>(event));
}

}  // namespace backend
}  // namespace rwkv
