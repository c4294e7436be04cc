rwkv_test(wkv7_test LABEL ops
  SOURCES ops/wkv7_test.cpp ops/wkv7_registry_test.cpp
          ${PROJECT_SOURCE_DIR}/kernels/cases/wkv7_cases.cpp
  DEPS rwkv_kernels)
rwkv_test(golden_wkv7_ops LABEL golden SOURCES golden/wkv7_ops_test.cpp DEPS rwkv_kernels rwkv_data)

# The benchmark refuses to time a wrong variant, so one repeat is a test of all of them.
if(TARGET rwkv-bench)
  add_test(NAME rwkv_bench_wkv
    COMMAND rwkv-bench wkv --repeats 1 --shape 1,20,2,32 --shape 2,1,1,64
            --json ${CMAKE_CURRENT_BINARY_DIR}/bench_wkv.json
            --plot ${CMAKE_CURRENT_BINARY_DIR}/bench_wkv.gp)
  add_test(NAME rwkv_bench_wkv_list COMMAND rwkv-bench wkv --list --shape 1,20,2,48)
  set_tests_properties(rwkv_bench_wkv rwkv_bench_wkv_list PROPERTIES LABELS integration TIMEOUT 120)
endif()
