#!/bin/sh
# Installs the packages of packages.txt that are missing: tools/deps.sh GROUP...
# With everything in place it needs neither network nor root.
set -eu
list=$(dirname "$0")/../packages.txt

# The names in the groups asked for, optional ones with their "?".
names=$(awk -v groups=" $* " '
    { sub(/#.*/, "") }
    /^\[/ { split($1, part, /[][]/); wanted = index(groups, " " part[2] " "); next }
    wanted && NF { print $1 }' "$list")

if ! command -v dpkg-query >/dev/null 2>&1 || ! command -v apt-get >/dev/null 2>&1; then
    echo "deps: this system has no apt. The build needs what these packages of Debian hold:" >&2
    echo "$names" | tr -d '?' | sed 's/^/    /' >&2
    exit 0 # CMake says what it cannot find
fi

# The packages among "$@" that are not installed.
missing()
{
    for package; do
        case $(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null || true) in
        installed*) ;;
        *) echo "$package" ;;
        esac
    done
}

required=$(missing $(echo "$names" | grep -v '?$' || true))
optional=$(missing $(echo "$names" | sed -n 's/?$//p'))

as_root=
if [ "$(id -u)" -ne 0 ]; then as_root=sudo; fi
if [ -n "$required" ]; then
    if [ -n "$as_root" ] && ! command -v sudo >/dev/null 2>&1; then
        echo "deps: packages are missing, and there is neither root nor sudo to install them. Have someone run" >&2
        echo "    apt-get install" $required >&2
        echo "or, if their contents are elsewhere: cmake --preset release && cmake --build --preset release" >&2
        exit 1
    fi
    echo "deps: installing" $required $optional
    $as_root apt-get -o DPkg::Lock::Timeout=300 -qq update
fi

packages=$required
for package in $optional; do
    if apt-cache show "$package" >/dev/null 2>&1; then packages="$packages $package"; fi
done
[ -n "$packages" ] || exit 0
$as_root env DEBIAN_FRONTEND=noninteractive \
    apt-get -o DPkg::Lock::Timeout=300 -qq install -y --no-install-recommends $packages
