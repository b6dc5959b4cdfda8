"""scripts/download_redocred.sh against a server on the loopback address; no other network.

The script's blob ids belong to the official files. Where a test needs a download that verifies, it
runs a copy of the script with one id changed to that of a small fake file.
"""

import contextlib
import hashlib
import http.server
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading

import pytest
from conftest import ROOT, lacking

SCRIPT = ROOT / "scripts" / "download_redocred.sh"
TRAIN, DEV, TEST = NAMES = ["train_revised.json", "dev_revised.json", "test_revised.json"]
IDS = {
    TRAIN: "1ba485adf8e4cb789c441de2f6fe41de95690caa",
    DEV: "56c7700aaa9a6f9b1c99f0cdf0b576890fddcadc",
    TEST: "f59191a3f954ee623ed67cb5740a6e1aedd13a0b",
}
BODY = b'[{"title": "fake"}]\n' * 500
WRONG = b"my own edited copy\n"

SHA1 = "sha1sum" if shutil.which("sha1sum") else "shasum"

pytestmark = pytest.mark.skipif(not shutil.which("bash"), reason="the script needs bash")


def blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves server.files: name -> body, or (body, how many bytes to send, "close" or "stall")."""

    def do_GET(self):
        name = self.path.lstrip("/")
        self.server.requests.append(name)
        if name not in self.server.files:
            self.send_error(404)
            return
        entry = self.server.files[name]
        body, sent, then = entry if isinstance(entry, tuple) else (entry, len(entry), "close")
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:sent])
        if then == "stall":
            self.server.stalled.set()
            with contextlib.suppress(OSError):
                self.connection.recv(1)  # returns once the other side is gone
            self.server.hung_up.set()
        self.close_connection = True

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.files, server.requests = {}, []
        server.stalled, server.hung_up = threading.Event(), threading.Event()
        server.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def dead_url():
    """An address on which nothing listens: the port is taken, but not opened."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture
def fake_script(tmp_path):
    """The script in a folder of its own, with dev's blob id changed to that of BODY."""
    text = SCRIPT.read_text()
    assert text.count(IDS[DEV]) == 1
    script = tmp_path / "repo" / "scripts" / SCRIPT.name
    script.parent.mkdir(parents=True)
    script.write_text(text.replace(IDS[DEV], blob_id(BODY)))
    return script


def environment(url, path=None):
    """No proxies and no ~/.curlrc between the script and the loopback address."""
    env = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    return env | {"REDOCRED_URL": url, "HOME": os.devnull, "PATH": path or os.environ["PATH"]}


def run(url, *args, script=SCRIPT, path=None):
    command = [shutil.which("bash"), str(script), *map(str, args)]
    env = environment(url, path)
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=30)


def content(folder):
    """All that lies in the folder, hidden or not: name -> bytes."""
    return {p.name: p.read_bytes() if p.is_file() else "folder" for p in folder.iterdir()}


def error_line(result, name):
    """The one line of stderr about this file."""
    lines = [line for line in result.stderr.splitlines() if line.startswith(f"{name}: ")]
    assert len(lines) == 1, result.stderr
    return lines[0]


def test_right_file_is_not_fetched_again(server, fake_script, tmp_path):
    server.files = {DEV: BODY}
    data, no_fetcher = tmp_path / "data", path_with(tmp_path, SHA1)
    for path in (None, None, no_fetcher):  # a complete folder needs no tool to download with
        result = run(server.url, data, DEV, DEV, script=fake_script, path=path)
        assert result.returncode == 0, result.stderr
        assert server.requests == [DEV]  # once, though named twice and run again
        assert content(data) == {DEV: BODY}
    assert "already there" in result.stdout
    run(server.url, data, script=fake_script)
    assert sorted(server.requests) == sorted(NAMES)  # the other two only


def test_wrong_file_is_replaced_by_a_verified_one_and_kept(server, fake_script, tmp_path):
    server.files = {DEV: BODY}
    data = tmp_path / "data"
    data.mkdir()
    for old in (b"first", b"second"):
        (data / DEV).write_bytes(old)
        result = run(server.url, data, DEV, script=fake_script)
        assert result.returncode == 0, result.stderr
        line = error_line(result, DEV)
        assert blob_id(BODY) in line and blob_id(old) in line
    assert content(data) == {DEV: BODY, f"{DEV}.bak": b"first", f"{DEV}.bak2": b"second"}


