#!/usr/bin/env bash
# Sets up what is missing and runs everything: see usage() below, or ./run_all.sh --help.
set -uo pipefail

usage() {
    cat <<'TEXT'
Usage: ./run_all.sh [options]

Makes the Python environment if there is none yet, runs the notebooks in order, and prints the
tables. Running it again reuses everything that is finished; a killed run goes on where it was.

  --profile NAME   smoke (about 2 minutes), embedded (the default, about 10 minutes) or
                   paper (Hume-Vidmimic2 and the papers' encoders; needs --corpus)
  --corpus DIR     a corpus folder in the layout of Hume-Vidmimic2, or a folder of your own videos
                   with a CSV (or that CSV); without it the embedded corpus is made on the spot
  --visual WHAT    faces (face crops) or video (whole frames); each profile has its own
  --seeds N        seeds a row, in place of the profile's three
  --processes N    train with N processes at once, one a GPU where there are GPUs
  --dry-run        say what would run, what is kept, and what it takes; make nothing
  --only NN        one notebook, for example 03, and the steps it needs
  --fresh          first remove the results of this profile (never the environment)
  --test           lint, tests, notebooks as tests in the smoke profile, completeness of tables
  --help           this text

Environment variables:
  PYTHON           the Python (3.11 or newer) to make the environment with
  EMI_ENV          current: use the active environment as it is; venv: do not look for conda
  EMI_HOME         where corpora, features, models and logs go (default: runs/)
  EMI_MIN_FREE_GB  the free disk space to insist on, in place of the built-in figures
TEXT
}

INSTALL_GB=5 # the CPU build of PyTorch and the rest; with PyTorch's CUDA libraries about 12
ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P) || exit 1
PROFILE=embedded CORPUS="" ONLY="" VISUAL="" SEEDS="" PROCESSES="" TEST="" FLAGS=()
PY="" PYTHON_FOUND="" PIP_PID=""

say() { printf '%s\n' "$*"; }
note() { printf 'run_all.sh: %s\n' "$*" >&2; }
fail() { note "$@" && exit 1; }

interrupted() {
    trap - INT TERM
    [ -n "$PIP_PID" ] && kill -- "-$PIP_PID" 2>/dev/null
    note "interrupted; what is finished is kept, the same command goes on from there."
    exit 130
}
trap interrupted INT TERM

# ---------------------------------------------------------------- options

read_options() {
    local name
    while [ $# -gt 0 ]; do
        case $1 in
        --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" && continue ;;
        --profile | --corpus | --only | --visual | --seeds | --processes)
            [ $# -ge 2 ] || fail "$1 needs a value; see ./run_all.sh --help."
            name=${1#--}
            printf -v "${name^^}" '%s' "$2"
            shift
            ;;
        --dry-run | --fresh) FLAGS+=("$1") ;;
        --test) TEST=1 ;;
        -h | --help) usage && exit 0 ;;
        *) fail "unknown option '$1'; see ./run_all.sh --help." ;;
        esac
        shift
    done
}

one_of() { # one_of WHAT VALUE ALLOWED...
    local value=$2 allowed
    for allowed in "${@:3}"; do [ "$value" = "$allowed" ] && return; done
    fail "$1 is '$value'; expected one of: ${*:3}."
}

check_options() {
    local name
    one_of --profile "$PROFILE" smoke embedded paper
    one_of --visual "$VISUAL" "" faces video
    one_of EMI_ENV "${EMI_ENV:-}" "" current venv
    for name in SEEDS PROCESSES; do
        case ${!name} in *[!0-9]* | 0) fail "--${name,,} is '${!name}'; expected a whole number from 1." ;; esac
    done
    [ -z "$ONLY" ] || compgen -G "$ROOT/notebooks/${ONLY}_*.ipynb" >/dev/null ||
        fail "there is no notebook '$ONLY' in notebooks/; give its number, for example --only 03."
    [ "$PROFILE" != paper ] || [ -n "$CORPUS$TEST" ] ||
        fail "the profile 'paper' needs the data set: --corpus DIR."
    [ -n "$CORPUS" ] || return 0
    [ -e "$CORPUS" ] || fail "the corpus folder '$CORPUS' does not exist."
    CORPUS=$(cd -- "$(dirname -- "$CORPUS")" && pwd)/${CORPUS##*/}
    [ -d "$CORPUS" ] || return 0
    compgen -G "$CORPUS/*.[cC][sS][vV]" >/dev/null || fail "the corpus folder '$CORPUS' has no CSV; it must hold train_split.csv and valid_split.csv beside raw/, or one CSV of your own."
    for name in train_split.csv:valid_split.csv valid_split.csv:train_split.csv; do
        [ ! -f "$CORPUS/${name%:*}" ] || [ -f "$CORPUS/${name#*:}" ] ||
            fail "the corpus folder '$CORPUS' has no ${name#*:}; it must hold train_split.csv and valid_split.csv beside raw/."
    done
}

