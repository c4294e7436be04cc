# Third-party packages. Required: HDF5, Eigen, nlohmann/json, CLI11. Optional: OpenMP, zstd, CUDA,
# NCCL, MPI, GoogleTest (tests), each reported in the configure summary.

find_package(OpenMP COMPONENTS CXX)
find_package(Threads REQUIRED)
find_package(Eigen3 3.4 QUIET NO_MODULE)
find_package(nlohmann_json 3.9 QUIET)
find_package(CLI11 2.1 QUIET)
set(HDF5_PREFER_PARALLEL OFF)
find_package(HDF5 1.10 QUIET COMPONENTS C)
set(missing "")
foreach(package "Eigen3=libeigen3-dev, 3.4 or newer" "nlohmann_json=nlohmann-json3-dev, 3.9 or newer"
                "CLI11=libcli11-dev, 2.1 or newer" "HDF5=libhdf5-dev, 1.10 or newer")
  string(REGEX MATCH "^[^=]+" name "${package}")
  if(NOT ${name}_FOUND)
    string(REPLACE "=" " (Debian/Ubuntu: " line "${package}")
    string(APPEND missing "\n  ${line})")
  endif()
endforeach()
if(missing)
  message(FATAL_ERROR "These packages were not found:${missing}\n"
    "'tools/install_deps.sh build' installs what is missing. If one is in an unusual place, name it "
    "with -DCMAKE_PREFIX_PATH=DIR.")
endif()

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

if(NOT RWKV_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "RWKV_CUDA=${RWKV_CUDA}: expected AUTO, ON or OFF")
endif()
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
