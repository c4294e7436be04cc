rwkv_test(op_test LABEL ops SOURCES ops/op_test.cpp ops/op_harness.cpp DEPS rwkv_kernels)
