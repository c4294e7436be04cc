# The only tests with the label "golden": everything that reads the reference files.
foreach(architecture rwkv7 rwkv4)
  rwkv_test(golden_${architecture}_tiny LABEL golden SOURCES golden/tiny_test.cpp DEPS rwkv_trainer)
  rwkv_test(golden_${architecture}_train LABEL golden SOURCES golden/train_test.cpp
    DEPS rwkv_trainer)
  # The same on a GPU.
  rwkv_gpu_test(cuda_golden_${architecture}_tiny SOURCES golden/tiny_test.cpp DEPS rwkv_trainer)
  rwkv_gpu_test(cuda_golden_${architecture}_train SOURCES golden/train_test.cpp DEPS rwkv_trainer)
endforeach()
foreach(architecture rwkv7 rwkv4)
  foreach(test golden_${architecture}_tiny golden_${architecture}_train)
    foreach(target ${test} cuda_${test})
      if(TARGET ${target})
        target_compile_definitions(${target} PRIVATE RWKV_TEST_ARCHITECTURE="${architecture}")
      endif()
    endforeach()
  endforeach()
endforeach()
