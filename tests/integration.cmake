rwkv_test(train_run_test LABEL integration SOURCES integration/train_run_test.cpp
  DEPS rwkv_trainer nlohmann_json::nlohmann_json)
target_include_directories(train_run_test PRIVATE unit)
# Replaces operator new to count, which the sanitizers do themselves.
if(NOT RWKV_SANITIZE)
  rwkv_test(train_allocation_test LABEL integration SOURCES integration/train_allocation_test.cpp
    DEPS rwkv_trainer)
  target_include_directories(train_allocation_test PRIVATE unit)
endif()
rwkv_test(train_program_test LABEL integration SOURCES integration/train_program_test.cpp
  DEPS rwkv_trainer nlohmann_json::nlohmann_json)
target_include_directories(train_program_test PRIVATE unit)
add_dependencies(train_program_test rwkv-train)
rwkv_test(data_program_test LABEL integration SOURCES integration/data_program_test.cpp
  DEPS rwkv_data)
add_dependencies(data_program_test rwkv-data)
# Few kills, to be quick; tools/kill_test.sh 50 is the proof.
add_test(NAME train_kill_test COMMAND ${PROJECT_SOURCE_DIR}/tools/kill_test.sh 4
  $<TARGET_FILE:rwkv-train>)
set_tests_properties(train_kill_test PROPERTIES LABELS integration TIMEOUT 600)
# Threads that spin while they wait take the cores from each other when tests run side by side.
set_tests_properties(train_kill_test PROPERTIES ENVIRONMENT "OMP_WAIT_POLICY=passive")
rwkv_gpu_test(cuda_train_run_test SOURCES integration/cuda_train_run_test.cpp
  DEPS rwkv_trainer nlohmann_json::nlohmann_json)
rwkv_gpu_test(cuda_train_step_test SOURCES integration/cuda_train_step_test.cpp DEPS rwkv_trainer)
if(RWKV_HAVE_CUDA)
  target_include_directories(cuda_train_run_test PRIVATE unit)
endif()
