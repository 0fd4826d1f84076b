#!/bin/sh
# Installs a build, compares what the libraries export with aim.h, and builds and runs the example against what was
# installed, as users do: tests/install.sh BUILD SCRATCH COMPILER
set -eu
build=$1 scratch=$2 compiler=$3
source=$(cd "$(dirname "$0")/.." && pwd)
rm -rf "$scratch"
cmake --install "$build" --prefix "$scratch/usr" > /dev/null
mkdir "$scratch/pictures"
cd "$scratch/pictures"

PKG_CONFIG_PATH=$(dirname "$(find "$scratch/usr" -name aim.pc)")
export PKG_CONFIG_PATH
libraries=$(dirname "$PKG_CONFIG_PATH")

same()
{
    diff "$1" "$2" > "$scratch/difference" || { echo "$3:"; cat "$scratch/difference"; exit 1; } >&2
}

sed -n 's/^AIM_API .*\(aim_[a-z0-9_]*\)(.*/\1/p' "$scratch/usr/include/aim.h" | sort > "$scratch/declared"
# clang gives locks of OpenMP global names, ".gomp_critical..."
nm -D --defined-only "$libraries/libaim.so" | awk '$3 !~ /^\./ { print $3 }' | sort > "$scratch/shared"
nm -g --defined-only "$libraries/libaim.a" | awk 'NF == 3 && $3 !~ /^\./ { print $3 }' | sort > "$scratch/static"
same "$scratch/declared" "$scratch/shared" "aim.h (<) and libaim.so (>) differ"
same "$scratch/declared" "$scratch/static" "aim.h (<) and libaim.a (>) differ"

flags="-std=c17 -Wall -Wextra -Werror $source/examples/generate.c $(pkg-config --cflags aim)"
$compiler $flags -o ../with_shared $(pkg-config --libs aim)
LD_LIBRARY_PATH=$libraries ../with_shared "$source/tests/data/tiny-group" 7

$compiler $flags -o ../with_static $(pkg-config --static --libs aim | sed 's/-laim/-l:libaim.a/')
../with_static "$source/tests/data/tiny-group" 7
[ "$(pkg-config --modversion aim)" = "$("$scratch/usr/bin/aim" --version | sed 's/^aim //')" ]
