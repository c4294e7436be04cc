rwkv_test(trainer_config_test LABEL unit SOURCES unit/trainer_config_test.cpp DEPS rwkv_trainer)
rwkv_test(trainer_rwkv_lm_test LABEL unit SOURCES unit/trainer_rwkv_lm_test.cpp DEPS rwkv_trainer)
rwkv_test(trainer_presets_test LABEL unit SOURCES unit/trainer_presets_test.cpp DEPS rwkv_trainer)
rwkv_test(trainer_schedule_test LABEL unit SOURCES unit/trainer_schedule_test.cpp DEPS rwkv_trainer)
rwkv_test(trainer_optimizer_test LABEL unit SOURCES unit/trainer_optimizer_test.cpp
  DEPS rwkv_trainer)
rwkv_test(trainer_checkpoint_test LABEL unit SOURCES unit/trainer_checkpoint_test.cpp
  DEPS rwkv_trainer)
rwkv_test(trainer_metrics_test LABEL unit SOURCES unit/trainer_metrics_test.cpp
  DEPS rwkv_trainer nlohmann_json::nlohmann_json)
rwkv_test(trainer_events_test LABEL unit SOURCES unit/trainer_events_test.cpp DEPS rwkv_trainer)
rwkv_test(trainer_memory_test LABEL unit SOURCES unit/trainer_memory_test.cpp DEPS rwkv_trainer)
rwkv_test(trainer_gemm_cache_test LABEL unit SOURCES unit/trainer_gemm_cache_test.cpp
  DEPS rwkv_trainer)
rwkv_test(trainer_signals_test LABEL unit SOURCES unit/trainer_signals_test.cpp DEPS rwkv_trainer)
rwkv_test(trainer_shard_test LABEL unit SOURCES unit/trainer_shard_test.cpp DEPS rwkv_trainer)
rwkv_test(trainer_timeline_test LABEL unit SOURCES unit/trainer_timeline_test.cpp
  DEPS rwkv_trainer nlohmann_json::nlohmann_json)
rwkv_gpu_test(cuda_timeline_test SOURCES unit/trainer_timeline_test.cpp
  DEPS rwkv_trainer nlohmann_json::nlohmann_json)
# The parts of rwkv-bench that predict, without the rest.
rwkv_test(bench_scale_model_test LABEL unit SOURCES unit/bench_scale_model_test.cpp
  ${PROJECT_SOURCE_DIR}/tools/bench/scale_model.cpp ${PROJECT_SOURCE_DIR}/tools/bench/scale_simulate.cpp
  ${PROJECT_SOURCE_DIR}/tools/bench/files.cpp ${PROJECT_SOURCE_DIR}/tools/bench/report.cpp
  DEPS rwkv_trainer nlohmann_json::nlohmann_json)
add_dependencies(bench_scale_model_test rwkv_build_info)
target_include_directories(bench_scale_model_test PRIVATE ${PROJECT_BINARY_DIR})
rwkv_test(trainer_shard_checkpoint_test LABEL unit SOURCES unit/trainer_shard_checkpoint_test.cpp
  DEPS rwkv_trainer)
rwkv_test(trainer_folder_kill_test LABEL unit SOURCES unit/trainer_folder_kill_test.cpp
  DEPS rwkv_trainer ${CMAKE_DL_LIBS})
