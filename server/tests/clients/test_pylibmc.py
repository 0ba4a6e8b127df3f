"""pylibmc, which is libmemcached underneath: behaviours, pools, many nodes, large values."""

import threading

import pylibmc
import pytest
from conftest import eventually


def connect(*nodes, **behaviors):
    return pylibmc.Client([node.name for node in nodes], binary=False, behaviors=behaviors)


@pytest.fixture(params=[{}, {"tcp_nodelay": True}, {"tcp_nodelay": True, "no_block": True},
                        {"cas": True, "ketama": True}],
                ids=["plain", "nodelay", "noblock", "cas+ketama"])
def client(request, kiln):
    client = connect(kiln, **request.param)
    yield client
    client.disconnect_all()


def test_values_keep_their_type(client):
    for value in ["text", "grün", b"bytes\0\r\n", 42, -7, True, [1, 2], {"a": (None, 1.5)}, ""]:
        assert client.set("k", value)
        assert client.get("k") == value
    assert client.get("absent") is None


def test_add_replace_append_prepend_and_delete(client):
    assert not client.replace("k", "x")
    assert client.add("k", "b")
    assert not client.add("k", "x")
    assert client.append("k", "c") and client.prepend("k", "a")
    assert client.get("k") == "abc"
    assert client.replace("k", "new")
    assert client.delete("k")
    assert not client.delete("k")


def test_numbers_count(client):
    with pytest.raises(pylibmc.NotFound):
        client.incr("n")
    client.set("n", 10)
    assert client.incr("n") == 11
    assert client.incr("n", 9) == 20
    assert client.decr("n", 25) == 0
    client.set("m", 1)
    client.incr_multi(["n", "m"], delta=5)
    assert client.get_multi(["n", "m"]) == {"n": 5, "m": 6}


def test_many_keys_at_once(client):
    values = {f"key{i}": "v" * (i % 300) for i in range(3000)}
    assert client.set_multi(values) == []
    assert client.get_multi(list(values) + ["absent"]) == values
    assert client.add_multi({"key1": "x", "new": "y"}) == ["key1"]
    assert client.set_multi({"a": 1, "b": 2}, key_prefix="pre:") == []
    assert client.get_multi(["a", "b", "c"], key_prefix="pre:") == {"a": 1, "b": 2}
    assert client.delete_multi(list(values))
    assert client.get_multi(list(values)) == {}


def test_large_values_and_compression(client):
    for length in [1, 1000, 65_535, 65_536, 300_000, (1 << 20) - 1, 1 << 20]:
        value = bytes(i * 31 & 0xFF for i in range(256)) * (length // 256 + 1)
        assert client.set("k", value[:length])
        assert client.get("k") == value[:length]
    assert client.set("z", b"x" * 5_000_000, min_compress_len=1000)
    assert client.get("z") == b"x" * 5_000_000


def test_a_value_over_the_limit_is_refused_and_the_client_goes_on(kiln):
    client = connect(kiln)
    client.set("k", "old")
    with pytest.raises(pylibmc.Error):
        client.set("k", b"x" * ((1 << 20) + 1))
    assert client.get("k") is None
    assert client.set("k", "new") and client.get("k") == "new"


def test_cas_stores_only_over_the_version_it_names(kiln):
    client = connect(kiln, cas=True)
    client.set("k", 1)
    value, version = client.gets("k")
    assert client.cas("k", value + 1, version)
    assert not client.cas("k", 99, version)
    assert client.get("k") == 2
    with pytest.raises(pylibmc.NotFound):
        client.cas("absent", 1, version)


def test_without_replies_writes_arrive(kiln):
    client = connect(kiln, _noreply=True)
    for i in range(500):
        client.set(f"k{i}", i)
    reader = connect(kiln)
    eventually("all arrived", lambda: len(reader.get_multi([f"k{i}" for i in range(500)])) == 500)
    client.delete("k0")
    eventually("it is gone", lambda: reader.get("k0") is None)


def test_expiry_and_touch(kiln):
    client = connect(kiln)
    client.set("short", "v", time=1)
    client.set("long", "v", time=1)
    assert client.touch("long", 100)
    assert not client.touch("absent", 100)
    eventually("the item ended", lambda: client.get("short") is None, within=5)
    assert client.get("long") == "v"


def test_pools_share_a_node_between_threads(kiln):
    client = connect(kiln, tcp_nodelay=True)
    client.set("n", 0)
    pool = pylibmc.ClientPool(client, 4)
    failures = []

    def work(thread):
        try:
            for i in range(200):
                with pool.reserve(block=True) as mc:
                    mc.incr("n")
                    mc.set(f"{thread}:{i}", (thread, i))
                    assert mc.get(f"{thread}:{i}") == (thread, i)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    [thread.start() for thread in threads]
    [thread.join(60) for thread in threads]
    assert failures == [] and not any(thread.is_alive() for thread in threads)
    assert client.get("n") == 1200


def test_ketama_spreads_keys_over_nodes_and_moves_few_when_one_is_added(start):
    nodes = [start("--memory", "16MiB") for _ in range(3)]
    client = connect(*nodes[:2], ketama=True)
    keys = [f"key:{i}" for i in range(2000)]
    assert client.set_multi({key: key for key in keys}) == []
    assert len(client.get_multi(keys)) == 2000
    grown = connect(*nodes, ketama=True)
    found = len(grown.get_multi(keys))
    assert 1000 < found < 2000, found


def test_statistics_flush_and_unix_socket(kiln):
    client = connect(kiln)
    client.set("k", "v")
    (name, stats), = client.get_stats()
    assert stats[b"curr_items" if b"curr_items" in stats else "curr_items"] in ("1", b"1")
    client.flush_all()
    assert client.get("k") is None
    unix = pylibmc.Client([kiln.socket], binary=False)
    assert unix.set("k", "v") and client.get("k") == "v"


def test_the_retired_binary_protocol_fails_at_once_and_harms_nobody(kiln):
    binary = pylibmc.Client([kiln.name], binary=True)
    with pytest.raises(pylibmc.Error):
        binary.set("k", "v")
    assert connect(kiln).set("k", "v")
