rwkv_test(wkv7_test LABEL ops
  SOURCES ops/wkv7_test.cpp ops/wkv7_reference_test.cpp ops/wkv7_registry_test.cpp
          ${PROJECT_SOURCE_DIR}/kernels/cases/wkv7_cases.cpp
  DEPS rwkv_kernels)
# A state of binary16 numbers, with and without dither.
rwkv_test(wkv7_fp16_test LABEL ops
  SOURCES ops/half_test.cpp ops/wkv7_fp16_test.cpp ops/wkv7_fp16_exponent_test.cpp
          ${PROJECT_SOURCE_DIR}/kernels/cases/wkv7_cases.cpp
  DEPS rwkv_kernels)
rwkv_test(fp16_state_test LABEL unit SOURCES unit/fp16_state_test.cpp DEPS rwkv_inference)
rwkv_test(golden_dither LABEL golden SOURCES golden/dither_test.cpp DEPS rwkv_kernels rwkv_data)
rwkv_test(golden_wkv7_ops LABEL golden SOURCES golden/wkv7_ops_test.cpp DEPS rwkv_kernels rwkv_data)
rwkv_gpu_test(cuda_wkv7_test
  SOURCES ops/wkv7_test.cpp ${PROJECT_SOURCE_DIR}/kernels/cases/wkv7_cases.cpp
  DEPS rwkv_kernels)
rwkv_gpu_test(cuda_wkv7_fp16_test
  SOURCES ops/wkv7_fp16_test.cpp ops/wkv7_fp16_exponent_test.cpp
          ${PROJECT_SOURCE_DIR}/kernels/cases/wkv7_cases.cpp
  DEPS rwkv_kernels)
rwkv_gpu_test(cuda_fp16_state_test SOURCES unit/cuda_fp16_state_test.cpp DEPS rwkv_inference)
rwkv_gpu_test(cuda_golden_dither SOURCES golden/dither_test.cpp DEPS rwkv_kernels rwkv_data)
rwkv_gpu_test(cuda_dither_test SOURCES ops/cuda_dither_test.cpp ops/dither_device.cu DEPS rwkv_core)
rwkv_gpu_test(cuda_golden_wkv7_ops SOURCES golden/wkv7_ops_test.cpp DEPS rwkv_kernels rwkv_data)
rwkv_test(wkv4_test LABEL ops
  SOURCES ops/wkv4_test.cpp ops/wkv4_reference_test.cpp ops/wkv4_registry_test.cpp
          ${PROJECT_SOURCE_DIR}/kernels/cases/wkv4_cases.cpp
  DEPS rwkv_kernels)
rwkv_test(golden_wkv4_ops LABEL golden SOURCES golden/wkv4_ops_test.cpp DEPS rwkv_kernels rwkv_data)
rwkv_gpu_test(cuda_wkv4_test
  SOURCES ops/wkv4_test.cpp ${PROJECT_SOURCE_DIR}/kernels/cases/wkv4_cases.cpp
  DEPS rwkv_kernels)
rwkv_gpu_test(cuda_golden_wkv4_ops SOURCES golden/wkv4_ops_test.cpp DEPS rwkv_kernels rwkv_data)

# The benchmark refuses to time a wrong variant, so one repeat is a test of all of them.
if(TARGET rwkv-bench)
  set(record ${CMAKE_CURRENT_BINARY_DIR}/bench_wkv)
  add_test(NAME rwkv_bench_wkv
    COMMAND rwkv-bench wkv --repeats 1 --shape 1,20,2,32 --shape 2,1,1,64
            --json ${record}.json --plot ${record}.gp)
  add_test(NAME rwkv_bench_wkv_from COMMAND rwkv-bench wkv --from ${record}.json --plot ${record}2.gp)
  set_tests_properties(rwkv_bench_wkv PROPERTIES FIXTURES_SETUP bench_wkv)
  set_tests_properties(rwkv_bench_wkv_from PROPERTIES FIXTURES_REQUIRED bench_wkv)
  add_test(NAME rwkv_bench_wkv_list COMMAND rwkv-bench wkv --list --shape 1,20,2,48)
  add_test(NAME rwkv_bench_wkv_lengths
    COMMAND rwkv-bench wkv --repeats 1 --lengths 1:4 --shape 1,1,1,32 --variant serial)
  add_test(NAME rwkv_bench_wkv_decode
    COMMAND rwkv-bench wkv --decode --repeats 1 --shape 2,1,2,64 --json ${record}_decode.json)
  add_test(NAME rwkv_bench_wkv_state_error
    COMMAND rwkv-bench wkv --state-error --steps 70 --json ${record}_error.json
            --plot ${record}_error.gp)
  set_tests_properties(rwkv_bench_wkv_decode rwkv_bench_wkv_state_error
    PROPERTIES LABELS integration TIMEOUT 120)
  add_test(NAME rwkv_bench_ops
    COMMAND rwkv-bench ops --repeats 1 --tokens 8 --width 32 --head-size 32 --vocab 64)
  add_test(NAME rwkv_bench_train_times
    COMMAND rwkv-bench train-times --config pile169m --set train.steps=4 --set train.context=20
            --set model.n_layer=2 --set model.n_embd=64 --set model.vocab_size=50
            --json ${record}_times.json --plot ${record}_times.gp)
  add_test(NAME rwkv_bench_train_times_from
    COMMAND rwkv-bench train-times --from ${record}_times.json --plot ${record}_times2.gp)
  set_tests_properties(rwkv_bench_train_times PROPERTIES FIXTURES_SETUP bench_train_times)
  set_tests_properties(rwkv_bench_train_times_from PROPERTIES FIXTURES_REQUIRED bench_train_times)
  set_tests_properties(rwkv_bench_wkv rwkv_bench_wkv_from rwkv_bench_train_times
    rwkv_bench_train_times_from rwkv_bench_wkv_list rwkv_bench_wkv_lengths rwkv_bench_ops
    PROPERTIES LABELS integration TIMEOUT 120)
  rwkv_test(bench_program_test LABEL integration SOURCES integration/bench_program_test.cpp
    DEPS rwkv_trainer nlohmann_json::nlohmann_json)
  target_include_directories(bench_program_test PRIVATE unit)
  add_dependencies(bench_program_test rwkv-bench)
  if(RWKV_HAVE_CUDA)  # exit code 4: there is no GPU
    add_test(NAME rwkv_bench_cuda_wkv
      COMMAND rwkv-bench wkv --device cuda --repeats 2 --shape 2,300,3,64 --shape 1,1,2,64)
    add_test(NAME rwkv_bench_cuda_ops
      COMMAND rwkv-bench ops --device cuda --repeats 2 --tokens 64 --width 128 --vocab 500)
    add_test(NAME rwkv_bench_cuda_wkv_decode
      COMMAND rwkv-bench wkv --decode --device cuda --repeats 2 --shape 3,1,2,64)
    set_tests_properties(rwkv_bench_cuda_wkv rwkv_bench_cuda_ops rwkv_bench_cuda_wkv_decode
      PROPERTIES LABELS gpu TIMEOUT 120 SKIP_RETURN_CODE 4)
  endif()
endif()
