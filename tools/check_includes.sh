#!/bin/sh
# The rules of structure that a compiler does not check: which folder may include which, the length of files, and where
# the preprocessor may ask for a backend.
set -eu
cd "$(dirname "$0")/.."

tools/sources.sh | xargs awk '
    BEGIN {
        # folder of src -> what its files may include besides system headers and aim.h
        may["base"] = " base "
        may["io"] = " base io "
        may["cpu"] = " base io tensor cpu "     # tensor: the op table that the kernels fill
        may["cuda"] = " base io tensor cuda "
        may["tensor"] = " base io tensor cpu cuda "
        may["model"] = " base io tensor model "
        may["eval"] = " base io tensor model eval "
        may["train"] = " base io tensor model train "
        may["cli"] = " cli "
        longest = 800
    }
    function complain(what) { printf "%s:%d: %s\n", FILENAME, FNR, what; bad = 1 }
    FNR == 1 { split(FILENAME, path, "/"); folder = path[1] == "src" ? path[2] : "" }
    FNR == longest + 1 { complain("longer than " longest " lines") }
    folder != "" && /^[ \t]*#[ \t]*include[ \t]*"/ {
        split($0, quoted, "\"")
        split(quoted[2], part, "/")
        if (!(folder in may)) complain("tools/check_includes.sh knows no folder src/" folder)
        else if (quoted[2] != "aim.h" && !index(may[folder], " " part[1] " "))
            complain("src/" folder " may not include " quoted[2])
    }
    folder != "" && FILENAME != "src/tensor/backend.c" && /^[ \t]*#[ \t]*(if|elif).*AIM_(HAVE_|ONEDNN)/ {
        complain("only src/tensor/backend.c may ask which backends there are")
    }
    END { exit bad }'
