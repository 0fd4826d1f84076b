#!/bin/sh
# The C sources and headers of the project, one path per line.
cd "$(dirname "$0")/.." && find include src tests bench examples tools -name '*.[ch]' | sort
