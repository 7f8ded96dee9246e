#!/usr/bin/env bash
# Sets up what is missing and runs everything: see usage() below, or ./run_all.sh --help.
set -uo pipefail

usage() {
    cat <<'TEXT'
Usage: ./run_all.sh [options]

Makes the Python environment if there is none yet, runs the notebooks in order, prints the tables,
and writes all chapters as one page that any browser opens: runs/<profile>/book.html. Running it
again reuses everything that is finished; a killed run goes on where it was.

  --profile NAME   smoke (about 3 minutes), embedded (the default, half an hour or more) or
                   paper (Hume-Vidmimic2 and the papers' encoders; needs --corpus)
  --corpus DIR     a corpus folder in the layout of Hume-Vidmimic2, or a folder of your own videos
                   with a CSV (or that CSV); without it the embedded corpus is made on the spot
  --features FILE  features in place of videos, for notebooks 04 to 07: a pickle of the MMSA family
                   (MOSI, MOSEI, CH-SIMS), safetensors, or a folder of .npy files with a CSV
  --text-pool HOW  mean (the default), cls or last, of the tokens that FILE has for the words
  --visual WHAT    faces (face crops) or video (whole frames); each profile has its own
  --seeds N        seeds a row, in place of the profile's three
  --corpus-seed N  another embedded corpus of the same kind, beside the default's (0)
  --processes N    train with N processes at once, one a GPU where there are GPUs
  --dry-run        say what would run, what is kept, and what it takes; make nothing
  --only NN        one notebook, for example 03, and the steps it needs
  --fresh          first remove the results of this profile (never the environment)
  --update         then write the results of the default run into figures/ and notebooks/
  --test           lint, tests, notebooks as tests in the smoke profile, completeness of tables
  --slow           with --test, also the tests marked slow: whole runs that are killed or cramped
  --help           this text

Environment variables:
  PYTHON           the Python (3.11 to 3.13) to make the environment with
  EMI_ENV          current: use the active environment as it is; venv: do not look for conda
  EMI_HOME         where corpora, features, models and logs go (default: runs/)
  EMI_MIN_FREE_GB  the free disk space to insist on, in place of the built-in figures
TEXT
}

INSTALL_GB=5 # the CPU build of PyTorch and the rest; with PyTorch's CUDA libraries about 12
ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P) || exit 1
PROFILE=embedded TEST="" SLOW="" FLAGS=() PY="" PIP=""

say() { printf '%s\n' "$*"; }
fail() { printf 'run_all.sh: %s\n' "$*" >&2 && exit 1; }
interrupted() {
    [ -z "$PIP" ] || kill "$PIP" 2>/dev/null
    fail "interrupted; what is finished is kept, the same command goes on from there."
}
trap interrupted INT TERM

# ---------------------------------------------------------------- options

read_options() {
    local corpus=""
    while [ $# -gt 0 ]; do
        case $1 in
        --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" && continue ;;
        --profile | --corpus | --features | --text-pool | --only | --visual | --seeds | --corpus-seed | --processes)
            [ $# -ge 2 ] || fail "$1 needs a value; see ./run_all.sh --help."
            [ "$1" != --profile ] || PROFILE=$2
            if [ "$1" = --corpus ] || [ "$1" = --features ]; then
                [ -e "$2" ] || fail "the ${1#--} folder or file '$2' does not exist."
                corpus=$(cd -- "$(dirname -- "$2")" && pwd)/${2##*/}
                FLAGS+=("$1" "$corpus")
            elif [ "$1" != --profile ]; then
                FLAGS+=("$1" "$2")
            fi
            [ "$1" != --only ] || compgen -G "$ROOT/notebooks/$2_*.ipynb" >/dev/null ||
                fail "there is no notebook '$2' in notebooks/; give its number, for example --only 03."
            shift
            ;;
        --dry-run | --fresh | --update) FLAGS+=("$1") ;;
        --test) TEST=1 ;;
        --slow) SLOW=1 ;;
        -h | --help) usage && exit 0 ;;
        *) fail "unknown option '$1'; see ./run_all.sh --help." ;;
        esac
        shift
    done
    case $PROFILE in
    smoke | embedded) ;;
    paper) [ -n "$corpus$TEST" ] || fail "the profile 'paper' needs the data set: --corpus DIR." ;;
    *) fail "--profile is '$PROFILE'; expected one of: smoke embedded paper." ;;
    esac
}

# ---------------------------------------------------------------- the environment

fits() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; }

find_python() { # PYTHON: one that fits and can make environments
    local candidate
    # The oldest first: that is the one the versions in environment.yml were tested with.
    for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3 python}; do
        fits "$candidate" || continue
        "$candidate" -c 'import ensurepip, venv' 2>/dev/null || fail "$candidate can't make virtual environments because its ensurepip is missing; install it (Debian and Ubuntu: apt install python3-venv), or set PYTHON to another Python."
        PYTHON=$candidate && return
    done
    fail "Python 3.11, 3.12 or 3.13 is needed, and there is none${PYTHON:+ at $PYTHON}; install one or set PYTHON to it."
}