@pytest.mark.parametrize("name,entry,found", [
    (TRAIN, BODY, BODY), (DEV, b"", b""), (TEST, (BODY, 1000, "close"), BODY[:1000]),
], ids=["changed", "empty", "cut"])  # fmt: skip
def test_cut_or_changed_download_is_refused(server, tmp_path, name, entry, found):
    server.files = {name: entry}
    result = run(server.url, tmp_path, name)
    assert result.returncode == 2
    assert content(tmp_path) == {}
    line = error_line(result, name)
    assert f"expected {IDS[name]}" in line and f"found {blob_id(found)}" in line


def test_missing_files_each_get_a_line(server, tmp_path):
    result = run(server.url + "/", tmp_path)
    assert result.returncode == 2
    assert server.requests == NAMES
    assert content(tmp_path) == {}
    for name in NAMES:
        assert f"{server.url}/{name}" in error_line(result, name)
        assert "404" in error_line(result, name)
    assert "by hand" in result.stderr.splitlines()[-1]


@pytest.mark.parametrize("files", [{DEV: (BODY, 1000, "close")}, {}], ids=["cut", "404"])
def test_wrong_file_survives_a_failed_download(server, tmp_path, files):
    server.files = files
    (tmp_path / DEV).write_bytes(WRONG)
    result = run(server.url, tmp_path, DEV)
    assert result.returncode == 2
    assert content(tmp_path) == {DEV: WRONG}
    assert f"found {blob_id(WRONG)}" in result.stderr.splitlines()[0]


def path_with(tmp_path, *names):
    """A PATH with nothing but the basic tools and these."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in (*"bash cat cp cut dirname mkdir mktemp mv rm sed tail wc".split(), *names):
        target = sys.executable if name == "python3" else shutil.which(name)
        if target is None:
            lacking(name)
        (folder / name).symlink_to(target)
    return str(folder)


@pytest.mark.parametrize("tool", ["curl", "wget", "python3"])
def test_each_download_tool(server, dead_url, fake_script, tmp_path, tool):
    server.files = {DEV: BODY, TEST: BODY}
    path, data = path_with(tmp_path, tool, SHA1), tmp_path / "data"

    result = run(dead_url, data, script=fake_script, path=path)  # no server: one line, no more
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert f"{TRAIN}: no connection to {dead_url} (" in line
    assert all(name in line for name in NAMES)
    assert "https://github.com/tonytan48/Re-DocRED" in line and str(data) in line
    assert "REDOCRED_DIR" in line and "--data_dir" in line
    assert content(data) == {}

    result = run(server.url, data, script=fake_script, path=path)
    assert result.returncode == 2
    assert "404" in error_line(result, TRAIN)
    assert f"found {blob_id(BODY)}" in error_line(result, TEST)
    assert content(data) == {DEV: BODY}


@pytest.mark.parametrize("tool,number", [
    ("curl", signal.SIGTERM), ("wget", signal.SIGINT), ("python3", signal.SIGHUP),
])  # fmt: skip
def test_a_signal_in_the_middle_leaves_nothing(server, tmp_path, tool, number):
    server.files = {DEV: (BODY, 1000, "stall")}
    path, data = path_with(tmp_path, tool, SHA1), tmp_path / "data"
    data.mkdir()
    (data / DEV).write_bytes(WRONG)
    process = subprocess.Popen(
        [shutil.which("bash"), str(SCRIPT), str(data), DEV],
        env=environment(server.url, path),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # even under nohup or "&"
    )
    try:
        assert server.stalled.wait(10)
        assert len(content(data)) == 2  # the file and the temporary folder
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # Ctrl-C reaches the whole group
        else:
            process.send_signal(number)
        assert process.wait(10) == 128 + number
        assert server.hung_up.wait(5)  # the download tool has ended too
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert content(data) == {DEV: WRONG}
