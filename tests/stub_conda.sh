#!/usr/bin/env bash
echo "conda $*" >>"$STUB_LOG"
while [ "$1" != --prefix ]; do shift; done
mkdir -p "$2/bin" && cp "$(dirname "$0")/python3.11" "$2/bin/python"
