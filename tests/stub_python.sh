#!/usr/bin/env bash
# Stands for a Python: -m venv and pip are played, the rest is the real one.
case "$*" in
    *version_info*) exit ${STUB_OLD:-0} ;;
    *ensurepip*) exit ${STUB_NO_ENSUREPIP:-0} ;;
    "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && echo venv >>"$STUB_LOG" ;;
    "-m pip config list") echo "${STUB_PIP_CONFIG:-}" ;;
    "-m pip install"*" uv")
        [ -n "${STUB_NO_UV:-}" ] && exit 1
        cp "$(dirname "$0")/python" "$(dirname "$0")/uv" && echo "pip uv" >>"$STUB_LOG" ;;
    "pip install"*)
        echo "uv $5 $6 $7 links=${UV_FIND_LINKS:-} more=${UV_EXTRA_INDEX_URL:-}" >>"$STUB_LOG"
        exit ${STUB_UV_STATUS:-0} ;;
    "-m pip install"*)
        echo pip >>"$STUB_LOG"
        echo "${STUB_PIP_SAYS:-}"
        [ -z "${STUB_PIP_SLEEP:-}" ] || sleep "$STUB_PIP_SLEEP"
        exit ${STUB_PIP_STATUS:-0} ;;
    *emilib.runner*)
        shift
        echo "runner: $*"
        echo "PYTHONPATH=$PYTHONPATH OFFLINE=${HF_HUB_OFFLINE:-}" ;;
    *) exec REAL "$@" ;;
esac
