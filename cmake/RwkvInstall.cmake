# What `cmake --install` puts into a prefix besides the programs: presets where the programs look
# for them (../share/greylag/configs seen from bin), scripts, licence and documentation.
set(share ${CMAKE_INSTALL_BINDIR}/../share)
if(CMAKE_INSTALL_BINDIR STREQUAL "bin")
  set(share share)
endif()
install(DIRECTORY configs/ DESTINATION ${share}/greylag/configs FILES_MATCHING PATTERN "*.json")
install(PROGRAMS tools/quickstart.sh tools/plot_metrics.sh tools/install_deps.sh
                 tools/fetch_vocab.sh
        DESTINATION ${share}/greylag)
install(FILES LICENSE README.md DESTINATION ${share}/doc/greylag)
install(DIRECTORY docs DESTINATION ${share}/doc/greylag)
