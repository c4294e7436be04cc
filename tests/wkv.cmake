rwkv_test(wkv7_test LABEL ops
  SOURCES ops/wkv7_test.cpp ${PROJECT_SOURCE_DIR}/kernels/cases/wkv7_cases.cpp
  DEPS rwkv_kernels)
