# The only tests with the label "golden": everything that reads the reference files.
rwkv_test(golden_rwkv7_tiny LABEL golden SOURCES golden/rwkv7_tiny_test.cpp DEPS rwkv_trainer)
rwkv_test(golden_rwkv7_train LABEL golden SOURCES golden/rwkv7_train_test.cpp DEPS rwkv_trainer)
# The same on a GPU.
rwkv_gpu_test(cuda_golden_rwkv7_tiny SOURCES golden/rwkv7_tiny_test.cpp DEPS rwkv_trainer)
rwkv_gpu_test(cuda_golden_rwkv7_train SOURCES golden/rwkv7_train_test.cpp DEPS rwkv_trainer)
