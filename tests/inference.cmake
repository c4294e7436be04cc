rwkv_test(inference_sampler_test LABEL unit SOURCES unit/inference_sampler_test.cpp
  DEPS rwkv_inference)
rwkv_test(inference_text_stream_test LABEL unit SOURCES unit/inference_text_stream_test.cpp
  DEPS rwkv_inference)
rwkv_test(inference_engine_test LABEL unit SOURCES unit/inference_engine_test.cpp
  DEPS rwkv_inference)
rwkv_test(inference_generate_test LABEL unit SOURCES unit/inference_generate_test.cpp
  DEPS rwkv_inference)
rwkv_test(decode_layout_test LABEL unit SOURCES unit/decode_layout_test.cpp DEPS rwkv_inference)
if(RWKV_HAVE_CUDA)
  rwkv_test(cuda_inference_test LABEL gpu SOURCES unit/cuda_inference_test.cpp
    DEPS rwkv_inference)
  rwkv_test(cuda_state_file_test LABEL gpu SOURCES unit/cuda_state_file_test.cpp
    DEPS rwkv_inference)
  rwkv_test(cuda_decode_runner_test LABEL gpu SOURCES unit/cuda_decode_runner_test.cpp
    DEPS rwkv_inference)
  rwkv_test(cuda_prefill_test LABEL gpu SOURCES unit/cuda_prefill_test.cpp DEPS rwkv_inference)
  rwkv_test(cuda_products_test LABEL gpu SOURCES unit/cuda_products_test.cpp DEPS rwkv_inference)
  rwkv_test(cuda_draw_test LABEL gpu SOURCES unit/cuda_draw_test.cpp DEPS rwkv_inference)
  rwkv_test(cuda_decode_test LABEL gpu SOURCES unit/cuda_decode_test.cpp DEPS rwkv_inference)
endif()
rwkv_test(wkv_compare_test LABEL unit SOURCES unit/wkv_compare_test.cpp DEPS rwkv_inference)
rwkv_test(generate_programs_test LABEL integration SOURCES integration/generate_programs_test.cpp
  DEPS rwkv_inference)
add_dependencies(generate_programs_test rwkv-generate rwkv-eval)
rwkv_test(convert_program_test LABEL integration SOURCES integration/convert_program_test.cpp
  DEPS rwkv_trainer rwkv_inference nlohmann_json::nlohmann_json)
add_dependencies(convert_program_test rwkv-convert rwkv-data rwkv-generate rwkv-eval rwkv-train)
# Waiting threads sleep: spinning ones stop each other when ctest runs as many programs as cores.
set_tests_properties(inference_engine_test inference_generate_test generate_programs_test
  PROPERTIES ENVIRONMENT OMP_WAIT_POLICY=passive)
rwkv_test(inference_files_test LABEL unit SOURCES unit/inference_files_test.cpp
  DEPS rwkv_inference nlohmann_json::nlohmann_json)
rwkv_test(hostile_files_test LABEL unit SOURCES unit/hostile_files_test.cpp DEPS rwkv_inference)
rwkv_test(hostile_cases_test LABEL unit SOURCES unit/hostile_cases_test.cpp DEPS rwkv_inference)
rwkv_test(inference_state_test LABEL unit SOURCES unit/inference_state_test.cpp DEPS rwkv_inference)
rwkv_test(inference_runner_test LABEL unit SOURCES unit/inference_runner_test.cpp
  DEPS rwkv_inference)
rwkv_gpu_test(cuda_inference_runner_test SOURCES unit/inference_runner_test.cpp DEPS rwkv_inference)
rwkv_test(inference_serving_test LABEL unit SOURCES unit/inference_serving_test.cpp
  DEPS rwkv_inference)
rwkv_test(inference_scheduler_test LABEL unit SOURCES unit/inference_scheduler_test.cpp
  DEPS rwkv_inference)
rwkv_test(inference_prompts_test LABEL unit SOURCES unit/inference_prompts_test.cpp
  DEPS rwkv_inference)
rwkv_test(chat_session_test LABEL unit SOURCES unit/chat_session_test.cpp DEPS rwkv_inference)
rwkv_test(chat_program_test LABEL integration SOURCES integration/chat_program_test.cpp
  DEPS rwkv_inference)
add_dependencies(chat_program_test rwkv-generate)
rwkv_test(server_request_test LABEL unit SOURCES unit/server_request_test.cpp DEPS rwkv_inference)
if(RWKV_HAVE_HTTPLIB)
  rwkv_test(serve_program_test LABEL integration SOURCES integration/serve_program_test.cpp
    DEPS rwkv_inference rwkv_httplib nlohmann_json::nlohmann_json)
  rwkv_test(serve_hostile_test LABEL integration SOURCES integration/serve_hostile_test.cpp
    DEPS rwkv_inference rwkv_httplib nlohmann_json::nlohmann_json)
  add_dependencies(serve_program_test rwkv-serve)
  add_dependencies(serve_hostile_test rwkv-serve rwkv-convert)
endif()
