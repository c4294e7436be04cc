rwkv_test(data_hdf5_test LABEL unit SOURCES unit/data_hdf5_test.cpp DEPS rwkv_data)
