"""Readings from Kafka, by librdkafka's mock cluster: each message counts once, also when the node that
reads it is killed."""

import json
import signal
import time
import urllib.error
import urllib.request

import pytest

from conftest import eventually

BASE = 1_700_000_000_000
SENSORS = 20
PARTITIONS = 4


class Kafka:
    """A mock cluster, which lives as long as the producer that made it."""

    def __init__(self):
        kafka = pytest.importorskip("confluent_kafka", reason="confluent-kafka is not installed")
        self.producer = kafka.Producer({"test.mock.num.brokers": 1, "linger.ms": 5})
        self.sums = {}
        self.sent = 0
        brokers = self.producer.list_topics(timeout=20).brokers.values()
        self.address = ",".join(f"{broker.host}:{broker.port}" for broker in brokers)
        # Asking for a topic makes it, with four partitions.
        eventually("the topic is there", lambda: len(
            self.producer.list_topics("readings", timeout=20).topics["readings"].partitions
        ) == PARTITIONS, within=20)

    def send(self, messages):
        """Sends messages of one reading for each sensor, to the partitions in turn."""
        for _ in range(messages):
            lines = []
            for sensor in range(SENSORS):
                value = self.sent * SENSORS + sensor
                count, total = self.sums.get(sensor, (0, 0))
                self.sums[sensor] = (count + 1, total + value)
                lines.append(f"s{sensor}, {value}, {BASE + self.sent % 50_000}")
            self.producer.produce("readings", "\n".join(lines), partition=self.sent % PARTITIONS)
            self.sent += 1
        assert self.producer.flush(20) == 0

    def close_windows(self):
        """Every partition is a producer, and all of them have to get past the windows' ends."""
        for partition in range(PARTITIONS):
            lines = "\n".join(f"s{sensor}, 0, {BASE + 7_200_000}" for sensor in range(SENSORS))
            self.producer.produce("readings", lines, partition=partition)
        assert self.producer.flush(20) == 0


def ask(node, target, method="GET", body=None):
    asked = urllib.request.Request(f"http://{node.http}{target}", data=body, method=method)
    with urllib.request.urlopen(asked, timeout=20) as answer:
        return json.loads(answer.read() or b"null")


def make(node, kafka, **more):
    definition = {
        "sources": [{"kafka": kafka.address, "topic": "readings"}],
        "windows": [{"tumbling": "1h"}],
        "aggregates": ["count", "sum"],
        "watermark_delay": "10m",
        "idle_timeout": "5m",
        **more,
    }
    try:
        ask(node, "/v1/streams/s", "PUT", json.dumps(definition).encode())
    except urllib.error.HTTPError as error:
        text = error.read().decode()
        if error.code == 422 and "feature `kafka`" in text:
            pytest.skip("this kiln is built without Kafka")
        raise AssertionError(text) from error


def source(node):
    return ask(node, "/v1/streams/s")["sources"][0]


def windows(node, sensor):
    try:
        found = ask(node, f"/v1/streams/s/sensors/s{sensor}/windows?from={BASE - 3_600_000}&to={BASE + 3_600_000}")
    except urllib.error.HTTPError:
        return []
    return [(window["count"], window["sum"]) for window in found["windows"]]


def prove(node, kafka, within=60):
    kafka.close_windows()

    def equal():
        return all(windows(node, sensor) == [kafka.sums[sensor]] for sensor in range(SENSORS))

    try:
        eventually("the sums are those of what was sent", equal, within=within)
    except AssertionError:
        found = {sensor: windows(node, sensor) for sensor in range(SENSORS)}
        raise AssertionError(f"{found} and not {kafka.sums}; {source(node)}") from None


def test_every_message_is_read_and_what_is_wrong_in_it_is_counted(start):
    kafka = Kafka()
    node = start("--memory", "128MiB")
    kafka.send(100)
    make(node, kafka)
    # Before the stream was made, and after.
    kafka.send(1_900)
    kafka.producer.produce("readings", "s1 wrong\ns1, 7 degrees", partition=1)
    kafka.producer.produce("readings", None, key="a tombstone", partition=2)
    assert kafka.producer.flush(20) == 0
    prove(node, kafka)
    seen = source(node)
    assert seen["readings"] == (2_000 + PARTITIONS) * SENSORS
    assert (seen["rejected"], seen["messages"]) == (2, 2_002 + PARTITIONS)
    assert (seen["state"], seen["reconnects"]) == ("running", 0)
    eventually("nothing is left", lambda: source(node)["lag"] == 0, within=20)


def test_brokers_that_cannot_be_reached_are_told(start):
    kafka = Kafka()
    node = start("--memory", "128MiB")
    make(node, kafka, sources=[{"kafka": "127.0.0.1:1", "topic": "readings"}])
    eventually("it is told", lambda: source(node)["state"] == "connecting"
               and source(node).get("error"), within=30)


@pytest.mark.parametrize("how", ["killed", "stopped for a while"])
def test_each_reading_counts_once_when_a_node_that_reads_it_is(how, start_three):
    kafka = Kafka()
    nodes = start_three
    make(nodes[0], kafka)

    def reading(among):
        return [node for node in among if source_or_none(node)]

    def source_or_none(node):
        try:
            seen = source(node)
        except urllib.error.HTTPError:
            return None
        return seen if seen["state"] == "running" else None

    eventually("the topic is read", lambda: reading(nodes), within=60)
    began = time.monotonic()
    while time.monotonic() - began < 2:
        kafka.send(20)
        time.sleep(0.02)
    victim = reading(nodes)[0]
    if how == "killed":
        victim.process.kill()
        victim.process.wait()
    else:
        # It wakes up later in the belief that it reads the topic.
        victim.process.send_signal(signal.SIGSTOP)
    alive = [node for node in nodes if node is not victim]
    began = time.monotonic()
    while time.monotonic() - began < 3:
        kafka.send(20)
        time.sleep(0.02)
    if how != "killed":
        eventually("others read what it read", lambda: sum(
            source(node).get("lag", 1) for node in alive) == 0, within=60)
        victim.process.send_signal(signal.SIGCONT)
        kafka.send(500)
    prove(alive[0], kafka, within=120)
    duplicates = sum(ask(node, "/v1/streams/s")["figures"]["duplicates"] for node in alive)
    print(f"{kafka.sent * SENSORS} readings, each counted once; {duplicates} were sent again")


@pytest.fixture
def start_three(start):
    nodes = []
    for _ in range(3):
        join = ["--join", ",".join(node.peer for node in nodes)] if nodes else []
        nodes.append(start("--memory", "128MiB", *join))
    eventually("three nodes with all copies", lambda: all(
        node.metric('kiln_cluster_nodes{state="ready"}') == 3
        and node.metric("kiln_cluster_partitions_short") == 0
        and node.metric("kiln_cluster_copies_filling") == 0
        for node in nodes), within=120)
    yield nodes
    for node in nodes:
        # One after the other would each hand over to the next.
        node.process.kill()
