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

Examples:
  ./run_all.sh
  ./run_all.sh --profile smoke --fresh
  ./run_all.sh --profile paper --corpus /data/hume-vidmimic2
  ./run_all.sh --test
TEXT
}

INSTALL_GB=5 # the CPU build of PyTorch and the rest: 3.2 GB installed, and the files on their way
GPU_GB=12    # the same with PyTorch's CUDA libraries, which pip may choose

ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P) || exit 1
PROFILE=embedded CORPUS="" ONLY="" FRESH="" TEST="" DRY="" VISUAL="" SEEDS="" PROCESSES=""
PYTHON_FOUND=""   # the Python that the environment is made with
PY=""             # the Python of the environment
PIP_PID=""        # an installation at work

say() { printf '%s\n' "$*"; }
fail() {
    printf 'run_all.sh: %s\n' "$*" >&2
    exit 1
}
note() { printf 'run_all.sh: %s\n' "$*" >&2; }

interrupted() {
    trap - INT TERM
    [ -n "$PIP_PID" ] && kill -- "-$PIP_PID" 2>/dev/null
    printf '\nrun_all.sh: interrupted; what is finished is kept, the same command goes on from there.\n' >&2
    exit 130
}
trap interrupted INT TERM

# ---------------------------------------------------------------- options

value_of() { # value_of OPTION COUNT: refuses an option without its value
    [ "$2" -ge 2 ] || fail "$1 needs a value; see ./run_all.sh --help."
}

take() { # take OPTION VALUE
    case $1 in
    --profile) PROFILE=$2 ;;
    --corpus) CORPUS=$2 ;;
    --only) ONLY=$2 ;;
    --visual) VISUAL=$2 ;;
    --seeds) SEEDS=$2 ;;
    --processes) PROCESSES=$2 ;;
    esac
}

read_options() {
    while [ $# -gt 0 ]; do
        case $1 in
        --profile | --corpus | --only | --visual | --seeds | --processes)
            value_of "$1" $#
            take "$1" "$2"
            shift 2
            ;;
        --profile=* | --corpus=* | --only=* | --visual=* | --seeds=* | --processes=*)
            take "${1%%=*}" "${1#*=}"
            shift
            ;;
        --dry-run) DRY=1 && shift ;;
        --fresh) FRESH=1 && shift ;;
        --test) TEST=1 && shift ;;
        -h | --help) usage && exit 0 ;;
        *) fail "unknown option '$1'; see ./run_all.sh --help." ;;
        esac
    done
}

check_options() {
    case $PROFILE in
    smoke | embedded | paper) ;;
    *) fail "there is no profile '$PROFILE'; choose smoke, embedded or paper." ;;
    esac
    case $VISUAL in
    "" | faces | video) ;;
    *) fail "--visual is '$VISUAL'; it may be faces or video." ;;
    esac
    local name
    for name in SEEDS PROCESSES; do
        case ${!name} in
        *[!0-9]* | 0) fail "--${name,,} is '${!name}'; it must be a whole number from 1." ;;
        esac
    done
    case ${EMI_ENV:-} in
    "" | current | venv) ;;
    *) fail "EMI_ENV is '$EMI_ENV'; it may be 'current', 'venv' or unset." ;;
    esac
    if [ -n "$ONLY" ] && ! compgen -G "$ROOT/notebooks/${ONLY}_*.ipynb" >/dev/null; then
        fail "there is no notebook '$ONLY' in notebooks/; give its number, for example --only 03."
    fi
    if [ "$PROFILE" = paper ] && [ -z "$CORPUS" ] && [ -z "$TEST" ]; then
        fail "the profile 'paper' needs the data set: --corpus DIR."
    fi
    [ -z "$CORPUS" ] || check_corpus
}

