rwkv_test(model_test LABEL unit SOURCES unit/model_test.cpp DEPS rwkv_model)
