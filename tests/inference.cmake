rwkv_test(inference_sampler_test LABEL unit SOURCES unit/inference_sampler_test.cpp
  DEPS rwkv_inference)
rwkv_test(inference_text_stream_test LABEL unit SOURCES unit/inference_text_stream_test.cpp
  DEPS rwkv_inference)
rwkv_test(inference_engine_test LABEL unit SOURCES unit/inference_engine_test.cpp
  DEPS rwkv_inference)
rwkv_test(inference_generate_test LABEL unit SOURCES unit/inference_generate_test.cpp
  DEPS rwkv_inference)