check_corpus() {
    if [ -f "$CORPUS" ]; then # the CSV of a folder of one's own
        case $CORPUS in *.csv | *.CSV) ;; *) fail "'$CORPUS' is no CSV; give a corpus folder, or the CSV in it." ;; esac
        CORPUS=$(cd -- "$(dirname -- "$CORPUS")" && pwd)/${CORPUS##*/}
        return
    fi
    [ -d "$CORPUS" ] || fail "the corpus folder '$CORPUS' does not exist."
    CORPUS=$(cd -- "$CORPUS" && pwd) || fail "the corpus folder '$CORPUS' can't be opened."
    compgen -G "$CORPUS/*.[cC][sS][vV]" >/dev/null || fail "the corpus folder '$CORPUS' has no CSV; it must hold train_split.csv and valid_split.csv beside raw/, or one CSV of your own."
    local name
    if [ -f "$CORPUS/train_split.csv" ] || [ -f "$CORPUS/valid_split.csv" ]; then
        for name in train_split.csv valid_split.csv; do
            [ -f "$CORPUS/$name" ] || fail "the corpus folder '$CORPUS' has no $name; it must hold train_split.csv and valid_split.csv beside raw/."
        done
    fi
}

# ---------------------------------------------------------------- the machine

free_gb() { # free space at a folder, in whole GB
    df -Pk -- "$1" | awk 'NR == 2 { printf "%d", $4 * 1024 / 1e9 }'
}

need_room() { # need_room FOLDER GB WHAT
    local need=${EMI_MIN_FREE_GB:-$2} free
    free=$(free_gb "$1")
    [ -n "$free" ] || return 0 # a file system that does not tell
    if awk -v free="$free" -v need="$need" 'BEGIN { exit !(free < need) }'; then
        fail "not enough room on the disk: $3 needs $need GB and $1 has $free GB free."
    fi
}

