# What `cmake --install` puts into a prefix besides programs (rwkv_program) and presets (configs/):
# scripts, licence and documentation.
install(PROGRAMS tools/quickstart.sh tools/plot_metrics.sh tools/install_deps.sh
                 tools/fetch_vocab.sh
        DESTINATION ${CMAKE_INSTALL_DATADIR}/greylag)
install(FILES LICENSE README.md DESTINATION ${CMAKE_INSTALL_DOCDIR})
install(DIRECTORY docs DESTINATION ${CMAKE_INSTALL_DOCDIR})
