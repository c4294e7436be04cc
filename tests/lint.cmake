# The lints of tools/lint, each a test of its own; the self-test plants violations and expects them
# to be found. All are shell and awk. "records" counts as skipped while a record of a GPU is older
# than the kernels.
foreach(lint layering targets files format scripts links records)
  add_test(NAME lint_${lint} COMMAND ${PROJECT_SOURCE_DIR}/tools/lint/${lint}.sh ${PROJECT_SOURCE_DIR})
  set_tests_properties(lint_${lint} PROPERTIES LABELS lint TIMEOUT 120 SKIP_RETURN_CODE 77)
endforeach()
add_test(NAME lint_selftest COMMAND ${PROJECT_SOURCE_DIR}/tools/lint/selftest.sh)
set_tests_properties(lint_selftest PROPERTIES LABELS lint TIMEOUT 120)
