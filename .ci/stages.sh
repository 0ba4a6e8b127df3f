# What `.ci/run` and `.ci/long` share: stages with headings and times, and the tools they need.
# Sourced from the root of the repository, with `set -euo pipefail`.

TARGET=${CARGO_TARGET_DIR:-$PWD/target}
RELEASE=$TARGET/release
WORK=$TARGET/ci
PYTHON_LIBS=$WORK/python
export CARGO_TERM_COLOR=never PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore
# A check compiles once and throws away: nothing is gained by what only speeds up the next build, nor
# by the last tenth of speed of a release.
export CARGO_INCREMENTAL=0 CARGO_PROFILE_RELEASE_LTO=${CARGO_PROFILE_RELEASE_LTO:-off}
export CARGO_PROFILE_RELEASE_CODEGEN_UNITS=${CARGO_PROFILE_RELEASE_CODEGEN_UNITS:-16}
export CARGO_PROFILE_RELEASE_DEBUG=${CARGO_PROFILE_RELEASE_DEBUG:-0}
export CARGO_PROFILE_DEV_DEBUG=${CARGO_PROFILE_DEV_DEBUG:-0} CARGO_PROFILE_TEST_DEBUG=${CARGO_PROFILE_TEST_DEBUG:-0}
mkdir -p "$WORK"

STAGE_TIMES=()
SKIPPED=()
stage_pid=

# Runs a stage as a job of its own, so that whatever ends this script ends the stage's processes.
stage() {
    local name=$1 begun=$SECONDS status=0
    shift
    printf '\n==== %s\n' "$name"
    set -m
    (
        set -euo pipefail
        "$@"
    ) </dev/null &
    stage_pid=$!
    set +m
    wait "$stage_pid" || status=$?
    stage_pid=
    STAGE_TIMES+=("$(printf '%5d s  %s' $((SECONDS - begun)) "$name")")
    if ((status != 0)); then
        printf '\n==== FAILED: %s (exit %d)\n' "$name" "$status"
        summary
        exit 1
    fi
    printf -- '---- %s: %d s\n' "$name" $((SECONDS - begun))
}

# Says plainly that something was left out. The summary repeats it.
skip() {
    echo "SKIPPED: $1"
    echo "$1" >>"$WORK/skipped"
}

summary() {
    printf '\nTimes\n'
    printf '%s\n' "${STAGE_TIMES[@]}"
    if [[ -s $WORK/skipped ]]; then
        printf 'Skipped\n'
        sed 's/^/  /' "$WORK/skipped"
    fi
}

finish() {
    summary
    printf '\n==== PASSED in %d min %d s\n' $((SECONDS / 60)) $((SECONDS % 60))
}

end_stage() {
    if [[ -n $stage_pid ]]; then
        # The stage leads its own process group.
        kill -TERM -- "-$stage_pid" 2>/dev/null || true
        wait "$stage_pid" 2>/dev/null || true
    fi
}
trap end_stage EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
rm -f "$WORK/skipped"

as_root() {
    if ((EUID == 0)); then "$@"; else sudo -n "$@"; fi
}

install_tools() {
    local packages=(memcached redis-server libmemcached-tools libmemcached-dev zlib1g-dev clang)
    # A Python with its own pip needs no other.
    python3 -m pip --version >/dev/null 2>&1 || packages+=(python3 python3-pip)
    local missing=() package
    for package in "${packages[@]}"; do
        dpkg -s "$package" >/dev/null 2>&1 || missing+=("$package")
    done
    if ((${#missing[@]} > 0)); then
        as_root apt-get update -q
        # Debian starts servers that it installs, but not in runlevel 1; the tests start their own.
        as_root env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
            apt-get install -y -q --no-install-recommends "${missing[@]}"
    fi
    # A browser for the dashboard's tests, and what checks the alerts: without them those are
    # skipped, and say so.
    install_or_skip "the dashboard in a browser" chromium chromium-driver
    install_or_skip "the alert rules" prometheus
    install_or_skip "readings from MQTT" mosquitto
    install_or_skip "answers beside those of influxd" influxdb
    rustup component add rustfmt clippy 2>/dev/null || true
    python3 -m pip install -q --upgrade --target "$PYTHON_LIBS" \
        pymemcache pylibmc python-memcached pytest msgpack schemathesis openapi-python-client duckdb \
        confluent-kafka
    # The clients' own test suites come with their sources only.
    rm -rf "$WORK/sources"
    mkdir -p "$WORK/sources"
    python3 -m pip download -q --no-deps --no-binary pymemcache,pylibmc,python-memcached \
        --dest "$WORK/sources" pymemcache pylibmc python-memcached ||
        skip "the sources of the clients, with their own tests, cannot be had"
    memcached --version
    redis-server --version
    python3 -m pip list --path "$PYTHON_LIBS"
}

# Installs packages that only what is named here needs.
install_or_skip() {
    local what=$1
    shift
    dpkg -s "$@" >/dev/null 2>&1 && return
    { as_root apt-get update -q &&
        as_root env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
            apt-get install -y -q --no-install-recommends "$@"; } ||
        skip "$what: $* cannot be installed"
}

# Fuzzes each target for so many seconds, from the corpus that earlier runs left, if any.
fuzz_each_target() {
    local seconds=$1 target
    local tools=$WORK/cargo-fuzz
    if ! PATH=$tools/bin:$PATH cargo fuzz --version >/dev/null 2>&1; then
        if ! cargo install -q cargo-fuzz --locked --root "$tools"; then
            skip "fuzzing: cargo-fuzz cannot be installed"
            return
        fi
    fi
    export PATH=$tools/bin:$PATH RUSTC_BOOTSTRAP=1
    export CARGO_TARGET_DIR=$TARGET/fuzz
    cd protocol
    for target in $(cargo fuzz list); do
        local log=$WORK/fuzz-$target.log status=0
        cargo fuzz run "$target" -- "-max_total_time=$seconds" "-dict=fuzz/${target%%_*}.dict" \
            -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 >"$log" 2>&1 || status=$?
        if ((status != 0)); then
            tail -n 80 "$log"
            echo "fuzz target $target failed; all of its output: $log"
            return 1
        fi
        echo "$target: $(grep -E '^Done ' "$log")"
    done
}
