set(RWKV_WKV_SOURCES
  wkv/registry.cpp
  wkv/wkv7_op.cpp
  wkv/cpu/wkv7_common.cpp
  wkv/cpu/wkv7_serial.cpp
  wkv/cpu/wkv7_chunk16.cpp
  wkv/cpu/wkv7_chunk32.cpp
  wkv/cpu/wkv7_chunk64.cpp
)
if(RWKV_HAVE_CUDA)
  list(APPEND RWKV_WKV_SOURCES
    wkv/cuda/wkv7_kernels.cpp
    wkv/cuda/wkv7_serial.cu
    wkv/cuda/wkv7_segments.cu
    wkv/cuda/wkv7_chunk_forward.cu
    wkv/cuda/wkv7_chunk_backward.cu
  )
endif()
