# Fail where an object file defines a symbol that the linker may share with others: CMakeLists.txt
# says why the units of an instruction set must not.
foreach(object IN LISTS OBJECTS)
  execute_process(
    COMMAND "${NM}" --demangle --defined-only "${object}"
    OUTPUT_VARIABLE symbols COMMAND_ERROR_IS_FATAL ANY)
  string(REGEX MATCHALL "[0-9a-f]+ [uvVwW] [^\n]+" shared "${symbols}")
  if(shared)
    list(JOIN shared "\n  " shared)
    message(FATAL_ERROR "${object} defines code that other units may come to call:\n  ${shared}")
  endif()
endforeach()
