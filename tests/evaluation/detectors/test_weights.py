"""Weight files: from the cache, from a server, from the user; and what may be in them."""

import hashlib
import os
import pickle
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sparsevid.evaluation.detectors.weights import WeightFile, detector_folder, obtain, read_state_dict

CONTENT = bytes(range(256)) * 9000  # more than one block
CHECKSUM = hashlib.sha256(CONTENT).hexdigest()
OTHER = hashlib.sha256(b"other").hexdigest()


class Server(ThreadingHTTPServer):
    """Serves CONTENT under every address; under `/cut` it promises more."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests = 0

    def address(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.requests += 1
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT) + 1000 * (self.path == "/cut")))
        self.end_headers()
        self.wfile.write(CONTENT)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SPARSEVID_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return detector_folder()


@pytest.fixture
def server():
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def weight_file(url: str | None = None, **changes: object) -> WeightFile:
    return replace(WeightFile("net.pt", url, (OTHER, CHECKSUM), "It is net.pt of Somebody."), **changes)


def kept_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_the_cache_lies_beside_the_manifests(tmp_path):
    assert detector_folder() == tmp_path / "cache" / "detectors"


def test_a_file_is_fetched_once_and_kept(server, cache):
    weights = weight_file(server.address("net.pt"))
    path, checksum = obtain(weights)
    assert (path, checksum) == (cache / "net.pt", CHECKSUM)
    assert path.read_bytes() == CONTENT
    assert obtain(weights) == (path, checksum)
    assert server.requests == 1
    assert kept_files(cache) == ["net.pt"]


def test_those_who_ask_at_once_share_one_download(server):
    weights = weight_file(server.address("net.pt"))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(obtain, [weights] * 4))
    assert len(set(found)) == 1 and server.requests == 1


def test_a_file_without_a_known_checksum_is_fetched_and_its_checksum_told(server):
    assert obtain(weight_file(server.address("net.pt"), sha256=()))[1] == CHECKSUM


def test_a_wrong_download_is_not_kept(server, cache):
    weights = weight_file(server.address("net.pt"), sha256=(OTHER,))
    with pytest.raises(ValueError, match=f"has SHA-256 {CHECKSUM}, and net.pt is known to have {OTHER}; it was not kept"):
        obtain(weights)
    assert kept_files(cache) == []


def test_a_download_that_breaks_off_is_not_kept(server, cache):
    with pytest.raises(FileNotFoundError, match=f"could not be fetched.*{len(CONTENT)}"):
        obtain(weight_file(server.address("cut"), sha256=()))
    assert kept_files(cache) == []


def test_without_a_network_the_message_says_what_to_get_and_where_to_put_it(cache):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    url = f"http://127.0.0.1:{port}/net.pt"
    with pytest.raises(FileNotFoundError) as caught:
        obtain(weight_file(url))
    for part in (str(cache / "net.pt"), url, "It is net.pt of Somebody.", "put it there, or give its path"):
        assert part in str(caught.value)


def test_a_file_that_cannot_be_fetched_is_asked_for(cache):
    with pytest.raises(FileNotFoundError, match="cannot be fetched. It is net.pt of Somebody. Put it there") as caught:
        obtain(weight_file())
    assert str(cache / "net.pt") in str(caught.value)


def test_a_damaged_file_in_the_cache_is_not_used(cache):
    cache.mkdir(parents=True)
    (cache / "net.pt").write_bytes(CONTENT[:-1])
    found = hashlib.sha256(CONTENT[:-1]).hexdigest()
    with pytest.raises(ValueError, match=f"has SHA-256 {found}, and net.pt is known to have {OTHER} or {CHECKSUM}"):
        obtain(weight_file())


def test_the_users_file_may_have_another_checksum_if_it_is_data(tmp_path, caplog):
    path = tmp_path / "mine.pt"
    path.write_bytes(CONTENT)
    assert obtain(weight_file(), path) == (path, CHECKSUM)
    assert caplog.text == ""
    assert obtain(weight_file(sha256=(OTHER,)), path) == (path, CHECKSUM)
    assert f"has SHA-256 {CHECKSUM}; known for net.pt: {OTHER}. It is used as it is" in caplog.text
    with pytest.raises(FileNotFoundError, match="there is no weight file .*absent.pt. It is net.pt of Somebody"):
        obtain(weight_file(), tmp_path / "absent.pt")


def test_a_program_must_be_known_or_trusted(tmp_path, cache):
    path = tmp_path / "mine.pt"
    path.write_bytes(CONTENT)
    program = weight_file(sha256=(OTHER,), code=True)
    with pytest.raises(ValueError, match=f"is a program, and its SHA-256 {CHECKSUM} is not a known one.*--trust-detector"):
        obtain(program, path)
    assert obtain(program, path, trust=True) == (path, CHECKSUM)
    assert obtain(replace(program, sha256=(CHECKSUM,)), path) == (path, CHECKSUM)
    cache.mkdir(parents=True)
    path.rename(cache / "net.pt")
    unknown = replace(program, sha256=())
    with pytest.raises(ValueError, match="is a program.*none is known"):
        obtain(unknown)
    assert obtain(unknown, trust=True)[1] == CHECKSUM
    with pytest.raises(ValueError, match="is known to have"):  # the cache holds what its name says, trusted or not
        obtain(program, trust=True)


STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2)}


@pytest.mark.parametrize("wrapper", [None, "module", "model", "state_dict"])
def test_a_state_dict_is_read_wherever_it_stands(tmp_path, wrapper):
    path = tmp_path / "net"  # any name will do
    torch.save(STATE if wrapper is None else {wrapper: STATE, "step": 3}, path)
    found = read_state_dict(path)
    assert found.keys() == STATE.keys() and all(torch.equal(found[name], STATE[name]) for name in STATE)


def test_safetensors_are_read(tmp_path):
    save_file(STATE, tmp_path / "net.safetensors")
    found = read_state_dict(tmp_path / "net.safetensors")
    assert found.keys() == STATE.keys() and all(torch.equal(found[name], STATE[name]) for name in STATE)


@pytest.mark.parametrize("name", ["net.pt", "net.safetensors"])
@pytest.mark.parametrize("part", [0.0, 0.3, 0.9])
def test_truncated_weights_are_refused(tmp_path, name, part):
    path = tmp_path / name
    save_file(STATE, path) if path.suffix == ".safetensors" else torch.save(STATE, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        read_state_dict(path)


def test_files_that_hold_something_else_are_refused(tmp_path):
    path = tmp_path / "net.pt"
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="net.pt: a checkpoint is a dictionary, found list"):
        read_state_dict(path)
    torch.save({"epoch": 3}, path)
    with pytest.raises(ValueError, match="net.pt: a state dict holds dense tensors alone.*found epoch"):
        read_state_dict(path)


class Harmful:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def test_a_pickle_runs_nothing(tmp_path):
    path, harm = tmp_path / "net.pt", tmp_path / "harm"
    torch.save({**STATE, "b": Harmful(harm)}, path)
    with pytest.raises(ValueError, match="is damaged, or holds more than tensors and plain data"):
        read_state_dict(path)
    path.write_bytes(pickle.dumps(Harmful(harm), protocol=2))
    with pytest.raises(ValueError, match="is damaged, or holds more than tensors and plain data"):
        read_state_dict(path)
    assert not harm.exists()
