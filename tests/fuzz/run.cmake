# One fuzz test: PROGRAM, from an empty SCRATCH folder and CORPUS, for RUNS inputs.
file(REMOVE_RECURSE ${SCRATCH})
file(MAKE_DIRECTORY ${SCRATCH}/found ${SCRATCH}/failures)
set(folders ${SCRATCH}/found)
if(IS_DIRECTORY ${CORPUS})
  list(APPEND folders ${CORPUS})
endif()
execute_process(
  COMMAND ${PROGRAM} -runs=${RUNS} -seed=1 -max_len=8192 -rss_limit_mb=2048 -timeout=25 -print_final_stats=1
          -artifact_prefix=${SCRATCH}/failures/ ${folders}
  RESULT_VARIABLE result)
if(NOT result EQUAL 0)
  message(FATAL_ERROR "failed (${result}); the input is in ${SCRATCH}/failures")
endif()
