#!/usr/bin/env python3
"""What streams cost: the operator alone, readings over HTTP to one node and to two with a copy each, and
the same tumbling job in Flink.

    cargo build --release -p kiln -p kiln-stream-bench
    python3 benches/streams.py [--release target/release] [--only operator,lone,pair,flink]

Rates are per second of processor time: that of the operator's thread, of all nodes together, of the
Java machine. So what else the machine does hardly moves them. Over HTTP each run sends a fixed number of
readings in batches of 5,000 lines, 1,000 sensors in random order; the median of the runs counts. Flink
is `apache-flink` from PyPI with one slot, see `flink_tumbling.py`; it is installed when it is missing,
and left out, plainly, when it cannot be. Exits with 1 when a target is missed.
"""

import argparse
import contextlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

HERE = pathlib.Path(__file__).parent
# Millions of readings per second of processor time of all nodes.
LONE_MIN = 2.5
PAIR_MIN = 1.0
STREAM = {
    "windows": [{"tumbling": "10s"}],
    "aggregates": ["count", "sum", "mean", "var", "std", "min", "max"],
    "watermark_delay": "1s",
    "retention": "1h",
}
READY_MAX_S = 60
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def cpu_s(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss(pid):
    return int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def ask(method, address, path, body=None):
    request = urllib.request.Request(f"http://{address}{path}", data=body, method=method)
    with OPENER.open(request, timeout=10) as answer:
        return answer.read().decode()


class Node:
    """A node that listens on the loopback, on free ports."""

    def __init__(self, kiln, directory, name, join=None, memory="1GiB", threads=1, replicas=2):
        command = [kiln, "serve", "--name", name, "--memory", memory, "--threads", str(threads),
                   "--replicas", str(replicas), "--data-dir", f"{directory}/{name}"]
        for door in ("memcached", "native", "http", "peer"):
            command += [f"--listen-{door}", "127.0.0.1:0"]
        if join:
            command += ["--join", join]
        clean = {key: value for key, value in os.environ.items() if not key.startswith("KILN_")}
        self.log = open(f"{directory}/{name}.log", "ab")
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.log, text=True, env=clean)
        line = self.process.stdout.readline()
        self.doors = dict(re.findall(r"(\w+)=(\S+)", line))
        if not line.startswith("ready "):
            self.stop()
            raise RuntimeError(f"{name} did not start: {pathlib.Path(self.log.name).read_text()[-2000:]}")

    @property
    def http(self):
        return self.doors["http"]

    @property
    def pid(self):
        return self.process.pid

    def metrics(self):
        """Metrics by name with labels."""
        lines = ask("GET", self.http, "/metrics").splitlines()
        return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if not line.startswith("#")}

    def stop(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.log.close()


@contextlib.contextmanager
def cluster(kiln, count, definition=STREAM, **settings):
    """So many nodes with the stream `bench` on all of them; ended however this program ends."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    nodes = []
    with tempfile.TemporaryDirectory(prefix="kiln-streams-") as directory:
        try:
            for number in range(count):
                join = nodes[0].doors["peer"] if nodes else None
                nodes.append(Node(kiln, directory, f"n{number + 1}", join, **settings))
            until("nodes are whole", lambda: all(is_whole(node, count) for node in nodes))
            make(nodes, "bench", definition)
            yield nodes
        finally:
            for node in nodes:
                node.stop()


def make(nodes, name, definition):
    ask("PUT", nodes[0].http, f"/v1/streams/{name}", json.dumps(definition).encode())
    until("all nodes know the stream", lambda: all(knows(node, name) for node in nodes))
    if len(nodes) > 1:
        until("the stream's caches have copies", lambda: all(is_whole(node, len(nodes)) for node in nodes))


def knows(node, name):
    try:
        return bool(ask("GET", node.http, f"/v1/streams/{name}"))
    except urllib.error.HTTPError:
        return False


def is_whole(node, count):
    found = node.metrics()
    figure = lambda name: found.get(name, 0.0)
    return count == 1 or (figure('kiln_cluster_nodes{state="ready"}') == count
                          and figure("kiln_cluster_partitions_held") > 0
                          and not figure("kiln_cluster_partitions_short")
                          and not figure("kiln_cluster_partitions_headless")
                          and not figure("kiln_cluster_copies_filling")
                          and not figure("kiln_cluster_partitions_misplaced"))


def until(what, holds):
    deadline = time.monotonic() + READY_MAX_S
    while not holds():
        if time.monotonic() > deadline:
            raise RuntimeError(f"after {READY_MAX_S} s it is still not so that {what}")
        time.sleep(0.1)


def feed(release, nodes, first, **options):
    """Sends readings; returns what the feeder says and the seconds of processor time of the nodes."""
    command = [f"{release}/kiln-stream-bench", "feed", "--stream", "bench", "--first", str(first),
               "--http", ",".join(node.http for node in nodes)]
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    before = sum(cpu_s(node.pid) for node in nodes)
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        raise RuntimeError(f"the feeder failed: {run.stderr}")
    return json.loads(run.stdout), sum(cpu_s(node.pid) for node in nodes) - before


def over_http(args, count):
    """Millions of readings per second of processor time of so many nodes, and the feeder's figures."""
    found = []
    with cluster(args.kiln, count) as nodes:
        start = 1_700_000_000_000
        # The first makes the sensors known and is not counted.
        for run in range(args.runs + 1):
            readings = args.readings if run else args.readings // 4
            said, spent = feed(args.release, nodes, run << 32, connections=args.connections, readings=readings,
                               start=start, batch=5_000, sensors=1_000)
            # A batch that was sent again may have been taken in before.
            if said["accepted"] + said["duplicate"] != said["batches"] * 5_000 or said["late"] or said["rejected"]:
                raise RuntimeError(f"not all was taken in: {said}")
            start = said["time_max"] + 1
            if run:
                found.append((readings / spent / 1e6, said))
        for node in nodes:
            figures = json.loads(ask("GET", node.http, "/v1/streams/bench"))["figures"]
            if figures["results"] == 0 or figures["lost"] or figures["unwritten"]:
                raise RuntimeError(f"windows are missing: {figures}")
    found.sort(key=lambda one: one[0])
    return found[len(found) // 2]


def operator(args):
    with tempfile.NamedTemporaryFile(suffix=".json") as said:
        run = subprocess.run([f"{args.release}/kiln-stream-bench", "speed", "--runs", str(args.runs),
                              "--seconds", "0.7", "--json", said.name], check=False)
        found = json.loads(pathlib.Path(said.name).read_text())
    return found, run.returncode != 0


def flink(args):
    """The rows of `flink_tumbling.py`, or None."""
    target = pathlib.Path(args.flink_libs)
    python = target / "bin" / "python3"
    if not python.exists():
        print(f"Flink is installed to {target}; this takes minutes once", flush=True)
        made = subprocess.run([sys.executable, "-m", "venv", str(target)], check=False).returncode == 0
        if not made or subprocess.run([str(python), "-m", "pip", "install", "-q", "apache-flink"],
                                      check=False).returncode:
            return None
    run = subprocess.run([str(python), str(HERE / "flink_tumbling.py"), "--readings", str(args.flink_readings)],
                         stdout=subprocess.PIPE, text=True, check=False)
    if run.returncode:
        return None
    return json.loads(run.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--release", default="target/release", help="where the built binaries are")
    parser.add_argument("--kiln", help="Kiln's binary")
    parser.add_argument("--only", default="operator,lone,pair,flink")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--readings", type=int, default=8_000_000, help="of one run over HTTP")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--flink-readings", type=int, default=10_000_000)
    parser.add_argument("--flink-libs", default="target/ci/flink", help="a virtual environment for apache-flink")
    parser.add_argument("--json", help="write all figures")
    args = parser.parse_args()
    args.kiln = args.kiln or f"{args.release}/kiln"
    only = args.only.split(",")
    rows, missed, figures = [], [], {}

    def row(name, rate, target=None, more=""):
        rows.append((name, rate, target, more))
        if target is not None and rate < target:
            missed.append(name)

    if "operator" in only:
        figures["operator"], _ = operator(args)
        for one in figures["operator"]["rows"]:
            row(f"operator: {one['name']}, {one['sensors']} sensors, {one['rate']}/s each", one["millions_per_s"],
                one["target"])
        ratio = figures["operator"]["hopping_to_tumbling"]
        row("operator: hopping 10s/1s over tumbling (ratio)", ratio,
            figures["operator"]["hopping_to_tumbling_min"])
    for name, count, least in (("lone", 1, LONE_MIN), ("pair", 2, PAIR_MIN)):
        if name in only:
            rate, said = over_http(args, count)
            figures[name] = {"millions_per_s": rate, **said}
            text = "one node" if count == 1 else "two nodes, one copy in sync, both counted"
            row(f"HTTP, batches of 5,000: {text}", rate, least,
                f"by the clock {said['accepted'] / said['seconds'] / 1e6:.2f} M/s, "
                f"p50 {said['p50_ms']:.0f} ms, p99 {said['p99_ms']:.0f} ms")
    if "flink" in only:
        found = flink(args)
        figures["flink"] = found
        if found is None:
            print("SKIPPED: apache-flink cannot be installed or run")
        beside = {"datagen": ("operator", 0), "csv": ("operator", -1)}
        for one in found or []:
            where, at = beside[one["source"]]
            ours = figures.get(where, {}).get("rows")
            more = f"Kiln's operator {ours[at]['millions_per_s'] / one['millions_per_s']:.0f} times this" if ours else ""
            if one["source"] == "csv" and "lone" in figures:
                more += f"; a node over HTTP {figures['lone']['millions_per_s'] / one['millions_per_s']:.1f} times"
            row(f"Flink {one['version']}: {one['name']}", one["millions_per_s"], None, more)

    width = max((len(name) for name, *_ in rows), default=0)
    print(f"\n{'millions of readings per second of processor time':<{width}} {'seen':>8} {'target':>8}")
    for name, rate, target, more in rows:
        aim = "-" if target is None else f"{target:.1f}"
        print(f"{name:<{width}} {rate:>8.2f} {aim:>8}  {'MISSED ' if name in missed else ''}{more}")
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps(figures, indent=1))
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
