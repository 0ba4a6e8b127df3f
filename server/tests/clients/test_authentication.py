"""A file of users: the first command is `set` with user and password as its value."""

import os

import pytest
from pymemcache.client.base import Client


@pytest.fixture
def node(start, tmp_path):
    users = tmp_path / "users"
    users.write_text("ann:secret\nbob:pass:word\n")
    os.chmod(users, 0o600)
    return start("--auth-file", str(users))


def test_nothing_works_before_and_everything_after(node):
    client = Client(node.address, timeout=20, default_noreply=False)
    with pytest.raises(Exception, match="unauthenticated"):
        client.get("k")
    assert client.set("auth", b"ann secret") is True
    assert client.get("auth") is None, "the credentials are not an item"
    assert client.set("k", b"v") is True
    assert client.get("k") == b"v"
    # Each connection authenticates by itself.
    with pytest.raises(Exception, match="unauthenticated"):
        Client(node.address, timeout=20).get("k")
    bob = Client(node.address, timeout=20, default_noreply=False)
    assert bob.set("any", b"bob pass:word") is True
    assert bob.get("k") == b"v"


def test_wrong_credentials_are_refused_and_may_be_tried_again(node):
    with node.connect() as connection:
        lines = connection.makefile("rb")
        for wrong in [b"ann secre", b"ann secrets", b"bob secret", b"ann", b" "]:
            connection.sendall(b"set x 0 0 %d\r\n%s\r\n" % (len(wrong), wrong))
            assert lines.readline().startswith(b"CLIENT_ERROR "), wrong
        connection.sendall(b"get x\r\n")
        assert lines.readline() == b"CLIENT_ERROR unauthenticated\r\n"
        # In one write with what follows: the answer decides how that is read.
        connection.sendall(b"set x 0 0 10\r\nann secret\r\nset k 0 0 1\r\n1\r\nget k\r\n")
        replies = [lines.readline() for _ in range(5)]
        assert replies == [b"STORED\r\n", b"STORED\r\n", b"VALUE k 0 1\r\n", b"1\r\n", b"END\r\n"]
