rwkv_test(op_test LABEL ops SOURCES ops/op_test.cpp ops/op_harness.cpp DEPS rwkv_kernels)
rwkv_gpu_test(cuda_op_test SOURCES ops/cuda_op_test.cpp ops/cuda_harness.cpp DEPS rwkv_kernels)
rwkv_test(op_special_test LABEL ops SOURCES ops/op_special_test.cpp ops/op_harness.cpp
  DEPS rwkv_kernels)
rwkv_test(op_math_test LABEL ops SOURCES ops/math_test.cpp DEPS rwkv_kernels)
