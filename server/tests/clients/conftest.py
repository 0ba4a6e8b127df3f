"""Starts the real `kiln` for the tests of real clients, and takes it away again.

KILN_BIN names the binary (default: target/release/kiln). One node serves all tests of a run; each
test begins with an empty cache. Tests that need other settings start a node of their own.
"""

import os
import pathlib
import socket
import subprocess
import tempfile
import time
import urllib.request

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]

# Longest wait for what should happen at once. Generous: test machines are busy.
SOON = 20


class Node:
    """A running node on free ports of the loopback."""

    def __init__(self, *flags):
        binary = os.environ.get("KILN_BIN", ROOT / "target/release/kiln")
        environment = {k: v for k, v in os.environ.items() if not k.startswith("KILN_")}
        self.directory = tempfile.TemporaryDirectory(prefix="kiln-")
        self.socket = os.path.join(self.directory.name, "kiln.sock")
        self.log = open(os.path.join(self.directory.name, "log"), "w+")
        self.process = subprocess.Popen(
            [binary, "serve", "--listen-memcached", "127.0.0.1:0", "--listen-native", "127.0.0.1:0",
             "--listen-http", "127.0.0.1:0",
             *([] if "--listen-peer" in flags else ["--listen-peer", "127.0.0.1:0"]),
             "--listen-memcached-unix", self.socket, "--threads", "2", *flags],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self.log, text=True,
            env=environment)
        try:
            line = self.process.stdout.readline()
            assert line.startswith("ready "), f"no ready line: {line!r}; {self.messages()}"
            fields = dict(field.split("=", 1) for field in line.split()[1:])
            self.host, port = fields["memcached"].rsplit(":", 1)
            self.port = int(port)
            self.native = fields["native"]
            self.http = fields["http"]
            self.peer = fields["peer"]
        except BaseException:
            self.stop()
            raise

    @property
    def address(self):
        return (self.host, self.port)

    @property
    def name(self):
        return f"{self.host}:{self.port}"

    def messages(self):
        self.log.flush()
        self.log.seek(0)
        return self.log.read()

    def connect(self):
        """A plain socket, for what no client library says."""
        connection = socket.create_connection(self.address, timeout=SOON)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def ask(self, request, end=b"\r\n"):
        """Sends a request on a connection of its own and reads until the reply ends so."""
        with self.connect() as connection:
            connection.sendall(request)
            reply = b""
            while not reply.endswith(end):
                piece = connection.recv(65536)
                if not piece:
                    break
                reply += piece
            return reply

    def metric(self, name):
        with urllib.request.urlopen(f"http://{self.http}/metrics", timeout=SOON) as reply:
            for line in reply.read().decode().splitlines():
                if line.startswith(name + " "):
                    return float(line.split()[-1])
        return None

    def rss(self):
        with open(f"/proc/{self.process.pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def stop(self):
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(SOON)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.process.stdout.close()
        self.log.close()
        self.directory.cleanup()


@pytest.fixture(scope="session")
def shared_node():
    node = Node("--memory", "256MiB")
    yield node
    code = node.process.poll()
    node.stop()
    assert code is None, "the node ended while the tests ran"


@pytest.fixture
def kiln(shared_node):
    assert shared_node.ask(b"flush_all\r\n") == b"OK\r\n"
    return shared_node


@pytest.fixture
def three_nodes():
    """Three nodes in one cluster, each of which holds its share of the copies."""
    nodes = []
    try:
        for _ in range(3):
            join = ["--join", ",".join(node.peer for node in nodes)] if nodes else []
            nodes.append(Node("--memory", "128MiB", *join))

        def whole():
            return all(node.metric('kiln_cluster_nodes{state="ready"}') == 3
                       and node.metric("kiln_cluster_partitions_short") == 0
                       and node.metric("kiln_cluster_copies_filling") == 0
                       and node.metric("kiln_cluster_partitions_held") > 500 for node in nodes)

        eventually("three nodes with all copies", whole, within=120)
        yield nodes
        assert all(node.process.poll() is None for node in nodes), "a node ended during the test"
    finally:
        for node in nodes:
            # One after the other would each hand over to the next.
            node.process.kill()
        for node in nodes:
            node.stop()


@pytest.fixture
def start():
    """Starts a node with these flags; it ends with the test."""
    nodes = []

    def begin(*flags):
        nodes.append(Node(*flags))
        return nodes[-1]

    yield begin
    for node in nodes:
        node.stop()


def eventually(what, holds, within=SOON):
    """Polls until something is true, and fails with its name when it does not come about."""
    deadline = time.monotonic() + within
    while not holds():
        assert time.monotonic() < deadline, f"in vain: {what}"
        time.sleep(0.01)
