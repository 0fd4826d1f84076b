# What `cmake --install` puts where. The static library for others is one object in which whatever is hidden from the users
# of the shared library is local: it exports aim_* alone, like the shared one.
set(static_library ${CMAKE_CURRENT_BINARY_DIR}/libaim.a)
add_custom_command(OUTPUT ${static_library}
  COMMAND ${CMAKE_LINKER} -r -o aim.o --whole-archive $<TARGET_FILE:aim_core>
  COMMAND ${CMAKE_OBJCOPY} --localize-hidden aim.o
  COMMAND ${CMAKE_COMMAND} -E rm -f ${static_library}
  COMMAND ${CMAKE_AR} qcs ${static_library} aim.o
  COMMAND ${CMAKE_COMMAND} -E rm aim.o
  WORKING_DIRECTORY ${CMAKE_CURRENT_BINARY_DIR}
  DEPENDS aim_core
  COMMENT "Linking the static library for installation")
add_custom_target(aim_static ALL DEPENDS ${static_library})

# aim.pc finds its prefix from where it lies, so that the installed tree can move.
file(RELATIVE_PATH pc_prefix /${CMAKE_INSTALL_LIBDIR}/pkgconfig /)
set(pc_libraries png jpeg webp jansson minizip z m)
if(AIM_ONEDNN)
  list(PREPEND pc_libraries dnnl)
endif()
list(TRANSFORM pc_libraries PREPEND -l)
list(JOIN pc_libraries " " pc_libraries)
string(APPEND pc_libraries " ${OpenMP_C_FLAGS}") # the compiler knows where its OpenMP lies
configure_file(cmake/aim.pc.in aim.pc @ONLY)

install(TARGETS aim aim_shared)
install(FILES ${static_library} DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(FILES include/aim.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/aim.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
install(FILES LICENSE README.md DESTINATION ${CMAKE_INSTALL_DOCDIR} OPTIONAL)
install(DIRECTORY models/ DESTINATION ${CMAKE_INSTALL_DATADIR}/aim OPTIONAL)
