rwkv_test(wkv7_test LABEL ops
  SOURCES ops/wkv7_test.cpp ops/wkv7_registry_test.cpp
          ${PROJECT_SOURCE_DIR}/kernels/cases/wkv7_cases.cpp
  DEPS rwkv_kernels)
rwkv_test(golden_wkv7_ops LABEL golden SOURCES golden/wkv7_ops_test.cpp DEPS rwkv_kernels rwkv_data)
