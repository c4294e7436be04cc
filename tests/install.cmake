# Installs the build into a temporary prefix and uses it from another folder.
add_test(NAME install_test
  COMMAND ${PROJECT_SOURCE_DIR}/tests/integration/install_test.sh
          ${CMAKE_COMMAND} ${PROJECT_BINARY_DIR} ${PROJECT_SOURCE_DIR})
set_tests_properties(install_test PROPERTIES LABELS integration TIMEOUT 300)
