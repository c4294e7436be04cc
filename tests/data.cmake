rwkv_test(data_io_test LABEL unit SOURCES unit/data_io_test.cpp DEPS rwkv_data)
rwkv_test(data_gnuplot_test LABEL unit SOURCES unit/data_gnuplot_test.cpp DEPS rwkv_data)
rwkv_test(data_hdf5_test LABEL unit SOURCES unit/data_hdf5_test.cpp DEPS rwkv_data)
rwkv_test(data_tokenizer_test LABEL unit SOURCES unit/data_tokenizer_test.cpp
          DEPS rwkv_data nlohmann_json::nlohmann_json)
if(RWKV_HAVE_NEOX)
  rwkv_test(data_neox_test LABEL unit SOURCES unit/data_neox_test.cpp
            DEPS rwkv_data nlohmann_json::nlohmann_json)
endif()
rwkv_test(data_sampler_test LABEL unit SOURCES unit/data_sampler_test.cpp
          DEPS rwkv_data nlohmann_json::nlohmann_json)
rwkv_test(data_binidx_test LABEL unit SOURCES unit/data_binidx_test.cpp
          DEPS rwkv_data nlohmann_json::nlohmann_json)
rwkv_test(data_dataset_test LABEL unit SOURCES unit/data_dataset_test.cpp DEPS rwkv_data)
rwkv_test(data_tasks_test LABEL unit SOURCES unit/data_tasks_test.cpp
          DEPS rwkv_data nlohmann_json::nlohmann_json)
rwkv_test(data_prepare_test LABEL unit SOURCES unit/data_prepare_test.cpp
          DEPS rwkv_data rwkv_zstd nlohmann_json::nlohmann_json)
rwkv_test(hostile_data_test LABEL unit SOURCES unit/hostile_data_test.cpp DEPS rwkv_data)
rwkv_test(tensor_files_test LABEL unit SOURCES unit/tensor_files_test.cpp
          DEPS rwkv_data nlohmann_json::nlohmann_json)
