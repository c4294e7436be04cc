rwkv_test(core_compare_test LABEL unit SOURCES unit/core_compare_test.cpp DEPS rwkv_core)
