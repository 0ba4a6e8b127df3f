"""pymemcache: every command, every kind of client, noreply on and off, and the meta commands."""

import concurrent.futures
import time

import pytest
from conftest import eventually
from pymemcache.client.base import Client, PooledClient
from pymemcache.client.hash import HashClient
from pymemcache.client.retrying import RetryingClient
from pymemcache.exceptions import (
    MemcacheClientError,
    MemcacheIllegalInputError,
    MemcacheServerError,
    MemcacheUnknownCommandError,
)
from pymemcache.serde import compressed_serde, pickle_serde


def one(node, **options):
    return Client(node.address, connect_timeout=5, timeout=20, **options)


def pooled(node, **options):
    return PooledClient(node.address, max_pool_size=16, connect_timeout=5, timeout=20, **options)


def hashed(node, **options):
    return HashClient([node.address], connect_timeout=5, timeout=20, **options)


@pytest.fixture(params=[one, pooled, hashed], ids=["Client", "PooledClient", "HashClient"])
def client(request, kiln):
    client = request.param(kiln, default_noreply=False)
    yield client
    client.close()


def test_what_is_set_is_got(client):
    assert client.set("k", b"v", flags=7) is True
    assert client.get("k") == b"v"
    assert client.get("absent") is None
    assert client.get("absent", b"default") == b"default"
    assert client.set("empty", b"") is True
    assert client.get("empty") == b""
    assert client.set("bytes", bytes(range(256)) * 4) is True
    assert client.get("bytes") == bytes(range(256)) * 4
    assert client.set("lines", b"END\r\nVALUE k 0 1\r\n\r\nEND\r\n") is True
    assert client.get("lines") == b"END\r\nVALUE k 0 1\r\n\r\nEND\r\n"


def test_add_replace_append_and_prepend_keep_their_conditions(client):
    assert client.replace("k", b"x") is False
    assert client.append("k", b"x") is False
    assert client.prepend("k", b"x") is False
    assert client.add("k", b"b") is True
    assert client.add("k", b"x") is False
    assert client.append("k", b"c") is True
    assert client.prepend("k", b"a") is True
    assert client.get("k") == b"abc"
    assert client.replace("k", b"new") is True
    assert client.get("k") == b"new"


def test_cas_stores_only_over_the_version_it_names(client):
    assert client.cas("k", b"v", b"1") is None
    client.set("k", b"1")
    value, version = client.gets("k")
    assert value == b"1" and version.isdigit()
    assert client.cas("k", b"2", version) is True
    assert client.cas("k", b"3", version) is False
    assert client.get("k") == b"2"
    assert client.gets("absent") == (None, None)
    client.set("l", b"9")
    found = client.gets_many(["k", "l", "absent"])
    assert {key: value for key, (value, _) in found.items()} == {"k": b"2", "l": b"9"}
    assert found["k"][1] != found["l"][1]


def test_numbers_count_up_and_down(client):
    assert client.incr("n", 1) is None
    client.set("n", b"10")
    assert client.incr("n", 5) == 15
    assert client.decr("n", 20) == 0
    assert client.incr("n", 2**64 - 1) == 2**64 - 1
    assert client.incr("n", 1) == 0
    client.set("n", b"not a number")
    with pytest.raises(MemcacheClientError, match="non-numeric"):
        client.incr("n", 1)
    assert client.get("n") == b"not a number"


def test_delete_and_delete_many_remove(client):
    client.set_many({"a": b"1", "b": b"2", "c": b"3"})
    assert client.delete("a") is True
    assert client.delete("a") is False
    assert client.delete_many(["b", "c", "absent"]) is True
    assert client.get_many(["a", "b", "c"]) == {}


def test_thousands_of_keys_go_at_once(client):
    values = {f"key:{i:05}": f"value {i} ".encode() * (i % 50) for i in range(5000)}
    assert client.set_many(values) == []
    assert client.get_many(list(values)) == values
    some = list(values)[::7] + ["absent"]
    assert client.get_many(some) == {key: values[key] for key in some[:-1]}
    assert client.delete_many(list(values)) is True
    assert client.get_many(list(values)) == {}


