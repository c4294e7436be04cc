# Installs the build into a temporary prefix and uses it from another folder; tries the scripts.
add_test(NAME install_test
  COMMAND ${PROJECT_SOURCE_DIR}/tests/integration/install_test.sh
          ${CMAKE_COMMAND} ${PROJECT_BINARY_DIR} ${PROJECT_SOURCE_DIR})
set_tests_properties(install_test PROPERTIES LABELS integration TIMEOUT 300)
add_test(NAME scripts_test
  COMMAND ${PROJECT_SOURCE_DIR}/tests/integration/scripts_test.sh ${PROJECT_SOURCE_DIR})
set_tests_properties(scripts_test PROPERTIES
  LABELS integration TIMEOUT 120 SKIP_RETURN_CODE 77)
