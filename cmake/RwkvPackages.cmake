# Third-party packages. Required: HDF5, Eigen, nlohmann/json, CLI11. Optional: OpenMP, zstd, CUDA,
# NCCL, MPI, GoogleTest (tests), each reported in the configure summary.

find_package(OpenMP COMPONENTS CXX)
find_package(Eigen3 3.4 REQUIRED NO_MODULE)
find_package(nlohmann_json 3.9 REQUIRED)
find_package(CLI11 2.1 REQUIRED)
set(HDF5_PREFER_PARALLEL OFF)
find_package(HDF5 1.10 REQUIRED COMPONENTS C)
find_package(Threads REQUIRED)

add_library(rwkv_hdf5 INTERFACE)
target_include_directories(rwkv_hdf5 SYSTEM INTERFACE ${HDF5_C_INCLUDE_DIRS})
target_link_libraries(rwkv_hdf5 INTERFACE ${HDF5_C_LIBRARIES})
target_compile_definitions(rwkv_hdf5 INTERFACE H5_USE_110_API)

find_library(RWKV_ZSTD_LIBRARY zstd)
find_path(RWKV_ZSTD_INCLUDE zstd.h)
add_library(rwkv_zstd INTERFACE)
if(RWKV_ZSTD_LIBRARY AND RWKV_ZSTD_INCLUDE)
  set(RWKV_HAVE_ZSTD ON)
  target_include_directories(rwkv_zstd SYSTEM INTERFACE ${RWKV_ZSTD_INCLUDE})
  target_link_libraries(rwkv_zstd INTERFACE ${RWKV_ZSTD_LIBRARY})
  target_compile_definitions(rwkv_zstd INTERFACE RWKV_HAVE_ZSTD=1)
endif()

find_package(MPI COMPONENTS CXX QUIET)

set(RWKV_HAVE_CUDA OFF)
if(NOT RWKV_CUDA STREQUAL "OFF")
  find_package(CUDAToolkit QUIET)
  if(CUDAToolkit_FOUND)
    set(RWKV_HAVE_CUDA ON)
  elseif(RWKV_CUDA STREQUAL "ON")
    message(FATAL_ERROR "RWKV_CUDA=ON, but no CUDA toolkit was found. "
      "Put nvcc on the PATH, set CUDAToolkit_ROOT, or configure with -DRWKV_CUDA=OFF.")
  endif()
endif()
find_library(RWKV_NCCL_LIBRARY nccl)

if(RWKV_BUILD_TESTS)
  find_package(GTest 1.11 QUIET)
  if(NOT GTest_FOUND)
    message(STATUS "GoogleTest not found: tests are left out (Debian/Ubuntu: libgtest-dev)")
    set(RWKV_BUILD_TESTS OFF)
  endif()
endif()