def test_touch_moves_the_end_of_an_item(client):
    client.set("k", b"v", expire=1)
    assert client.touch("k", 60) is True
    assert client.touch("absent", 60) is False
    client.set("other", b"v", expire=1)
    eventually("the other ended", lambda: client.get("other") is None, within=5)
    assert client.get("k") == b"v"
    assert client.touch("k", -1) is True
    assert client.get("k") is None


def test_an_item_ends_when_its_time_is_over_and_not_before(client):
    begun = time.monotonic()
    client.set("k", b"v", expire=2)
    client.set("gone", b"v", expire=-1)
    client.set("stays", b"v", expire=0)
    client.set("date", b"v", expire=int(time.time()) + 1000)
    assert client.get("gone") is None
    while client.get("k") == b"v":
        assert time.monotonic() - begun < 4
        time.sleep(0.01)
    assert 1.9 <= time.monotonic() - begun <= 2.5
    assert client.get("stays") == b"v" and client.get("date") == b"v"


def test_flush_all_empties_now_or_later(client):
    client.set("k", b"v")
    client.flush_all()
    assert client.get("k") is None
    client.set("k", b"v")
    client.flush_all(delay=1)
    assert client.get("k") == b"v"
    eventually("the flush came", lambda: client.get("k") is None, within=5)
    client.set("k", b"v")
    assert client.get("k") == b"v"


@pytest.mark.parametrize("make", [one, pooled])
def test_without_replies_commands_do_the_same(kiln, make):
    client = make(kiln, default_noreply=True)
    client.set("k", b"v")
    assert client.get("k") == b"v"
    client.add("k", b"x")
    client.append("k", b"w", noreply=True)
    client.prepend("k", b"u")
    assert client.get("k") == b"uvw"
    client.replace("k", b"1")
    client.incr("k", 41, noreply=True)
    assert client.get("k") == b"42"
    client.decr("k", 2, noreply=True)
    client.touch("k", 100)
    _, version = client.gets("k")
    client.cas("k", b"cas", version, noreply=True)
    assert client.get("k") == b"cas"
    client.set_many({f"m{i}": b"v" for i in range(2000)}, noreply=True)
    assert len(client.get_many([f"m{i}" for i in range(2000)])) == 2000
    client.delete_many([f"m{i}" for i in range(2000)], noreply=True)
    assert client.get_many([f"m{i}" for i in range(2000)]) == {}
    client.delete("k")
    assert client.get("k") is None
    client.set("k", b"v")
    client.flush_all()
    assert client.get("k") is None
    client.close()


@pytest.mark.parametrize("make", [one, pooled, hashed])
def test_objects_come_back_as_they_went(kiln, make):
    client = make(kiln, serde=pickle_serde, default_noreply=False)
    objects = {"text": "grün", "number": 42, "list": [1, {"a": (None, 2.5)}], "bytes": b"\0\xff"}
    client.set_many(objects)
    assert client.get_many(list(objects)) == objects
    client.close()
    packed = make(kiln, serde=compressed_serde, default_noreply=False)
    packed.set("long", "x" * 100_000)
    assert packed.get("long") == "x" * 100_000
    packed.close()
    plain = make(kiln)
    assert len(plain.get("long")) < 1000
    plain.close()


def test_keys_may_be_long_and_in_other_scripts_and_have_a_prefix(kiln):
    client = one(kiln, allow_unicode_keys=True, key_prefix=b"app:", default_noreply=False)
    for key in ["k" * 246, "schlüssel", "鍵", "a/b?c=d#e"]:
        assert client.set(key, key.encode()) is True
        assert client.get(key) == key.encode()
    assert one(kiln).get("app:" + "k" * 246) == b"k" * 246
    with pytest.raises(MemcacheIllegalInputError):
        client.set("k" * 251, b"v")
    # What the client library does not let through, the server refuses.
    reply = kiln.ask(b"get " + b"k" * 251 + b"\r\n")
    assert reply == b"CLIENT_ERROR bad command line format\r\n"


def test_a_value_over_the_limit_is_refused_and_the_old_one_is_gone(client):
    client.set("k", b"old")
    with pytest.raises(MemcacheServerError, match="object too large for cache"):
        client.set("k", b"x" * (1 << 20) + b"x")
    # The connection goes on, at the right place.
    assert client.get("k") is None
    assert client.set("k", b"x" * (1 << 20)) is True
    assert client.get("k") == b"x" * (1 << 20)


