"""python-memcached: the oldest of the clients, with compression, cas and many keys."""

import memcache
import pytest
from conftest import eventually


@pytest.fixture
def client(kiln):
    client = memcache.Client([kiln.name], cache_cas=True, socket_timeout=20)
    yield client
    client.disconnect_all()


def test_values_keep_their_type(client):
    for value in ["text", "grün", b"bytes\0\r\n", 42, 2**70, True, [1, 2], {"a": (None, 1.5)}]:
        assert client.set("k", value)
        assert client.get("k") == value
    assert client.get("absent") is None
    assert client.get("absent", "default") == "default"


def test_add_replace_append_and_prepend(client):
    assert not client.replace("k", "x")
    assert client.add("k", "b")
    assert not client.add("k", "x")
    assert client.append("k", "c") and client.prepend("k", "a")
    assert client.get("k") == "abc"
    assert client.replace("k", "new")
    assert client.get("k") == "new"


def test_many_keys_at_once(client):
    values = {f"key{i}": "v" * (i % 300) for i in range(4000)}
    assert client.set_multi(values) == []
    assert client.get_multi(list(values) + ["absent"]) == values
    assert client.set_multi({1: "a", 2: "b"}, key_prefix="pre:") == []
    assert client.get_multi([1, 2, 3], key_prefix="pre:") == {1: "a", 2: "b"}
    assert client.delete_multi(list(values)) == 1
    assert client.get_multi(list(values)) == {}
    assert client.set_multi(values, noreply=True) == []
    assert client.get_multi(list(values)) == values


def test_large_values_are_compressed_and_come_back(client):
    text = "The quick brown fox jumps over the lazy dog. " * 50_000
    assert client.set("k", text, min_compress_len=1000)
    assert client.get("k") == text


def test_a_value_that_the_server_refuses_is_not_left_in_its_old_state(kiln):
    client = memcache.Client([kiln.name], server_max_value_length=8 << 20, socket_timeout=20)
    assert client.set("k", "old")
    assert not client.set("k", b"x" * ((1 << 20) + 1))
    assert client.get("k") is None
    client.disconnect_all()


def test_cas_stores_only_over_what_was_read(client, kiln):
    assert client.set("k", 1)
    assert client.gets("k") == 1
    assert client.cas("k", 2)
    assert client.gets("k") == 2
    other = memcache.Client([kiln.name])
    assert other.set("k", 10)
    assert not client.cas("k", 3)
    assert client.get("k") == 10
    other.disconnect_all()


def test_numbers_count(client):
    assert client.incr("n") is None
    assert client.set("n", 10)
    assert client.incr("n") == 11
    assert client.incr("n", 9) == 20
    assert client.decr("n", 25) == 0
    client.incr("n", 3, noreply=True)
    assert client.get("n") == 3


def test_expiry_touch_and_delete(client):
    assert client.set("short", "v", time=1) and client.set("long", "v", time=1)
    assert client.touch("long", 100)
    assert not client.touch("absent", 100)
    eventually("the item ended", lambda: client.get("short") is None, within=5)
    assert client.get("long") == "v"
    assert client.delete("long")
    assert client.get("long") is None
    assert not client.delete("long")


def test_statistics_and_slabs_are_understood(client):
    client.set("k", "v")
    (name, stats), = client.get_stats()
    assert stats["curr_items"] == "1"
    (name, settings), = client.get_stats("settings")
    assert settings["maxconns"] == "4096"
    (name, slabs), = client.get_slab_stats()
    assert "active_slabs" in slabs


def test_a_unix_socket(kiln):
    client = memcache.Client([f"unix:{kiln.socket}"])
    assert client.set("k", "v") and client.get("k") == "v"
    client.disconnect_all()
