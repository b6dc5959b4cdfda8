"""Fetches the Re-DocRED splits from GitHub and verifies them; needs no package.

    bash scripts/download_redocred.sh [FOLDER [NAME ...]]

Every file is checked against the git blob id that it has at one fixed commit, so all users train
and score on the same bytes. A right file that is already there is not fetched again; a wrong one is
replaced only by a verified download, and then kept as NAME.bak. REDOCRED_URL (environment) is the
address of a folder to fetch from instead, e.g. of a mirror.
"""

import argparse
import hashlib
import os
import shutil
import ssl
import sys
import tempfile
import urllib.request
from contextlib import suppress
from http.client import HTTPException
from itertools import count
from pathlib import Path

HOME = "https://github.com/tonytan48/Re-DocRED"
COMMIT = "ccfb54f5ddf5836027c87badda10f6dfc56efaac"
FILES = f"https://raw.githubusercontent.com/tonytan48/Re-DocRED/{COMMIT}/data"
IDS = {
    "train_revised.json": "1ba485adf8e4cb789c441de2f6fe41de95690caa",
    "dev_revised.json": "56c7700aaa9a6f9b1c99f0cdf0b576890fddcadc",
    "test_revised.json": "f59191a3f954ee623ed67cb5740a6e1aedd13a0b",
}


def main():
    parser = argparse.ArgumentParser(description="Fetches and verifies Re-DocRED.")
    default = Path(__file__).parent.parent / "dataset/redocred"
    parser.add_argument("folder", nargs="?", type=Path, default=default, help=f"default: {default}")
    parser.add_argument("names", nargs="*", help=f"of {' '.join(IDS)}; default: all")
    args = parser.parse_args()
    if unknown := [name for name in args.names if name not in IDS]:
        parser.error(f"{unknown[0]}: not one of {' '.join(IDS)}")
    url = (os.environ.get("REDOCRED_URL") or FILES).rstrip("/")
    names = dict.fromkeys(args.names or IDS)
    if left := [name for name in names if not provide(name, args.folder, url)]:
        say(
            f"not complete: download {' '.join(left)} by hand from {HOME} (folder data) into "
            f"{args.folder}, or set REDOCRED_DIR or --data_dir to the folder they are in"
        )
        sys.exit(2)


def say(message):
    print(f"error: {message}", file=sys.stderr)


def provide(name, folder, url):
    """Whether the right file is in the folder now. What is wrong is said in one line."""
    path, expected, old = folder / name, IDS[name], None
    try:
        if path.exists():
            old = blob_id(path.read_bytes())
            if old == expected:
                print(f"{name}: already there, verified")
                return True
        print(f"{name}: fetching {url}/{name}", flush=True)
        content = fetch(f"{url}/{name}")
        if blob_id(content) != expected:
            say(f"{url}/{name}: expected {expected}, found {blob_id(content)}; not taken")
            return False
        folder.mkdir(parents=True, exist_ok=True)
        if old:
            backups = (path.with_name(f"{name}.bak{n if n > 1 else ''}") for n in count(1))
            backup = next(x for x in backups if not x.exists())
            shutil.copy2(path, backup)
            print(f"{name}: what was there ({old}) is now {backup.name}")
        with tempfile.TemporaryDirectory(dir=folder, prefix=".unfinished-") as temporary:
            (Path(temporary) / name).write_bytes(content)
            (Path(temporary) / name).replace(path)
    except (OSError, HTTPException, ValueError) as error:
        say(f"{name}: {' '.join(str(error).split()) or type(error).__name__}")
        return False
    print(f"{name}: verified")
    return True


def fetch(address):
    context = ssl.create_default_context()
    with suppress(ImportError):  # for a Python that finds no certificates of its system
        import certifi

        context.load_verify_locations(certifi.where())
    with urllib.request.urlopen(address, timeout=30, context=context) as reply:
        return reply.read()


def blob_id(content):
    """What `git hash-object` prints."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