def test_statistics_answer_under_memcacheds_names(kiln):
    client = one(kiln, default_noreply=False)
    before = client.stats()
    client.set("k", b"v")
    client.get_many(["k", "absent"])
    client.incr("absent", 1)
    after = client.stats()
    changed = {key: after[key] - before[key] for key in
               [b"get_hits", b"get_misses", b"cmd_get", b"cmd_set", b"incr_misses", b"total_items"]}
    assert changed == {b"get_hits": 1, b"get_misses": 1, b"cmd_get": 2, b"cmd_set": 1,
                       b"incr_misses": 1, b"total_items": 1}
    assert after[b"curr_items"] == 1
    assert after[b"pid"] == kiln.process.pid
    assert after[b"limit_maxbytes"] == 256 << 20
    # What memcached_exporter reads; without these it fails or reports nonsense.
    for name in ("version uptime time curr_connections total_connections rejected_connections "
                 "max_connections conn_yields listen_disabled_num accepting_conns bytes evictions "
                 "limit_maxbytes bytes_read bytes_written cmd_get cmd_set cmd_touch cmd_flush "
                 "get_hits get_misses delete_hits delete_misses incr_hits incr_misses decr_hits "
                 "decr_misses touch_hits touch_misses cas_hits cas_misses cas_badval reclaimed "
                 "curr_items total_items rusage_user rusage_system threads "
                 "store_too_large store_no_memory").split():
        assert name.encode() in after, name
    settings = client.stats("settings")
    assert settings[b"maxconns"] == 4096 and settings[b"num_threads"] == 2
    assert settings[b"tcpport"] == kiln.port and settings[b"item_size_max"] == 1 << 20
    items = client.stats("items")
    assert items[b"items:1:number"] == 1
    assert b"active_slabs" in client.stats("slabs")
    assert len(client.stats("conns")) >= 4
    client.stats("cachedump", "1", "100")
    dump = kiln.ask(b"stats cachedump 1 100\r\n", end=b"END\r\n")
    assert dump == b"ITEM k [1 b; 0 s]\r\nEND\r\n"
    assert b"cmd_get" in client.stats()
    client.close()


@pytest.mark.parametrize("make", [one, pooled])
def test_the_version_is_numeric_and_new_enough_for_clients_that_check_it(kiln, make):
    version = make(kiln).version()
    assert tuple(int(part) for part in version.split(b".")) >= (1, 6, 40)


def test_the_memory_limit_can_be_lowered_and_raised(start):
    node = start("--memory", "64MiB")
    client = one(node, default_noreply=False)
    assert client.cache_memlimit(32) is True
    assert client.stats()[b"limit_maxbytes"] == 32 << 20
    assert client.cache_memlimit(64) is True
    assert client.stats()[b"limit_maxbytes"] == 64 << 20
    client.close()


def test_a_unix_socket_serves_the_same_items(kiln):
    client = Client(kiln.socket, timeout=20, default_noreply=False)
    assert client.set("k", b"over a path") is True
    assert one(kiln).get("k") == b"over a path"
    client.close()


def test_many_threads_share_a_pool_and_lose_nothing(kiln):
    client = pooled(kiln, default_noreply=False)
    client.set("n", b"0")

    def work(thread):
        for i in range(200):
            client.incr("n", 1)
            assert client.set(f"{thread}:{i}", f"{thread}:{i}".encode()) is True
            assert client.get(f"{thread}:{i}") == f"{thread}:{i}".encode()

    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        for done in [threads.submit(work, thread) for thread in range(8)]:
            done.result()
    assert client.get("n") == b"1600"
    client.close()


def test_keys_are_spread_over_several_nodes_and_found_again(start):
    nodes = [start("--memory", "16MiB") for _ in range(3)]
    client = HashClient([node.address for node in nodes], use_pooling=True, timeout=20,
                        default_noreply=False)
    values = {f"key:{i}": str(i).encode() for i in range(3000)}
    assert client.set_many(values) == []
    assert client.get_many(list(values)) == values
    shares = [one(node).stats()[b"curr_items"] for node in nodes]
    assert sum(shares) == 3000 and min(shares) > 600, shares
    client.close()


def test_a_client_that_tries_again_finds_the_node_after_quit(kiln):
    client = RetryingClient(one(kiln, default_noreply=False), attempts=3, retry_delay=0.01)
    assert client.set("k", b"v")
    client.quit()
    assert client.get("k") == b"v"


