# Compiler settings shared by all targets, and the small functions that declare them.

if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "Build type" FORCE)
endif()
set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
# Installed programs find libraries outside the system folders (CUDA's) where the build found them.
set(CMAKE_INSTALL_RPATH_USE_LINK_PATH ON)
set(CMAKE_CXX_FLAGS_RELEASE "-O3 -DNDEBUG")
# -Og would leave the Eigen kernels too slow for the sanitizer run of the whole suite.
set(CMAKE_CXX_FLAGS_DEBUG "-O1 -g1 -fno-omit-frame-pointer")

include(GNUInstallDirs)

find_program(RWKV_CCACHE ccache)
if(RWKV_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  set(CMAKE_C_COMPILER_LAUNCHER ${RWKV_CCACHE})
  set(CMAKE_CXX_COMPILER_LAUNCHER ${RWKV_CCACHE})
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${RWKV_CCACHE})
endif()

add_library(rwkv_flags INTERFACE)
target_include_directories(rwkv_flags INTERFACE ${PROJECT_SOURCE_DIR} ${PROJECT_BINARY_DIR}/generated)
target_compile_options(rwkv_flags INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Wshadow;-Wno-missing-field-initializers;-Werror>)
# GCC 12 warns about its own AVX-512 intrinsics and string concatenation (false positives, mended
# in GCC 13).
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
  target_compile_options(rwkv_flags INTERFACE
    $<$<COMPILE_LANGUAGE:CXX>:-Wno-maybe-uninitialized;-Wno-uninitialized;-Wno-restrict>)
endif()
if(RWKV_CPU_ARCH AND NOT RWKV_CPU_ARCH STREQUAL "generic")
  target_compile_options(rwkv_flags INTERFACE
    $<$<COMPILE_LANGUAGE:CXX>:-march=${RWKV_CPU_ARCH}>)
  if(RWKV_CPU_ARCH STREQUAL "native" AND EXISTS /proc/cpuinfo)
    # ccache does not see what "native" stands for: make the processor part of what it hashes, so
    # that a cache kept across machines never hands out code for another processor.
    file(STRINGS /proc/cpuinfo cpu_flags REGEX "^(flags|Features|model name)" LIMIT_COUNT 2)
    string(MD5 cpu_id "${cpu_flags}")
    target_compile_definitions(rwkv_flags INTERFACE RWKV_NATIVE_CPU_${cpu_id})
  endif()
endif()
target_compile_options(rwkv_flags INTERFACE
  $<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr;-Xcompiler=-Wall,-Wextra,-Wno-missing-field-initializers,-Werror>)
if(RWKV_SANITIZE)
  # The sanitizers' instrumentation confuses these two flow-based warnings of GCC 12.
  target_compile_options(rwkv_flags INTERFACE
    $<$<COMPILE_LANGUAGE:CXX>:-fsanitize=address,undefined;-fno-sanitize-recover=all;-Wno-maybe-uninitialized;-Wno-stringop-overflow>)
  target_link_options(rwkv_flags INTERFACE -fsanitize=address,undefined)
endif()

# rwkv_library(NAME SOURCES... [DEPS targets...])
function(rwkv_library name)
  cmake_parse_arguments(arg "" "" "DEPS;PRIVATE_DEPS" ${ARGN})
  add_library(${name} STATIC ${arg_UNPARSED_ARGUMENTS})
  target_link_libraries(${name} PUBLIC rwkv_flags ${arg_DEPS} PRIVATE ${arg_PRIVATE_DEPS})
endfunction()

# rwkv_program(NAME SOURCES... [DEPS targets...]) - a program that is installed
function(rwkv_program name)
  cmake_parse_arguments(arg "" "" "DEPS" ${ARGN})
  add_executable(${name} ${arg_UNPARSED_ARGUMENTS})
  target_link_libraries(${name} PRIVATE rwkv_flags ${arg_DEPS})
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/bin)
  install(TARGETS ${name} RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endfunction()