# ---------------------------------------------------------------- the environment

free_gb() { df -Pk -- "$ROOT" | awk 'NR == 2 { printf "%d", $4 * 1024 / 1e9 }'; }
version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }
new_enough() { [ "${1%%.*}" -gt 3 ] || { [ "${1%%.*}" -eq 3 ] && [ "${1#*.}" -ge 11 ]; }; }

find_python() { # PYTHON_FOUND: one that is new enough and can make environments
    local candidate version old="" no_venv="" places
    # The oldest first: that is the one the versions in environment.yml were tested with.
    places=(python3.11 python3.12 python3.13 python3.14 python3 python)
    [ -z "${PYTHON:-}" ] || places=("$PYTHON")
    for candidate in "${places[@]}"; do
        version=$(version_of "$candidate") || continue
        if ! new_enough "$version"; then
            old="${old:-$version ($candidate)}"
        elif "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then
            PYTHON_FOUND=$candidate && return
        else
            no_venv="${no_venv:-$candidate $version}"
        fi
    done
    [ -z "$no_venv" ] || fail "$no_venv can't make virtual environments because its ensurepip is missing; install it (Debian and Ubuntu: apt install python3-venv), or set PYTHON to another Python."
    fail "Python 3.11 or newer is needed, and the one found is ${old:-none${PYTHON:+ at $PYTHON}}; install a newer one or set PYTHON to it."
}

# A finished environment holds the file emi-environment: the list's sum and the place of this
# checkout. It is written last, so an interrupted installation is noticed.
stamp() {
    local sum
    sum=$(sed -E 's/(^|[[:space:]])#.*$//; s/[[:space:]]+$//; /^$/d' "$ROOT/environment.yml" | cksum)
    say "${sum// /-} $ROOT"
}
finished() { # finished PREFIX
    [ "$(cat "$1/emi-environment" 2>/dev/null)" = "$(stamp)" ] && "$1/bin/python" -c '' 2>/dev/null
}

set_up() {
    local prefix tool="" version
    if [ "${EMI_ENV:-}" = current ]; then
        PY=$(command -v "${PYTHON:-python}" || command -v python3) || fail "EMI_ENV=current, and there is no active Python."
        version=$(version_of "$PY") || fail "$PY does not start."
        new_enough "$version" || fail "Python 3.11 or newer is needed, and the active one is $version ($PY)."
        "$PY" -P "$ROOT/emilib/environment.py" --check ${TEST:+--tests} "$ROOT/environment.yml" || exit 1
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
    local need=${EMI_MIN_FREE_GB:-$INSTALL_GB} free
    free=$(free_gb)
    awk -v f="${free:-$need}" -v n="$need" 'BEGIN { exit f < n }' ||
        fail "not enough room on the disk: the installation needs $need GB and $ROOT has $free GB free."
    mkdir -p "$LOGS" "$ROOT/runs/tmp" || fail "$ROOT can't be written to."
    exec 9>"$ROOT/runs/.setup.lock" # a second run, or an orphaned pip, is waited for
    if command -v flock >/dev/null && ! flock -n 9; then
        say "Another installation is at work here; waiting for it to end."
        flock 9 && exec 9>&- && set_up && return
    fi
    : >"$LOGS/setup.log"
    if [ -z "$tool" ] || ! install_conda "$tool"; then
        [ -n "$PYTHON_FOUND" ] || find_python
        install_venv
    fi
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
    note "${1##*/} could not make the environment (its messages: $LOGS/setup.log); trying without it."
    return 1
}

