# shellcheck shell=bash
# Sourced by the scripts beside it: how a long step shows progress, and how a failing one reports its reason.
# All messages go to stderr, because the stdout of find-python and build-python is their result.

say() { printf '[%s] %s\n' "${0##*/}" "$*" >&2; }
die() { say "$*"; exit 1; }

# step NAME COMMAND...: a line with the name, a sign of life every 15 s, the time at the end. The output goes to
# $LOG, whose tail is shown on failure only. The ticker is what runs in the background, not the command: a
# background command would ignore Ctrl-C.
ticker=
work= # a folder that a script has set to be removed at its end
at_exit() {
    if [[ -n $ticker ]]; then kill "$ticker" 2>/dev/null; fi
    if [[ -n $work ]]; then rm -rf "$work"; fi
}
trap at_exit EXIT
step() {
    local name=$1 start=$SECONDS status=0
    shift
    printf '[%s] %s ...' "${0##*/}" "$name" >&2
    # sleep gets no descriptor of ours: it outlives the ticker, and would keep a pipe open (9 is the lock).
    (while sleep 15 >/dev/null 2>&1 9>&-; do printf ' %ds' $((SECONDS - start)) >&2; done) &
    ticker=$!
    "$@" >>"$LOG" 2>&1 || status=$?
    kill "$ticker" 2>/dev/null || true
    wait "$ticker" 2>/dev/null || true
    ticker=
    if ((status)); then
        printf ' failed after %ds\n' $((SECONDS - start)) >&2
        tail -n 40 "$LOG" >&2
        die "$name: exit status $status; the whole log is $LOG"
    fi
    printf ' done, %ds\n' $((SECONDS - start)) >&2
}

# need_packages PACKAGE...: on Debian, stop with the command that installs what is missing. The system is the
# user's: only in CI, and only as root, the command is run here.
need_packages() {
    command -v dpkg-query >/dev/null || return 0
    local missing=() package
    for package in "$@"; do
        [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || missing+=("$package")
    done
    ((${#missing[@]})) || return 0
    if [[ ${CI:-} == true && $(id -u) == 0 ]]; then
        step "apt-get update" apt-get update -q
        step "apt-get install ${missing[*]}" \
            env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "${missing[@]}"
    else
        die "these system packages are missing; install them and run this again:
    apt-get install ${missing[*]}"
    fi
}

# want_packages PACKAGE...: like need_packages, for packages that only some checks need: these report themselves what
# they skip, and why. CI installs what is available; elsewhere this prints nothing and never stops.
want_packages() {
    [[ ${CI:-} == true && $(id -u) == 0 ]] && command -v apt-get >/dev/null || return 0
    local missing=() package
    step "apt-get update" apt-get update -q
    for package in "$@"; do
        [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] && continue
        if apt-cache show "$package" >/dev/null 2>&1; then
            missing+=("$package")
        else
            say "$package is not available on this system; checks that need it are skipped"
        fi
    done
    ((${#missing[@]})) || return 0
    step "apt-get install ${missing[*]}" \
        env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "${missing[@]}"
}

# use_suite SUITE KIND: enter a new folder ($work) below $cache with an apt state of its own for that release of Debian,
# KIND deb or deb-src: the system's sources, lists and cache are neither needed nor changed. $apt is the command.
# shellcheck disable=SC2154,SC2034 # cache comes from, and apt goes to, the script
use_suite() {
    local codename mirror keyring
    # Use the mirror that the system's own apt uses for its release, under any of the release's names.
    codename=$(. /etc/os-release && printf '%s' "${VERSION_CODENAME:-}")
    # shellcheck disable=SC2016 # apt's variables, not the shell's
    mirror=$(apt-get indextargets --format '$(RELEASE) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' |
        awk -v name="$codename" '$2 == "main" && ($1 == name || $1 ~ /^((old)*stable|testing|unstable|sid)$/) {
            print $3; exit }')
    [[ -n $mirror ]] || die "apt's configuration names no Debian mirror for '$codename'"
    for keyring in /usr/share/keyrings/debian-archive-keyring.{gpg,pgp}; do
        if [[ -f $keyring ]]; then break; fi
    done
    # On the file system of the result, so that the last step is a rename, and a killed run leaves nothing half made.
    work=$(mktemp -d "$cache/tmp.XXXXXX")
    cd "$work" || die "$work is gone"
    mkdir -p lists/partial cache/archives/partial
    : >status
    printf '%s [signed-by=%s] %s %s main\n' "$2" "$keyring" "$mirror" "$1" >sources.list
    apt=(apt-get -q -o "Dir::Etc::SourceList=$work/sources.list" -o Dir::Etc::SourceParts=-
        -o "Dir::State::Lists=$work/lists" -o "Dir::State::status=$work/status" -o "Dir::Cache=$work/cache"
        -o APT::Sandbox::User=root)
}