# A finished environment holds the file emi-environment: the list's sum and the place of this
# checkout. It is written last, so an interrupted installation is noticed.
stamp() { say "$(sed -E 's/ *#.*$//; /^$/d' "$ROOT/environment.yml" | cksum) $ROOT"; }
finished() { # finished PREFIX
    [ "$(cat "$1/emi-environment" 2>/dev/null)" = "$(stamp)" ] && "$1/bin/python" -c '' 2>/dev/null
}

set_up() {
    local prefix tool free need=${EMI_MIN_FREE_GB:-$INSTALL_GB}
    if [ "${EMI_ENV:-}" = current ]; then
        PY=$(command -v "${PYTHON:-python}" || command -v python3) && fits "$PY" ||
            fail "EMI_ENV=current, and the active Python is not 3.11, 3.12 or 3.13 (${PY:-there is none})."
        "$PY" -P "$ROOT/emilib/environment.py" ${TEST:+--tests} || exit 1
        return
    fi
    for prefix in "$ROOT/runs/env" "$ROOT/.venv"; do
        [ "${EMI_ENV:-}$prefix" = "venv$ROOT/runs/env" ] && continue
        finished "$prefix" && PY="$prefix/bin/python" && return
    done
    for tool in micromamba conda mamba "${MAMBA_EXE:-}" "${CONDA_EXE:-}" ""; do
        [ "${EMI_ENV:-}" != venv ] && [ -n "$tool" ] && command -v "$tool" >/dev/null 2>&1 && break
    done
    [ -n "$tool" ] || find_python
    free=$(df -Pk -- "$ROOT" | awk 'NR == 2 { printf "%d", $4 * 1024 / 1e9 }')
    awk -v f="${free:-$need}" -v n="$need" 'BEGIN { exit f < n }' ||
        fail "not enough room on the disk: the installation needs $need GB (12 GB with GPU libraries) and $ROOT has $free GB free."
    mkdir -p "$LOGS" "$ROOT/runs/tmp" || fail "$ROOT can't be written to."
    exec 9>"$ROOT/runs/.setup.lock" # a second run, or an orphaned pip, is waited for
    if command -v flock >/dev/null && ! flock -n 9; then
        say "Another installation is at work here; waiting for it to end."
        flock 9 && exec 9>&- && set_up && return
    fi
    : >"$LOGS/setup.log"
    [ -n "$tool" ] && install_conda "$tool" || install_venv
    exec 9>&-
}

install_conda() { # install_conda TOOL: false when it could not
    local command=(env create)
    PY="$ROOT/runs/env/bin/python"
    [ "${1##*/}" != micromamba ] || command=(create)
    say "Making the environment in runs/env with ${1##*/}."
    rm -rf -- "$ROOT/runs/env"
    export CONDA_ALWAYS_YES=true MAMBA_ALWAYS_YES=true
    logged "$1" "${command[@]}" --prefix "$ROOT/runs/env" --file "$ROOT/environment.yml" &&
        in_place "$ROOT/runs/env" && return
    say "${1##*/} could not make the environment (its messages: $LOGS/setup.log); trying without it."
    return 1
}

install_venv() {
    local list="$LOGS/requirements.txt"
    find_python
    PY="$ROOT/.venv/bin/python"
    say "Making the environment in .venv with $("$PYTHON" --version)."
    rm -rf -- "$ROOT/.venv" # what was interrupted, or fits another list; pip keeps its downloads
    sed -nE 's/^ {6}- ([^ ]+==[^ ]+).*/\1/p' "$ROOT/environment.yml" >"$list"
    logged "$PYTHON" -m venv "$ROOT/.venv" ||
        fail "Python could not make a virtual environment in .venv; its messages are in $LOGS/setup.log."
    local -x TMPDIR="$ROOT/runs/tmp" # both unpack beside the environment: /tmp may be small
    by_uv "$list" || logged "$PY" -m pip install --no-input --disable-pip-version-check \
        --progress-bar off -r "$list" || explain_pip
    in_place "$ROOT/.venv" || explain_pip
    say "The environment is ready, ${SECONDS} s."
}

by_uv() { # by_uv LIST: false where it can't; pip takes three times as long, and always works
    local uv="$ROOT/.venv/bin/uv" backend="--torch-backend=auto" key value
    logged "$PY" -m pip install --no-input --disable-pip-version-check --quiet uv && [ -x "$uv" ] || return
    local -x UV_NO_PROGRESS=1 UV_FIND_LINKS=${UV_FIND_LINKS:-} UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX:-}
    local -x UV_EXTRA_INDEX_URL=${UV_EXTRA_INDEX_URL:-} SSL_CERT_FILE=${SSL_CERT_FILE:-}
    # uv does not read pip's settings. Where pip has places of its own, torch is found there.
    while IFS="=" read -r key value; do
        value=${value#\'} value=${value%\'}
        case ${key##*.} in
        find-links) UV_FIND_LINKS=${UV_FIND_LINKS:-${value// /,}} ;;
        extra-index-url) UV_EXTRA_INDEX_URL=${UV_EXTRA_INDEX_URL:-$value} ;;
        index-url) UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX:-$value} ;;
        cert) SSL_CERT_FILE=${SSL_CERT_FILE:-$value} && continue ;;
        *) continue ;;
        esac
        backend=--index-strategy=unsafe-best-match # as pip: the newest of all places
    done < <("$PY" -m pip config list 2>/dev/null)
    for key in UV_FIND_LINKS UV_DEFAULT_INDEX UV_EXTRA_INDEX_URL SSL_CERT_FILE; do
        [ -n "${!key}" ] || unset "$key"
    done
    logged "$uv" pip install --python "$PY" "$backend" -r "$1"
}