find_python() { # PYTHON_FOUND: one that is new enough and can make environments
    local candidate version newest="" no_venv="" places
    if [ -n "${PYTHON:-}" ]; then
        places=("$PYTHON")
    else # the oldest first: that is the one the versions in environment.yml were tested with
        places=(python3.11 python3.12 python3.13 python3.14 python3 python)
    fi
    for candidate in "${places[@]}"; do
        version=$("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
        if ! new_enough "$version"; then
            newest="${newest:-$version ($candidate)}"
        elif "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then
            PYTHON_FOUND=$candidate
            return 0
        else
            no_venv="${no_venv:-$candidate $version}"
        fi
    done
    if [ -n "$no_venv" ]; then
        fail "$no_venv can't make virtual environments because its ensurepip is missing; install it (Debian and Ubuntu: apt install python3-venv), or set PYTHON to another Python."
    elif [ -n "$newest" ]; then
        fail "Python 3.11 or newer is needed, and the one found is $newest; install a newer one or set PYTHON to it."
    fi
    fail "Python 3.11 or newer is needed, and ${PYTHON:-none} was found; install it or set PYTHON to it."
}

new_enough() { # new_enough 3.11
    local major=${1%%.*} minor=${1#*.}
    [ "$major" -gt 3 ] || { [ "$major" -eq 3 ] && [ "$minor" -ge 11 ]; }
}

# ---------------------------------------------------------------- the environment

# A finished environment holds the file emi-environment: the list's sum and the place of
# this checkout. It is written last, so an interrupted installation is noticed.
stamp_wanted() { printf '%s %s\n' "$(list_sum)" "$ROOT"; }
list_sum() { # of the list without its comments
    sed -E 's/(^|[[:space:]])#.*$//; s/[[:space:]]+$//; /^$/d' "$ROOT/environment.yml" | cksum | tr ' ' '-'
}
finished() { # finished PREFIX
    [ -x "$1/bin/python" ] && [ "$(cat "$1/emi-environment" 2>/dev/null)" = "$(stamp_wanted)" ] &&
        "$1/bin/python" -c '' 2>/dev/null
}

set_up() {
    case ${EMI_ENV:-} in current) use_current && return ;; esac
    local prefix tool=""
    for prefix in "$ROOT/runs/env" "$ROOT/.venv"; do
        [ "${EMI_ENV:-}" = venv ] && [ "$prefix" = "$ROOT/runs/env" ] && continue
        if finished "$prefix"; then
            PY="$prefix/bin/python"
            return
        fi
    done
    if [ "${EMI_ENV:-}" != venv ]; then
        for tool in micromamba conda mamba "${MAMBA_EXE:-}" "${CONDA_EXE:-}" ""; do
            [ -n "$tool" ] && command -v "$tool" >/dev/null 2>&1 && break
        done
    fi
    [ -n "$tool" ] || find_python
    need_room "$ROOT" $INSTALL_GB "the installation"
    mkdir -p "$ROOT/runs" "$LOGS" || fail "$ROOT can't be written to."
    exec 9>"$ROOT/runs/.setup.lock" # a second run, or an orphaned pip, is waited for
    if command -v flock >/dev/null && ! flock -n 9; then
        say "Another installation is at work here; waiting for it to end."
        flock 9
        exec 9>&-
        set_up
        return
    fi
    : >"$LOGS/setup.log"
    if [ -z "$tool" ] || ! install_conda "$tool"; then
        [ -n "$PYTHON_FOUND" ] || find_python
        install_venv
    fi
    exec 9>&-
}

use_current() {
    PY=$(command -v "${PYTHON:-python}" || command -v python3) || fail "EMI_ENV=current, and there is no active Python."
    local version
    version=$("$PY" -c 'import sys; print("%d.%d" % sys.version_info[:2])') || fail "$PY does not start."
    new_enough "$version" || fail "Python 3.11 or newer is needed, and the active one is $version ($PY)."
    "$PY" -P "$ROOT/emilib/environment.py" --check ${TEST:+--tests} "$ROOT/environment.yml" || exit 1
}

install_conda() { # install_conda TOOL: false when it could not
    local prefix="$ROOT/runs/env" command=(create)
    case ${1##*/} in conda | mamba) command=(env create) ;; esac
    say "Making the environment in runs/env with ${1##*/}."
    rm -rf -- "$prefix"
    export CONDA_ALWAYS_YES=true MAMBA_ALWAYS_YES=true
    if logged "$1" "${command[@]}" --prefix "$prefix" --file "$ROOT/environment.yml" &&
        in_place "$prefix"; then
        PY="$prefix/bin/python"
        return 0
    fi
    note "${1##*/} could not make the environment (its messages: $LOGS/setup.log); trying without it."
    return 1
}

install_venv() {
    local prefix="$ROOT/.venv" list="$LOGS/requirements.txt"
    # A package whose files are half written looks installed to pip, so what was interrupted, or
    # fits another list, is not repaired but made again; pip keeps what it has downloaded.
    [ -d "$prefix" ] && say "The environment in .venv is unfinished or out of date; making it again."
    rm -rf -- "$prefix"
    say "Making the environment in .venv with $("$PYTHON_FOUND" --version) (room needed: $INSTALL_GB GB, about $GPU_GB GB with GPU libraries; here: $(free_gb "$ROOT") GB)."
    "$PYTHON_FOUND" -I "$ROOT/emilib/environment.py" --pip-list "$ROOT/environment.yml" >"$list" ||
        fail "environment.yml can't be read."
    logged "$PYTHON_FOUND" -m venv "$prefix" ||
        fail "Python could not make a virtual environment in .venv; its messages are in $LOGS/setup.log."
    # pip unpacks beside the environment: /tmp may be small.
    mkdir -p "$ROOT/runs/tmp"
    TMPDIR="$ROOT/runs/tmp" logged "$prefix/bin/python" -m pip install --no-input \
        --disable-pip-version-check --progress-bar off -r "$list" || explain_pip
    rm -rf -- "$ROOT/runs/tmp"
    in_place "$prefix" || explain_pip
    PY="$prefix/bin/python"
    say "The environment is ready, ${SECONDS} s."
}

in_place() { # emilib itself, for JupyterLab and scripts; then the stamp
    logged "$1/bin/python" -m pip install --no-input --disable-pip-version-check --quiet \
        --no-deps --no-build-isolation --editable "$ROOT" || return 1
    stamp_wanted >"$1/emi-environment"
}

logged() { # runs a command with its output in the log, and tells how it goes
    local log="$LOGS/setup.log" start=$SECONDS packages status
    printf '\n$ %s\n' "$*" >>"$log"
    set -m # a process group of its own, which can be ended with all its children
    "$@" >>"$log" 2>&1 </dev/null &
    PIP_PID=$!
    set +m
    while kill -0 "$PIP_PID" 2>/dev/null; do
        sleep 0.5
        if [ $((SECONDS - start)) -ge 15 ]; then
            start=$SECONDS
            packages=$(grep -c '^ *Collecting ' "$log")
            if grep -q '^Installing collected packages' "$log"; then
                say "  $SECONDS s: unpacking $packages packages"
            else
                say "  $SECONDS s: $packages packages found"
            fi
        fi
    done
    wait "$PIP_PID"
    status=$?
    PIP_PID=""
    return $status
}

explain_pip() {
    local log="$LOGS/setup.log" what
    rm -rf -- "$ROOT/runs/tmp"
    if grep -qi 'No space left on device' "$log"; then
        fail "the disk is full: the installation needs $INSTALL_GB GB ($GPU_GB GB with GPU libraries) and $ROOT has $(free_gb "$ROOT") GB free."
    elif grep -qiE 'connection (broken|error|refused)|NewConnectionError|ConnectTimeout|Read timed out|name resolution|Network is unreachable|ProxyError|SSLError|5[0-9][0-9] (Server )?Error' "$log"; then
        fail "the package registry does not answer; check the network or pip's settings and start again (pip's messages: $log)."
    fi
    what=$(sed -nE 's/.*No matching distribution found for ([^ ]+).*/\1/p' "$log" | tail -n 1)
    if [ -n "$what" ] && grep -q 'from versions: none' "$log"; then
        fail "the package registry does not answer, or has no version of $what for this machine (pip's messages: $log)."
    elif [ -n "$what" ]; then
        fail "the package registry has no $what for $("$PYTHON_FOUND" --version) on this machine (pip's messages: $log)."
    fi
    fail "pip could not install the packages (its messages: $log)."
}

# ---------------------------------------------------------------- what is run

set_variables() {
    export PYTHONPATH="$ROOT" TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1
    export NUMBA_CACHE_DIR="$EMI_HOME/numba"
    export JUPYTER_PREFER_ENV_PATH=1 # this environment's kernel, not one registered by the user
    export PIP_DISABLE_PIP_VERSION_CHECK=1
    [ "${EMI_ENV:-}" = current ] || export PYTHONNOUSERSITE=1
    [ "$PROFILE" = paper ] && [ -z "$TEST" ] || export HF_HUB_OFFLINE=1
    PATH="$(dirname -- "$PY"):$PATH"
    mkdir -p "$NUMBA_CACHE_DIR" || fail "$EMI_HOME can't be written to."
}

RESULTS=() FAILED=""
step() { # step NAME COMMAND...: runs it whatever happened before
    local name=$1 start=$SECONDS mark=passed
    shift
    say "" && say "== $name"
    "$@" || { mark=FAILED && FAILED=1; }
    RESULTS+=("$(printf '%-7s %5d s  %s' "$mark" $((SECONDS - start)) "$name")")
}

run_tests() {
    cd -- "$ROOT" || exit 1
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

main() {
    read_options "$@"
    check_options
    export EMI_HOME=${EMI_HOME:-$ROOT/runs}
    mkdir -p -- "$EMI_HOME" 2>/dev/null || fail "the folder for results, $EMI_HOME, can't be made."
    EMI_HOME=$(cd -- "$EMI_HOME" && pwd) || fail "the folder for results, $EMI_HOME, can't be opened."
    LOGS="$EMI_HOME/logs"
    set_up
    set_variables
    if [ -n "$TEST" ]; then
        unset MPLBACKEND
        run_tests
        exit 0
    fi
    unset MPLBACKEND # the kernel chooses its own, which puts pictures into the notebook
    trap - INT TERM  # from here on the runner answers them
    cd -- "$ROOT" || exit 1
    exec "$PY" -m emilib.runner --profile "$PROFILE" ${CORPUS:+--corpus "$CORPUS"} \
        ${ONLY:+--only "$ONLY"} ${FRESH:+--fresh} ${VISUAL:+--visual "$VISUAL"} \
        ${SEEDS:+--seeds "$SEEDS"} ${PROCESSES:+--processes "$PROCESSES"} ${DRY:+--dry-run}
}

main "$@"
