rwkv_test(core_compare_test LABEL unit SOURCES unit/core_compare_test.cpp DEPS rwkv_core)
rwkv_test(core_few_rows_test LABEL unit SOURCES unit/core_few_rows_test.cpp DEPS rwkv_core)
rwkv_test(core_gemm_test LABEL unit SOURCES unit/core_gemm_test.cpp DEPS rwkv_core)
rwkv_test(core_machine_memory_test LABEL unit
  SOURCES unit/core_machine_memory_test.cpp DEPS rwkv_core)
rwkv_test(core_test LABEL unit
  SOURCES unit/core_types_test.cpp unit/core_rng_test.cpp unit/core_parallel_test.cpp
  DEPS rwkv_core)