install_venv() {
    local list="$LOGS/requirements.txt"
    PY="$ROOT/.venv/bin/python"
    # What was interrupted, or fits another list, is made again; pip keeps what it has downloaded.
    [ -d "$ROOT/.venv" ] && say "The environment in .venv is unfinished or out of date; making it again."
    rm -rf -- "$ROOT/.venv"
    say "Making the environment in .venv with $("$PYTHON_FOUND" --version) (room needed: $INSTALL_GB GB, about 12 GB with GPU libraries; here: $(free_gb) GB)."
    "$PYTHON_FOUND" -I "$ROOT/emilib/environment.py" --pip-list "$ROOT/environment.yml" >"$list" ||
        fail "environment.yml can't be read."
    logged "$PYTHON_FOUND" -m venv "$ROOT/.venv" ||
        fail "Python could not make a virtual environment in .venv; its messages are in $LOGS/setup.log."
    # pip unpacks beside the environment: /tmp may be small.
    TMPDIR="$ROOT/runs/tmp" logged "$PY" -m pip install --no-input --disable-pip-version-check \
        --progress-bar off -r "$list" && in_place "$ROOT/.venv" || explain_pip
    say "The environment is ready, ${SECONDS} s."
}

in_place() { # emilib itself, for JupyterLab and scripts; then the stamp
    logged "$1/bin/python" -m pip install --no-input --disable-pip-version-check --quiet \
        --no-deps --no-build-isolation --editable "$ROOT" && stamp >"$1/emi-environment"
}

logged() { # runs a command with its output in the log, and shows progress
    local log="$LOGS/setup.log" start=$SECONDS
    printf '\n$ %s\n' "$*" >>"$log"
    set -m # a process group of its own, which can be ended with all its children
    "$@" >>"$log" 2>&1 </dev/null &
    PIP_PID=$!
    set +m
    while kill -0 "$PIP_PID" 2>/dev/null; do
        sleep 0.5
        [ $((SECONDS - start)) -lt 15 ] && continue
        start=$SECONDS
        say "  $SECONDS s: $(grep -c '^ *Collecting ' "$log") packages"
    done
    wait "$PIP_PID"
    local status=$?
    PIP_PID=""
    return $status
}

explain_pip() {
    local log="$LOGS/setup.log" what
    rm -rf -- "$ROOT/runs/tmp"
    grep -qi 'No space left on device' "$log" &&
        fail "the disk is full: the installation needs $INSTALL_GB GB (12 GB with GPU libraries) and $ROOT has $(free_gb) GB free."
    what=$(sed -nE 's/.*No matching distribution found for ([^ ]+).*/\1/p' "$log" | tail -n 1)
    if grep -qiE 'connection (broken|error|refused)|NewConnectionError|ConnectTimeout|Read timed out|name resolution|Network is unreachable|ProxyError|SSLError|5[0-9][0-9] (Server )?Error' "$log"; then
        fail "the package registry does not answer; check the network or pip's settings and start again (pip's messages: $log)."
    elif [ -n "$what" ] && grep -q 'from versions: none' "$log"; then
        fail "the package registry does not answer, or has no version of $what for this machine (pip's messages: $log)."
    elif [ -n "$what" ]; then
        fail "the package registry has no $what for $("$PYTHON_FOUND" --version) on this machine (pip's messages: $log)."
    fi
    fail "pip could not install the packages (its messages: $log)."
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
    step "pytest" env MPLBACKEND=Agg "$PY" -m pytest tests
    step "notebooks, smoke profile" env EMI_PROFILE=smoke "$PY" -m pytest --nbval-lax \
        --nbval-current-env --nbval-cell-timeout=600 notebooks
    step "tables are complete" "$PY" -m emilib.runner --profile smoke --check
    say "" && say "Summary" && printf '  %s\n' "${RESULTS[@]}"
    [ -z "$FAILED" ] || fail "a check failed: see above."
    say "All checks passed, ${SECONDS} s."
}

read_options "$@"
check_options
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
mkdir -p "$NUMBA_CACHE_DIR" && cd -- "$ROOT" || fail "$EMI_HOME can't be written to."
unset MPLBACKEND # the kernel chooses its own, which puts pictures into the notebook
[ -z "$TEST" ] || { run_tests && exit 0; }
trap - INT TERM # from here on the runner answers them
for name in CORPUS ONLY VISUAL SEEDS PROCESSES; do
    [ -z "${!name}" ] || FLAGS+=("--${name,,}" "${!name}")
done
exec "$PY" -m emilib.runner --profile "$PROFILE" "${FLAGS[@]}"