def test_an_unknown_command_is_an_error_and_the_connection_goes_on(kiln):
    client = one(kiln)
    with pytest.raises(MemcacheUnknownCommandError):
        client.raw_command("nonsense")
    assert client.get("k") is None
    client.close()


def test_shutdown_is_refused_unless_enabled(kiln, start):
    assert b"ERROR" in kiln.ask(b"shutdown\r\n")
    node = start("--enable-shutdown")
    one(node).shutdown(graceful=True)
    assert node.process.wait(20) == 0


class TestMeta:
    """The meta commands, which pymemcache passes through as they are."""

    @pytest.fixture
    def raw(self, kiln):
        client = one(kiln)

        def ask(command, end=b"\r\n"):
            return client.raw_command(command, end_tokens=end)

        yield ask
        client.close()

    def test_a_value_is_set_and_got_with_what_its_flags_ask(self, raw):
        assert raw("ms k 2 F5 T100 Oq k\r\nhi") == b"HD Oq kk"
        assert raw("mg k v f t s Oz", b"\r\nhi\r\n") == b"VA 2 f5 t100 s2 Oz"
        assert raw("mg absent v") == b"EN"
        assert raw("mn") == b"MN"

    def test_compare_and_set_and_the_modes(self, raw):
        assert raw("ms k 1 MR\r\n1") == b"NS"
        assert raw("ms k 1 ME c\r\n1").startswith(b"HD c")
        assert raw("ms k 1 ME\r\n1") == b"NS"
        assert raw("ms k 1 MA\r\n2") == b"HD"
        assert raw("ms k 1 MP\r\n0") == b"HD"
        assert raw("mg k v", b"\r\n012\r\n") == b"VA 3"
        version = raw("mg k c").removeprefix(b"HD c").decode()
        assert raw(f"ms k 1 C{int(version) + 1}\r\nx") == b"EX"
        assert raw(f"ms k 1 C{version} E777\r\nx") == b"HD"
        assert raw("mg k c") == b"HD c777"
        assert raw("ms absent 1 C5\r\nx") == b"NF"

    def test_arithmetic(self, raw):
        assert raw("ma n") == b"NF"
        assert raw("ma n N0 J10 v", b"\r\n10\r\n") == b"VA 2"
        assert raw("ma n D5 v", b"\r\n15\r\n") == b"VA 2"
        assert raw("ma n MD D20 v", b"\r\n0\r\n") == b"VA 1"
        assert raw("ms n 1\r\nx") == b"HD"
        with pytest.raises(MemcacheClientError, match="non-numeric"):
            raw("ma n")

    def test_delete_and_invalidate_give_one_reader_the_right_to_refill(self, raw):
        assert raw("md k") == b"NF"
        assert raw("ms k 3\r\nold") == b"HD"
        assert raw("md k I T30") == b"HD"
        assert raw("mg k v t", b"\r\nold\r\n") == b"VA 3 t30 X W"
        assert raw("mg k v", b"\r\nold\r\n") == b"VA 3 Z X"
        assert raw("ms k 3\r\nnew") == b"HD"
        assert raw("mg k v", b"\r\nnew\r\n") == b"VA 3"
        assert raw("md k") == b"HD"
        assert raw("mg k") == b"EN"

    def test_a_miss_is_vivified_once(self, raw):
        assert raw("mg k N30 v t", b"\r\n\r\n") == b"VA 0 t30 W"
        assert raw("mg k N30 v", b"\r\n\r\n") == b"VA 0 Z"

    def test_keys_in_base64(self, raw):
        assert raw("ms AP8g 1 b\r\nx") == b"HD"
        assert raw("mg AP8g b k v", b"\r\nx\r\n") == b"VA 1 kAP8g b"
        assert raw("md AP8g b") == b"HD"

    def test_debugging_shows_the_item(self, raw):
        assert raw("me k") == b"EN"
        assert raw("ms k 1 T100\r\nx") == b"HD"
        reply = raw("me k")
        assert reply.startswith(b"ME k exp=") and b" size=" in reply

    def test_quiet_commands_end_with_a_barrier(self, raw):
        assert raw("ms a 1 q\r\n1\r\nmg b v q\r\nmg a v q k\r\nmn", b"MN\r\n") == b"VA 1 ka\r\n1\r\n"
