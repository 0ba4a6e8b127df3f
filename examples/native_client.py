#!/usr/bin/env python3
"""A client of Kiln's native protocol, written from docs/protocol.md with nothing but `msgpack`.

    pip install msgpack
    kiln &
    python3 examples/native_client.py 127.0.0.1:7311
"""

import socket
import struct
import sys

import msgpack

# Operations, kinds of answers and options, as in docs/protocol.md.
HELLO, GET, SET, ADD, DELETE, INCREMENT, BATCH, SCAN, PING = 0, 1, 2, 3, 7, 8, 20, 21, 30
OK, VALUE, NOT_FOUND, STORED, NOT_STORED, EXISTS, DELETED, NUMBER = 0, 1, 2, 3, 4, 5, 6, 8
RESULTS, PAGE, ERROR, PUSH = 9, 10, 11, 12
TTL, FLAGS, COMPARE, RETURN_OLD, INITIAL = 1, 2, 3, 5, 6
DEFAULT_CACHE = 0
NO_SUCH_CACHE, NOT_A_NUMBER = 8, 12


class KilnError(Exception):
    def __init__(self, code, text, effect, retry_after=None, *later):
        applied = "not applied" if effect == 0 else "indeterminate"
        super().__init__(f"error {code}: {text} ({applied})")
        self.code, self.effect, self.retry_after = code, effect, retry_after


class Client:
    def __init__(self, address):
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=10)
        self.stream = self.socket.makefile("rb")
        self.last_id = 0
        hello = {"magic": "kiln", "version_min": 1, "version_max": 1, "client": "example/1"}
        _, self.welcome = self.call(HELLO, hello)

    def send(self, op, *arguments):
        """Sends a request and returns its id; the answer may come later."""
        self.last_id += 1
        body = msgpack.packb([op, self.last_id, *arguments])
        self.socket.sendall(struct.pack(">I", len(body)) + body)
        return self.last_id

    def receive(self):
        """The next message: kind, id and the rest."""
        (length,) = struct.unpack(">I", self.stream.read(4))
        kind, request_id, *rest = msgpack.unpackb(self.stream.read(length), strict_map_key=False)
        return kind, request_id, rest

    def call(self, op, *arguments):
        """Sends a request and waits for its answer. Pushes on the way are passed over."""
        wanted = self.send(op, *arguments)
        while True:
            kind, request_id, rest = self.receive()
            if request_id == wanted:
                break
        if kind == ERROR:
            raise KilnError(*rest)
        return kind, *rest

    def scan(self, prefix=b"", limit=100):
        """All keys and values that begin with `prefix`."""
        cursor = None
        while True:
            options = {1: prefix, 2: True}
            kind, cursor, entries = self.call(SCAN, DEFAULT_CACHE, cursor, limit, options)
            assert kind == PAGE
            for key, version, flags, ttl, value_len, value, *later in entries:
                yield key, value
            if cursor is None:
                return


def main(address):
    client = Client(address)
    print("connected to", client.welcome["server"], "node", client.welcome["node"])

    kind, version = client.call(SET, DEFAULT_CACHE, b"greeting", b"hello", {TTL: 60_000, FLAGS: 7})
    assert kind == STORED
    kind, read_version, flags, ttl, extra, value = client.call(GET, DEFAULT_CACHE, b"greeting")
    assert (kind, read_version, flags, value) == (VALUE, version, 7, b"hello")
    assert 0 < ttl <= 60_000
    print("greeting =", value.decode(), "version", version, "for", ttl, "ms")

    # Only the first of two writers that read the same version wins.
    kind, newer = client.call(SET, DEFAULT_CACHE, b"greeting", b"first", {COMPARE: version})
    assert kind == STORED and newer > version
    (kind,) = client.call(SET, DEFAULT_CACHE, b"greeting", b"second", {COMPARE: version})
    assert kind == EXISTS
    print("compare-and-set with an old version: exists")

    kind, _, old = client.call(SET, DEFAULT_CACHE, b"greeting", b"third", {RETURN_OLD: True})
    assert kind == STORED and old[2] == b"first"
    assert client.call(GET, DEFAULT_CACHE, b"nobody wrote this") == (NOT_FOUND,)

    operations = [[SET, b"user:%d" % i, b"name %d" % i] for i in range(10)]
    operations += [[GET, b"user:3"], [ADD, b"user:3", b"too late"], [DELETE, b"user:9"]]
    kind, results = client.call(BATCH, DEFAULT_CACHE, operations)
    assert kind == RESULTS and [r[0] for r in results[:10]] == [STORED] * 10
    assert results[10][0] == VALUE and results[10][5] == b"name 3"
    assert results[11][0] == NOT_STORED and results[12][0] == DELETED
    print("batch:", len(results), "results")

    client.call(DELETE, DEFAULT_CACHE, b"visits")
    assert client.call(INCREMENT, DEFAULT_CACHE, b"visits", 1, {INITIAL: 41})[:2] == (NUMBER, 41)
    assert client.call(INCREMENT, DEFAULT_CACHE, b"visits", 1)[:2] == (NUMBER, 42)
    for request, code in [
        ((INCREMENT, DEFAULT_CACHE, b"greeting", 1), NOT_A_NUMBER),
        ((GET, "no-such-cache", b"k"), NO_SUCH_CACHE),
    ]:
        try:
            client.call(*request)
            raise AssertionError("an error was expected")
        except KilnError as error:
            assert (error.code, error.effect) == (code, 0)
            print(error)

    found = dict(client.scan(b"user:"))
    assert found == {b"user:%d" % i: b"name %d" % i for i in range(9)}
    print("scan:", len(found), "users")

    # Many requests in one go, answered by id and not by order.
    ids = {client.send(GET, DEFAULT_CACHE, b"user:%d" % i): i for i in range(9)}
    for _ in list(ids):
        kind, request_id, rest = client.receive()
        assert kind == VALUE and rest[4] == b"name %d" % ids.pop(request_id)
    assert client.call(PING)[0] == OK and not ids
    print("all is well")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
