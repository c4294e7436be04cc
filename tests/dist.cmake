# Several ranks. The variables are for Open MPI: more ranks than cores, as root in a container.
set(rwkv_rank_environment
  "OMP_NUM_THREADS=1;OMP_WAIT_POLICY=passive;OMPI_ALLOW_RUN_AS_ROOT=1;OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1"
  "OMPI_MCA_rmaps_base_oversubscribe=1;OMPI_MCA_mpi_yield_when_idle=1"
  "OMPI_MCA_btl_vader_single_copy_mechanism=none;PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe")
if(RWKV_SANITIZE)
  # MPI libraries leave memory behind, and hook into its management. Two ranks are enough there.
  list(APPEND rwkv_rank_environment "ASAN_OPTIONS=detect_leaks=0;OMPI_MCA_memory=^patcher")
  set(rwkv_rank_counts 2)
else()
  set(rwkv_rank_counts 2 4)
endif()

rwkv_test(comm_group_test LABEL dist SOURCES dist/comm_group_test.cpp DEPS rwkv_comm)
rwkv_test(copy_engines_test LABEL dist SOURCES dist/copy_engines_test.cpp DEPS rwkv_comm)
rwkv_test(meeting_test LABEL dist SOURCES dist/meeting_test.cpp DEPS rwkv_comm)
rwkv_test(network_test LABEL dist SOURCES dist/network_test.cpp DEPS rwkv_comm)
rwkv_test(dist_step_test LABEL dist SOURCES dist/dist_step_test.cpp dist/dist_collectives_test.cpp
  DEPS rwkv_comm)
# rwkv-train --gpus on the CPU, with collectives over the group: tests start it.
add_executable(local_train dist/local_train.cpp)
target_link_libraries(local_train PRIVATE rwkv_flags rwkv_cli rwkv_comm)
rwkv_test(dist_fault_test LABEL dist SOURCES dist/dist_fault_test.cpp DEPS rwkv_comm)
rwkv_test(parallel_checkpoint_test LABEL dist SOURCES dist/parallel_checkpoint_test.cpp
  DEPS rwkv_comm)
foreach(test dist_fault_test parallel_checkpoint_test)
  target_compile_definitions(${test} PRIVATE RWKV_LOCAL_TRAIN="$<TARGET_FILE:local_train>")
  target_include_directories(${test} PRIVATE unit)
  add_dependencies(${test} local_train)
  set_tests_properties(${test} PROPERTIES PROCESSORS 2 ENVIRONMENT "${rwkv_rank_environment}")
endforeach()
if(RWKV_HAVE_MPI AND MPIEXEC_EXECUTABLE)
  foreach(ranks ${rwkv_rank_counts})
    add_test(NAME dist_step_test_${ranks} COMMAND ${MPIEXEC_EXECUTABLE} ${MPIEXEC_NUMPROC_FLAG}
      ${ranks} $<TARGET_FILE:dist_step_test>)
    set_tests_properties(dist_step_test_${ranks} PROPERTIES LABELS dist TIMEOUT 600
      PROCESSORS 2 ENVIRONMENT "${rwkv_rank_environment}")
  endforeach()
  rwkv_test(dist_program_test LABEL dist SOURCES dist/dist_program_test.cpp DEPS rwkv_comm
    nlohmann_json::nlohmann_json)
  foreach(test dist_program_test dist_fault_test parallel_checkpoint_test)
    target_compile_definitions(${test} PRIVATE RWKV_FAULTS_WITH_MPI
      RWKV_MPIEXEC="${MPIEXEC_EXECUTABLE}" RWKV_MPIEXEC_COUNT="${MPIEXEC_NUMPROC_FLAG}")
    add_dependencies(${test} rwkv-train)
  endforeach()
  add_dependencies(dist_program_test rwkv-bench)
  target_compile_definitions(dist_program_test PRIVATE RWKV_LOCAL_TRAIN="")
  target_include_directories(dist_program_test PRIVATE unit)
  set_tests_properties(dist_program_test PROPERTIES PROCESSORS 2
    ENVIRONMENT "${rwkv_rank_environment}")
endif()
rwkv_gpu_test(cuda_dist_step_test SOURCES dist/dist_step_test.cpp dist/dist_collectives_test.cpp
  DEPS rwkv_comm)
rwkv_gpu_test(cuda_dist_link_test SOURCES dist/link_fault_test.cpp DEPS rwkv_comm)