in_place() { # emilib itself, for JupyterLab and scripts; then the stamp
    logged "$1/bin/python" -m pip install --no-input --disable-pip-version-check --quiet \
        --no-deps --no-build-isolation --editable "$ROOT" && stamp >"$1/emi-environment"
}

logged() { # runs a command with its output in the log, and shows progress
    local log="$LOGS/setup.log" start=$SECONDS status
    printf '\n$ %s\n' "$*" >>"$log"
    "$@" >>"$log" 2>&1 </dev/null &
    PIP=$!
    while kill -0 "$PIP" 2>/dev/null; do
        sleep 0.5
        [ $((SECONDS - start)) -lt 15 ] && continue
        start=$SECONDS
        say "  $SECONDS s: $(grep -cE '^ *(Collecting|Downloaded) ' "$log") packages"
    done
    wait "$PIP"
    status=$? PIP=""
    return $status
}

explain_pip() {
    local log="$LOGS/setup.log" network what
    network='connection (broken|error|refused)|NewConnectionError|ConnectTimeout|Read timed out|name resolution|Network is unreachable|ProxyError|SSLError|5[0-9][0-9] (Server )?Error'
    grep -qi 'No space left on device' "$log" &&
        fail "the disk is full: the installation needs $INSTALL_GB GB (12 GB with GPU libraries)."
    grep -qiE "$network" "$log" &&
        fail "the package registry does not answer; check the network or pip's settings and start again (pip's messages: $log)."
    what=$(sed -nE 's/.*No matching distribution found for ([^ ]+).*/: there is no \1 for this Python/p' "$log" | tail -n 1)
    fail "pip could not install the packages$what (its messages: $log)."
}

# ---------------------------------------------------------------- what is run

RESULTS=() FAILED=""
step() { # step NAME COMMAND...: runs it whatever happened before
    local name=$1 start=$SECONDS mark=passed
    say "" && say "== $name"
    "${@:2}" || { mark=FAILED && FAILED=1; }
    RESULTS+=("$(printf '%-7s %5d s  %s' "$mark" $((SECONDS - start)) "$name")")
}

run_tests() {
    step "ruff check" "$PY" -m ruff check .
    step "ruff format" "$PY" -m ruff format --check .
    # pytest-xdist: a file or notebook at a time on each of at most four cores, the long ones first
    local spread=(--numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder)
    local -x OMP_NUM_THREADS=1
    local -a chosen=(-m "not slow")
    [ -z "$SLOW" ] || chosen=()
    step "pytest" env MPLBACKEND=Agg "$PY" -m pytest tests "${spread[@]}" "${chosen[@]}" --durations=20
    step "notebooks, smoke profile" env EMI_PROFILE=smoke "$PY" -m pytest --nbval-lax \
        --nbval-current-env --nbval-cell-timeout=600 notebooks "${spread[@]}"
    step "tables are complete" "$PY" -m emilib.runner --profile smoke --check
    say "" && say "Summary" && printf '  %s\n' "${RESULTS[@]}"
    [ -z "$FAILED" ] || fail "a check failed: see above."
    say "All checks passed, ${SECONDS} s."
}

read_options "$@"
export EMI_HOME=${EMI_HOME:-$ROOT/runs}
mkdir -p -- "$EMI_HOME" 2>/dev/null || fail "the folder for results, $EMI_HOME, can't be made."
EMI_HOME=$(cd -- "$EMI_HOME" && pwd) || fail "the folder for results, $EMI_HOME, can't be opened."
LOGS="$EMI_HOME/logs"
set_up
export PYTHONPATH="$ROOT" TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1
export NUMBA_CACHE_DIR="$EMI_HOME/numba" PIP_DISABLE_PIP_VERSION_CHECK=1
export JUPYTER_PREFER_ENV_PATH=1 # this environment's kernel, not one registered by the user
[ "${EMI_ENV:-}" = current ] || export PYTHONNOUSERSITE=1
[ "$PROFILE" = paper ] && [ -z "$TEST" ] || export HF_HUB_OFFLINE=1
PATH="$(dirname -- "$PY"):$PATH"
cd -- "$ROOT" || exit 1
unset MPLBACKEND # the kernel chooses its own, which puts pictures into the notebook
[ -z "$TEST" ] || { run_tests && exit 0; }
trap - INT TERM # from here on the runner answers them
exec "$PY" -m emilib.runner --profile "$PROFILE" "${FLAGS[@]}"
