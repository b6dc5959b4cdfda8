"""Reading and writing files. What is wrong with an input file is said in one line (`InputError`);
an output file is written whole or not at all. For documents see documents.py."""

import argparse
import gzip
import hashlib
import os
import re
import shutil
import signal
import sys
import tempfile
import zlib
from contextlib import contextmanager
from pathlib import Path

import msgspec
import ujson

META_DIR = Path(__file__).parent.parent / "meta"
REL2ID_FILE = META_DIR / "rel2id.json"  # DocRED's 96 relations
LONGEST = 400  # characters of a message


class InputError(ValueError):
    """Bad input from the user. The message is one printable line that says what is wrong and where,
    whatever text it quotes."""

    def __init__(self, message):
        super().__init__(printable(message, LONGEST))


def printable(text, longest=None):
    """The text on one line, with escapes (\\x1b) for what is not printable, so that neither control
    characters nor marks of the writing direction reach a terminal or a file. longest: in characters
    (more than 20); the middle of a longer text is left out."""
    text = "".join(x if x.isprintable() else ascii(x)[1:-1] for x in str(text))
    if longest and len(text) > longest:
        end = (longest - 5) // 3
        text = f"{text[: longest - 5 - end]} ... {text[-end:]}"
    return text


def reason_of(error):
    """The first line of the message of any library's error."""
    reason = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    return str(reason).splitlines()[0]


class OneLineParser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are InputErrors: one line, no usage text."""

    def error(self, message):
        raise InputError(message)


def run_main(main):
    """Runs a script's main(). Bad input ends it with one line on standard error and exit code 2; a
    reader that closes the pipe, such as head, without a word. SIGTERM ends it like an exception, so
    that temporary files are removed."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as stop:
        print(stop if str(stop) else "interrupted", file=sys.stderr)
        sys.exit(130)


UNFINISHED = ".unfinished-"  # start of the name of a folder that holds a file being written


def write_atomically(path, write, faults=OSError):
    """Calls write(a path in a temporary folder beside `path`) and moves the result to `path`:
    readers see the old file or the new one, also after a kill. `remove_unfinished` removes what a
    kill leaves, files that a library names itself included. A link stays a link; a device or a pipe
    is written to directly. faults: what `write` raises for a full disk or an impossible path.
    Raises InputError for these."""
    path = Path(path)
    try:
        if is_device(path):
            write(path)
            return
        target = Path(os.path.realpath(path))
        beside = {"dir": target.parent, "prefix": UNFINISHED, "ignore_cleanup_errors": True}
        with tempfile.TemporaryDirectory(**beside) as folder:
            temporary = Path(folder) / target.name
            write(temporary)
            os.replace(temporary, target)
    except (OSError, faults) as error:
        hint = "" if isinstance(error, OSError) else " (is the disk full?)"
        raise InputError(f"{path}: cannot be written: {reason_of(error)}{hint}") from None


def is_device(path):
    """Whether it is a device or a pipe, such as /dev/null."""
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


def remove_unfinished(folder):
    """Removes the temporary folders that a killed process left."""
    for path in Path(folder).glob(f"{UNFINISHED}*"):
        shutil.rmtree(path, ignore_errors=True)


def write_json(path, content, indent=1):
    """Writes JSON atomically. Raises InputError if it cannot be written."""
    text = ujson.dumps(content, indent=indent, ensure_ascii=False, escape_forward_slashes=False)
    write_atomically(path, lambda temporary: temporary.write_text(text + "\n", "utf-8"))


def relation_ids(path=REL2ID_FILE):
    """Property -> class id, e.g. {"Na": 0, "P17": 1, ...}, of a file of just that, or of a run
    folder's config.json, where it is label2id. Raises InputError."""
    rel2id = read_json(path)
    if isinstance(rel2id, dict) and "label2id" in rel2id:
        rel2id = rel2id["label2id"]
    is_object = isinstance(rel2id, dict) and rel2id
    if not is_object or not all(type(x) is int for x in rel2id.values()):
        raise InputError(f"{path}: expected an object, property -> class id")
    if sorted(rel2id.values()) != list(range(len(rel2id))):
        raise InputError(f"{path}: the class ids are not 0 to {len(rel2id) - 1}, each once")
    return rel2id


@contextmanager
def unreadable_as_one_line(path):
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError, EOFError, zlib.error) as error:  # ValueError: a NUL in the path
        raise InputError(f"{path}: cannot be read: {reason_of(error)}") from None


def read_bytes(path):
    """The content of a file without its byte order mark, decompressed if the name ends in .gz; "-"
    is standard input. Raises InputError if it is missing, empty or cannot be read."""
    with unreadable_as_one_line(path):
        if path == "-":
            content = sys.stdin.buffer.read()
        else:
            with (gzip.open if Path(path).suffix == ".gz" else open)(path, "rb") as file:
                content = file.read()
    content = content.removeprefix(b"\xef\xbb\xbf")
    if not content or content.isspace():
        raise InputError(f"{path}: the file is empty")
    return content


def read_text(path):
    """`read_bytes` as text in UTF-8. Raises InputError."""
    content = read_bytes(path)
    with unreadable_as_one_line(path):
        return content.decode()


def parse_json(content, decode=msgspec.json.decode):
    """Decodes bytes with `decode`, a function of msgspec. Raises InputError if they are not JSON.
    Neither NaN nor a lone surrogate (half of a character, \\ud800) is, and no tokenizer takes the
    latter."""
    try:
        return decode(content)
    except RecursionError:
        raise InputError("not valid JSON: nested too deeply") from None
    except ValueError as error:
        reason = str(error).removeprefix("JSON is malformed: ")
        if found := re.search(r" \(byte (\d+)\)$", reason):
            position = int(found[1])
            near = content[max(0, position - 40) : position + 20]
            line = content.count(b"\n", 0, position) + 1
            near = near.decode(errors="replace").strip()
            reason = f"{reason[: found.start()]} in line {line} near {near}"
        raise InputError(f"not valid JSON: {reason}") from None


def read_json(path):
    """The content of a JSON file, which may be compressed (.gz). Raises InputError if it is
    missing, empty or not JSON."""
    content = read_bytes(path)
    try:
        return parse_json(content)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def sha256_of(path):
    """The SHA-256 of a file, in hexadecimal digits. Raises InputError if it cannot be read."""
    with unreadable_as_one_line(path):
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
