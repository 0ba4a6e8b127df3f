"""Real data through real clients: a tree of files by hash, and sessions that come and go."""

import hashlib
import pathlib
import random
import sysconfig
import time

import pylibmc
import pytest
from conftest import eventually
from pymemcache.client.base import Client, PooledClient

VALUE_MAX = 1 << 20


def files():
    """Python's own library: thousands of files, from empty ones to more than a MiB."""
    root = pathlib.Path(sysconfig.get_paths()["stdlib"])
    found = [path for path in sorted(root.rglob("*")) if path.is_file() and not path.is_symlink()]
    found = [path for path in found if path.stat().st_size <= VALUE_MAX
             and "site-packages" not in path.parts]
    return root, found[:6000]


def test_a_tree_of_files_comes_back_byte_for_byte(start):
    root, paths = files()
    node = start("--memory", "1GiB")
    client = PooledClient(node.address, timeout=20, default_noreply=False)
    other = pylibmc.Client([node.name], binary=False)
    digests, size = {}, 0
    for path in paths:
        key = hashlib.sha1(str(path.relative_to(root)).encode()).hexdigest()
        data = path.read_bytes()
        digests[key] = hashlib.sha256(data).digest()
        size += len(data)
        assert client.set(key, data) is True
    print(f"{len(digests)} files, {size >> 20} MiB")
    assert len(digests) > 1000 and size > 20 << 20
    keys = list(digests)
    for at in range(0, len(keys), 100):
        for found in (client.get_many(keys[at:at + 100]), other.get_multi(keys[at:at + 100])):
            assert len(found) == len(keys[at:at + 100])
            for key, data in found.items():
                data = data if isinstance(data, bytes) else data.encode()
                assert hashlib.sha256(data).digest() == digests[key], key
    stats = Client(node.address).stats()
    assert stats[b"evictions"] == 0 and stats[b"curr_items"] == len(digests)


def test_a_tree_larger_than_memory_evicts_and_never_returns_a_wrong_byte(start):
    root, paths = files()
    ceiling = 96 << 20
    node = start("--memory", "96MiB")
    client = Client(node.address, timeout=20, default_noreply=False)
    digests = {}
    for path in paths:
        key = hashlib.sha1(str(path.relative_to(root)).encode()).hexdigest()
        data = path.read_bytes()
        digests[key] = hashlib.sha256(data).digest()
        assert client.set(key, data) is True
    hits = 0
    for key, digest in digests.items():
        data = client.get(key)
        if data is not None:
            hits += 1
            assert hashlib.sha256(data).digest() == digest, key
    stats = client.stats()
    print(f"{hits} of {len(digests)} files kept, RSS {node.rss() >> 20} MiB of 96 MiB")
    assert stats[b"evictions"] > 0 and 0 < hits < len(digests)
    # The program itself stands beside the ceiling.
    assert node.rss() < ceiling * 1.1 + (40 << 20)


@pytest.mark.parametrize("seed", [1])
def test_sessions_end_on_time_and_live_while_they_are_used(kiln, seed):
    """A web application's sessions: created with a time to live, renewed by use, ended by
    logout or by silence."""
    chance = random.Random(seed)
    print(f"seed {seed}")
    client = Client(kiln.address, timeout=20, default_noreply=False)
    sessions = [f"session:{chance.randbytes(16).hex()}" for _ in range(600)]
    bodies = {key: chance.randbytes(chance.randrange(50, 4000)) for key in sessions}
    created = time.monotonic()
    for key in sessions:
        assert client.add(key, bodies[key], expire=2) is True
        assert client.add(key, b"another", expire=2) is False
    all_created = time.monotonic()
    active, idle, left = sessions[:200], sessions[200:500], sessions[500:]
    for key in left:
        assert client.delete(key) is True
    while time.monotonic() < all_created + 2.5:
        for key in active:
            assert client.touch(key, 3) is True, "a session in use ended"
        time.sleep(0.05)
    assert client.get_many(idle) == {}, "a silent session outlived its time"
    assert client.get_many(left) == {}
    assert client.get_many(active) == {key: bodies[key] for key in active}
    eventually("their memory is given back",
               lambda: client.stats()[b"curr_items"] == len(active), within=5)
    eventually("the last sessions end", lambda: client.stats()[b"curr_items"] == 0, within=10)
    assert time.monotonic() - created > 4
    client.close()
