"""scripts/download_redocred.sh against a server on the loopback address; no other network.

The script's blob ids belong to the official files. Where a test needs a download that verifies, it
runs a copy of the script with one id changed to that of a small fake file.
"""

import hashlib
import http.server
import os
import shutil
import socket
import subprocess
import threading

import pytest
from conftest import ROOT, shared

TRAIN, DEV, TEST = NAMES = ["train_revised.json", "dev_revised.json", "test_revised.json"]
IDS = {
    TRAIN: "1ba485adf8e4cb789c441de2f6fe41de95690caa",
    DEV: "56c7700aaa9a6f9b1c99f0cdf0b576890fddcadc",
    TEST: "f59191a3f954ee623ed67cb5740a6e1aedd13a0b",
}
BODY = b'[{"title": "fake"}]\n' * 500
WRONG = b"my own edited copy\n"


def blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def test_the_ids_are_those_of_the_official_files():
    for name in (DEV, TEST):
        assert blob_id(shared(f"redocred-2612/{name}").read_bytes()) == IDS[name]


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves server.files: name -> body, or (body, how many bytes to send)."""

    def do_GET(self):
        name = self.path.lstrip("/")
        self.server.requests.append(name)
        if name not in self.server.files:
            self.send_error(404)
            return
        entry = self.server.files[name]
        body, sent = entry if isinstance(entry, tuple) else (entry, len(entry))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:sent])
        self.close_connection = True

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.files, server.requests = {}, []
        server.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def fake_script(tmp_path):
    """The script in a folder of its own, with dev's blob id changed to that of BODY."""
    folder = tmp_path / "repo/scripts"
    folder.mkdir(parents=True)
    for name in ("download_redocred.py", "download_redocred.sh"):
        text = (ROOT / "scripts" / name).read_text()
        (folder / name).write_text(text.replace(IDS[DEV], blob_id(BODY)))
    assert blob_id(BODY) in (folder / "download_redocred.py").read_text()
    return folder / "download_redocred.sh"


def run(url, *args, script=ROOT / "scripts/download_redocred.sh", **more):
    """No proxies between the script and the loopback address."""
    env = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    command = [shutil.which("bash"), str(script), *map(str, args)]
    env |= {"REDOCRED_URL": url} | more
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=30)


def content(folder):
    """All that lies in the folder, hidden or not: name -> bytes."""
    return {p.name: p.read_bytes() if p.is_file() else "folder" for p in folder.iterdir()}


def error_line(result, name):
    """The one line of stderr about this file."""
    lines = [line for line in result.stderr.splitlines()[:-1] if name in line]
    assert len(lines) == 1, result.stderr
    return lines[0]


def test_right_file_is_not_fetched_again(server, fake_script, tmp_path):
    server.files = {DEV: BODY}
    data = tmp_path / "data"
    for _ in range(2):
        result = run(server.url, data, DEV, DEV, script=fake_script)
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
        assert f"{DEV}: what was there ({blob_id(old)}) is now {DEV}.bak" in result.stdout
    assert content(data) == {DEV: BODY, f"{DEV}.bak": b"first", f"{DEV}.bak2": b"second"}


@pytest.mark.parametrize("name,entry,reason", [
    (TRAIN, BODY, f"expected {IDS[TRAIN]}, found {blob_id(BODY)}; not taken"),
    (DEV, b"", f"expected {IDS[DEV]}, found {blob_id(b'')}; not taken"),
    (TEST, (BODY, 1000), "IncompleteRead(1000 bytes read"),
], ids=["changed", "empty", "cut"])  # fmt: skip
def test_cut_or_changed_download_is_refused(server, tmp_path, name, entry, reason):
    server.files = {name: entry}
    result = run(server.url, tmp_path, name)
    assert result.returncode == 2
    assert content(tmp_path) == {}
    assert reason in error_line(result, name)


def test_missing_files_each_get_a_line(server, tmp_path):
    result = run(server.url + "/", tmp_path)
    assert result.returncode == 2
    assert server.requests == NAMES
    assert content(tmp_path) == {}
    for name in NAMES:
        assert "404" in error_line(result, name)
    assert "by hand" in result.stderr.splitlines()[-1]


@pytest.mark.parametrize("files", [{DEV: (BODY, 1000)}, {}], ids=["cut", "404"])
def test_wrong_file_survives_a_failed_download(server, tmp_path, files):
    server.files = files
    (tmp_path / DEV).write_bytes(WRONG)
    result = run(server.url, tmp_path, DEV)
    assert result.returncode == 2
    assert content(tmp_path) == {DEV: WRONG}


def test_without_a_server(tmp_path):
    """A port that is taken, but not opened."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        result = run(f"http://127.0.0.1:{taken.getsockname()[1]}", tmp_path, DEV, TEST)
    assert result.returncode == 2 and content(tmp_path) == {}
    assert "refused" in error_line(result, DEV) and "refused" in error_line(result, TEST)
    last = result.stderr.splitlines()[-1]
    assert "https://github.com/tonytan48/Re-DocRED" in last and str(tmp_path) in last
    assert "REDOCRED_DIR" in last and "--data_dir" in last


def test_another_name(tmp_path):
    result = run("", tmp_path, "dev.json")
    assert result.returncode == 2 and "dev.json: not one of train_revised.json" in result.stderr


def test_without_python(fake_script, tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/dirname").symlink_to(shutil.which("dirname"))
    result = run("", script=fake_script, PATH=str(tmp_path / "bin"), PYTHON="")
    assert result.returncode == 2 and "finds no Python" in result.stderr
