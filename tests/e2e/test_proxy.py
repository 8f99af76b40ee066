"""Unchanged clients of the Open Inference Protocol, through the local proxy and the sealed path."""

from __future__ import annotations

import json
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
import pytest

from cloister.base.ids import ModelId
from cloister.client.client import Client
from cloister.testing.local_cloud import LocalCloud

A = np.array([[1.0, 2.0, 3.0]], np.float32)
B = np.array([[4.0, 5.0, 6.0]], np.float32)


@dataclass
class Answer:
    """What came back."""

    status: int
    headers: Message
    body: bytes


class Unchanged:
    """A client that knows nothing of Cloister: the standard library's."""

    def __init__(self, address: str) -> None:
        self.address = address

    def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> Answer:
        over_socket = self.address.startswith("unix:")
        connection = HTTPConnection("localhost" if over_socket else self.address.removeprefix("http://"), timeout=60)
        if over_socket:
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.connect(self.address.removeprefix("unix:"))
        with closing(connection):
            connection.putrequest(method, path, skip_host="host" in headers, skip_accept_encoding=True)
            for name, value in headers.items():
                connection.putheader(name.replace("_", "-"), value)
            connection.putheader("content-length", str(len(body)))
            connection.endheaders(body)
            answer = connection.getresponse()
            return Answer(answer.status, answer.headers, answer.read())

    def infer_json(self, **inputs: np.ndarray) -> Answer:
        tensors = [
            {"name": name, "datatype": "FP32", "shape": list(value.shape), "data": value.ravel().tolist()}
            for name, value in inputs.items()
        ]
        body = json.dumps({"inputs": tensors}).encode()
        return self.ask("POST", "/v2/models/sums/infer", body, content_type="application/json")


@contextmanager
def proxy(cloud: LocalCloud, *options: str) -> Iterator[Unchanged]:
    command = [sys.executable, "-m", "cloister", "proxy", "--home", str(cloud.home), "--as", "bob", *options, "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        text = ""
        while not text.endswith("}\n"):
            line = process.stdout.readline()
            assert line, "the proxy ended"
            text += line
        try:
            yield Unchanged(json.loads(text)["address"])
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0


@pytest.fixture(scope="module")
def client(cloud: LocalCloud, bob: Client, model: ModelId) -> Iterator[Unchanged]:
    assert bob.model_id("sums") == model
    with proxy(cloud, "--listen", "127.0.0.1:0") as client:
        yield client


def test_json_in_and_json_out(client: Unchanged) -> None:
    answer = client.infer_json(a=A, b=B)
    assert answer.status == 200
    told = {item["name"]: item for item in json.loads(answer.body)["outputs"]}
    assert told["sum"]["data"] == (A + B).ravel().tolist()
    assert answer.headers["cloister-warning"] == "insecure-simulation"
    assert len(answer.headers["cloister-model-digest"]) == 64


def test_binary_tensors_in_and_out(client: Unchanged) -> None:
    described = [
        {"name": name, "datatype": "FP32", "shape": [1, 3], "parameters": {"binary_data_size": 12}} for name in "ab"
    ]
    head = json.dumps({"inputs": described, "parameters": {"binary_data_output": True}}).encode()
    answer = client.ask(
        "POST",
        "/v2/models/sums/infer",
        head + A.tobytes() + B.tobytes(),
        content_type="application/octet-stream",
        inference_header_content_length=str(len(head)),
    )
    length = int(answer.headers["inference-header-content-length"])
    names = [item["name"] for item in json.loads(answer.body[:length])["outputs"]]
    values = np.frombuffer(bytes(answer.body[length:]), np.float32).reshape(len(names), 3)
    assert np.array_equal(values[names.index("sum")], (A + B)[0])


def test_what_clients_ask_before_they_infer(client: Unchanged) -> None:
    assert json.loads(client.ask("GET", "/v2/health/ready").body) == {"ready": True}
    assert json.loads(client.ask("GET", "/v2").body)["name"] == "cloister"
    assert json.loads(client.ask("GET", "/v2/models/sums/ready").body)["ready"] is True
    told = json.loads(client.ask("GET", "/v2/models/sums").body)
    assert [item["name"] for item in told["inputs"]] == ["a", "b"]


def test_errors_are_those_of_the_protocol_with_our_codes(client: Unchanged) -> None:
    for answer, status, code in (
        (client.ask("GET", "/v2/models/nobody-granted-this"), 400, "model-not-consented"),
        (client.infer_json(a=A), 400, "input-missing"),
        (client.ask("POST", "/v2/models/sums/infer", b"{"), 400, "oip-malformed"),
        (client.ask("POST", "/v2/models/sums/infer", b"x", content_encoding="gzip"), 400, "content-encoding"),
        (client.ask("GET", "/metrics"), 404, "not-found"),
        (client.ask("GET", "/v2/models/sums/elsewhere"), 400, "endpoint-unknown"),
    ):
        told = json.loads(answer.body)
        assert (answer.status, told["type"]) == (status, f"urn:cloister:error:{code}"), told
        assert told["error"]


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"host": "localhost.evil.example:80"},
        {"host": "10.0.0.7"},
        {"origin": "null"},
        {"origin": "https://evil.example"},
        {"sec_fetch_site": "cross-site"},
    ],
)
def test_no_web_page_speaks_for_the_user(client: Unchanged, headers: dict[str, str]) -> None:
    answer = client.ask("GET", "/v2/models/sums", **headers)
    assert (answer.status, json.loads(answer.body)["type"]) == (403, "urn:cloister:error:proxy-browser")


def test_it_listens_to_this_machine_only(cloud: LocalCloud, bob: Client) -> None:
    command = [sys.executable, "-m", "cloister", "proxy", "--home", str(cloud.home), "--as", "bob"]
    done = subprocess.run([*command, "--listen", "0.0.0.0:0"], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "[proxy-not-local]" in done.stderr


def test_a_socket_that_only_its_owner_opens(cloud: LocalCloud, bob: Client, model: ModelId, tmp_path: Path) -> None:
    path = tmp_path / "proxy.sock"
    with proxy(cloud, "--socket", str(path)) as client:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert client.ask("GET", "/v2/models/sums/ready").status == 200
