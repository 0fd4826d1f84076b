# Writes the op list once more, each op with the words that a call of it needs, which the preprocessor cannot find out:
#
#     OP(name, (parameters), (arguments), first, second)
#
# first and second are the first two tensors that the op reads, NULL where there are none. So a function that stands in front
# of every kernel (tensor/profile.c) need not be written by hand. cmake -DFROM=ops.def -DTO=FILE -P ops_called.cmake
file(READ ${FROM} text)
string(REGEX REPLACE "/\\*([^*]|\\*+[^*/])*\\*+/" "" text "${text}")
string(REGEX REPLACE "[ \t\n]+" " " text "${text}")
string(REGEX MATCHALL "OP\\([a-z0-9_]+, \\([^()]*\\)\\)" ops "${text}")
string(REGEX MATCHALL "OP\\(" all "${text}")
list(LENGTH ops found)
list(LENGTH all wanted)
if(NOT found EQUAL wanted)
  message(FATAL_ERROR "${FROM}: ${found} of ${wanted} ops have the form OP(name, (parameters))")
endif()

set(out "/* Made from tensor/ops.def by cmake/ops_called.cmake. */\n")
foreach(op IN LISTS ops)
  string(REGEX REPLACE "^OP\\(([a-z0-9_]+), \\((.*)\\)\\)$" "\\1" name "${op}")
  string(REGEX REPLACE "^OP\\(([a-z0-9_]+), \\((.*)\\)\\)$" "\\2" parameters "${op}")
  string(REGEX REPLACE "[^,]*[ *]([A-Za-z0-9_]+)(,|$)" "\\1\\2 " arguments "${parameters}")
  string(STRIP "${arguments}" arguments)
  string(REGEX MATCHALL "const struct tensor \\*[A-Za-z0-9_]+" read "${parameters}")
  list(TRANSFORM read REPLACE "^.*\\*" "")
  list(APPEND read NULL NULL)
  list(GET read 0 first)
  list(GET read 1 second)
  string(APPEND out "OP(${name}, (${parameters}), (${arguments}), ${first}, ${second})\n")
endforeach()
file(WRITE ${TO} "${out}")
