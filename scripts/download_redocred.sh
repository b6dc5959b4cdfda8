#!/usr/bin/env bash
# Fetch the Re-DocRED splits from GitHub and verify them.
#
#   scripts/download_redocred.sh [DIR [NAME ...]]
#
#   DIR           folder they go to (default: dataset/redocred in the repository)
#   NAME          fetch only these of train_revised.json dev_revised.json test_revised.json
#   REDOCRED_URL  (environment) address of a folder to fetch from instead, e.g. of a mirror
#
# Every file is checked against the git blob id it has at one fixed commit, so all users train and
# score on the same bytes. A right file that is already there is kept and not fetched again; a wrong
# one is replaced only by a verified download, and then kept as NAME.bak.
# Exit code: 0 all requested files are there and right, 2 not, 128 + n ended by signal n.
set -euo pipefail

root=$(CDPATH="" cd -- "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
home=https://github.com/tonytan48/Re-DocRED
commit=ccfb54f5ddf5836027c87badda10f6dfc56efaac
url=${REDOCRED_URL:-https://raw.githubusercontent.com/tonytan48/Re-DocRED/$commit/data}
url=${url%/}

fail() {
    echo "$*" >&2
    exit 2
}

# The git blob id that NAME must have; status 1 if NAME is none of the three files.
expected_id() {
    case $1 in
        train_revised.json) echo 1ba485adf8e4cb789c441de2f6fe41de95690caa ;;
        dev_revised.json) echo 56c7700aaa9a6f9b1c99f0cdf0b576890fddcadc ;;
        test_revised.json) echo f59191a3f954ee623ed67cb5740a6e1aedd13a0b ;;
        *) return 1 ;;
    esac
}

# What `git hash-object FILE` prints, without git: sha1 of "blob <size>\0" and the content.
blob_id() {
    local size
    size=$(wc -c <"$1")
    # $((size)): wc pads the number with spaces on macOS, which has shasum and no sha1sum.
    { printf 'blob %d\0' $((size)) && cat "$1"; } |
        if command -v sha1sum >/dev/null; then sha1sum; else shasum -a 1; fi | cut -d ' ' -f 1
}

# Download ADDRESS to FILE. exec: the background process is the tool itself, so one kill ends it.
fetch() {
    case $tool in
        curl) exec curl -fsSL --retry 3 --connect-timeout 20 --speed-limit 1 --speed-time 30 \
            -o "$2" "$1" ;;
        wget) exec wget -nv --tries=3 --timeout=30 -O "$2" "$1" ;;
        python3) exec python3 -c '
import shutil, sys, urllib.error, urllib.request
try:
    with urllib.request.urlopen(sys.argv[1], timeout=30) as reply, open(sys.argv[2], "wb") as out:
        shutil.copyfileobj(reply, out)
except urllib.error.HTTPError as error:
    sys.exit(f"python3: {error}")
except (OSError, ValueError) as error:
    print(f"python3: {error}", file=sys.stderr)
    sys.exit(4)' "$1" "$2" ;;
    esac
}

# On every way out, Ctrl-C and kill included: end the download under way, remove what it wrote.
tmp=
cleanup() {
    trap '' HUP INT TERM
    # shellcheck disable=SC2046  # several ids are several arguments
    kill $(jobs -p) 2>/dev/null || true
    wait
    [ -z "$tmp" ] || rm -rf "$tmp"
}
trap cleanup EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

case ${1:-} in
    -h | --help) sed -n '2,/^set /s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" && exit 0 ;;
    -*) fail "unknown option $1; usage: download_redocred.sh [DIR [NAME ...]]" ;;
esac
dir=${1:-$root/dataset/redocred}
[ $# -eq 0 ] || shift
[ $# -gt 0 ] || set -- train_revised.json dev_revised.json test_revised.json
for name in "$@"; do
    expected_id "$name" >/dev/null ||
        fail "$name: not one of train_revised.json dev_revised.json test_revised.json"
done
command -v sha1sum >/dev/null || command -v shasum >/dev/null ||
    fail "download_redocred.sh needs sha1sum or shasum to verify the files, and found neither"

# 1. What is there already? Only what is absent or wrong is fetched.
missing= # as " NAME NAME"; a name given twice is listed once
for name in "$@"; do
    file=$dir/$name
    if [ ! -e "$file" ]; then
        missing="${missing/ $name/} $name"
    elif [ ! -f "$file" ] || [ ! -r "$file" ]; then
        fail "$file: is there, but is not a readable file; move it away and start again"
    elif id=$(blob_id "$file") && [ "$id" = "$(expected_id "$name")" ]; then
        echo "$name: already there, verified"
    else
        echo "$name: the file there is not the official one (expected $(expected_id "$name")," \
            "found $id); it stays until a verified download replaces it" >&2
        missing="${missing/ $name/} $name"
    fi
done
[ -n "$missing" ] || exit 0

# 2. Fetch into a temporary folder inside DIR (the same file system, so the last mv is atomic).
for tool in curl wget python3 none; do
    if command -v "$tool" >/dev/null; then break; fi
done
instead() {
    echo "download$1 by hand from $home (folder data) into $dir," \
        "or set REDOCRED_DIR or --data_dir to the folder they are in"
}
[ "$tool" != none ] || fail "no curl, wget or python3 to download with; $(instead "$missing")"
if ! mkdir -p "$dir" 2>/dev/null || ! tmp=$(mktemp -d "$dir/.download.XXXXXX" 2>/dev/null); then
    fail "cannot write into $dir; make it writable or name another folder:" \
        "download_redocred.sh DIR"
fi

for name in $missing; do
    new=$tmp/$name
    file=$dir/$name
    echo "$name: fetching $url/$name"
    # In the background, because bash runs a trap only once the command in the foreground has ended.
    fetch "$url/$name" "$new" 2>"$tmp/log" &
    status=0
    wait $! || status=$?
    reason=
    if [ $status -ne 0 ]; then
        reason=$(tail -n 1 "$tmp/log")
        reason=" (${reason:-$tool ended with exit code $status})"
    fi

    if [ $status -ne 0 ] && [ ! -s "$new" ]; then
        case $tool:$status in
            # No server reached (curl: proxy, name, connection, time-out, TLS): the other files
            # would fail alike.
            curl:[567] | curl:28 | curl:35 | curl:60 | wget:[45] | python3:4)
                fail "$name: no connection to $url$reason; $(instead "$missing")" ;;
        esac
        echo "$name: cannot fetch $url/$name$reason" >&2
        continue
    fi

    id=$(blob_id "$new")
    if [ "$id" != "$(expected_id "$name")" ]; then
        echo "$name: download refused, expected $(expected_id "$name"), found $id$reason" >&2
        continue
    fi

    kept=
    if [ -e "$file" ]; then
        backup=$file.bak
        n=1
        while [ -e "$backup" ]; do
            n=$((n + 1))
            backup=$file.bak$n
        done
        # Copied under a temporary name first: no half-written backup, no moment without the file.
        { cp -p "$file" "$tmp/old" && mv "$tmp/old" "$backup"; } ||
            fail "$name: cannot keep the old file as $backup, so it was not replaced"
        kept="; the old file is now $backup"
    fi
    mv -f "$new" "$file" || fail "$name: cannot move the verified download to $file"
    missing=${missing/ $name/}
    echo "$name: verified$kept"
done
[ -z "$missing" ] || fail "not complete: $(instead "$missing")"
