#!/usr/bin/env python3
"""A stream for an hour: is memory flat, and is every reading counted?

    cargo build --release -p kiln -p kiln-stream-bench
    python3 benches/streams_soak.py [--minutes 60] [--nodes 1]

10,000 sensors, 200 million readings an hour in numbered batches of 5,000 over HTTP, windows of 10 s that
are kept for two minutes, so that items come and go. Every minute a line: resident memory of the nodes,
readings, late, rejected, windows. Exits with 1 when a node's resident memory grows more than 10 % and
48 MiB beyond what it was once results began to expire, when a reading was sent that no figure counts, when
a result is missing, or when the readings of one window, added up over all sensors, are not those sent.
"""

import argparse
import http.client
import json
import subprocess
import sys
import time

from streams import ask, cluster, rss

SENSORS = 10_000
PER_HOUR = 200_000_000
# Readings per second of event time and sensor: event time is a tenth faster than the clock.
RATE = 5
BATCH = 5_000
START = 1_700_000_000_000
WINDOW_MS = 10_000
RETENTION_S = 120
GROWTH_MAX = 0.10
GROWTH_FLOOR = 48 << 20
STREAM = {
    "windows": [{"tumbling": "10s"}],
    "aggregates": ["count", "sum", "mean", "var", "std", "min", "max"],
    "watermark_delay": "5s",
    "retention": f"{RETENTION_S}s",
}


def figures(nodes):
    """The stream's figures, added up over the nodes."""
    total = {}
    for node in nodes:
        for name, value in json.loads(ask("GET", node.http, "/v1/streams/bench"))["figures"].items():
            total[name] = total.get(name, 0) + value
    return total


def count_of(node, start):
    """The readings of one window, over all sensors."""
    host, port = node.http.rsplit(":", 1)
    link = http.client.HTTPConnection(host, int(port), timeout=30)
    total = 0
    for sensor in range(SENSORS):
        link.request("GET", f"/v1/streams/bench/sensors/sensor{sensor}/windows?from={start}&to={start + WINDOW_MS}")
        said = json.loads(link.getresponse().read())
        total += sum(window["count"] for window in said["windows"])
    return total


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--release", default="target/release", help="where the built binaries are")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--nodes", type=int, default=1, choices=(1, 2, 3))
    parser.add_argument("--memory", default="512MiB")
    parser.add_argument("--every", type=float, default=60, help="seconds between two lines")
    args = parser.parse_args()
    pace = PER_HOUR / 3600
    readings = int(pace * args.minutes * 60) // BATCH * BATCH
    wrong = []
    with cluster(f"{args.release}/kiln", args.nodes, definition=STREAM, memory=args.memory) as nodes:
        command = [f"{args.release}/kiln-stream-bench", "feed", "--stream", "bench", "--readings", str(readings),
                   "--http", ",".join(node.http for node in nodes), "--sensors", str(SENSORS), "--rate", str(RATE),
                   "--batch", str(BATCH), "--connections", "4", "--start", str(START), "--pace", str(pace)]
        feeder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        began = time.monotonic()
        settled = [None] * len(nodes)
        peaks = [0] * len(nodes)
        try:
            print(f"{'minute':>7} {'resident MiB':>16} {'readings':>12} {'late':>6} {'rejected':>8} {'refused':>8} "
                  f"{'windows':>10} {'state MiB':>9}", flush=True)
            while feeder.poll() is None:
                try:
                    feeder.wait(args.every)
                except subprocess.TimeoutExpired:
                    pass
                took = time.monotonic() - began
                sizes = [rss(node.pid) for node in nodes]
                # From then on as many results expire as come.
                if took >= RETENTION_S * 1.25:
                    settled = [size if first is None else first for size, first in zip(sizes, settled)]
                    peaks = [max(size, peak) for size, peak in zip(sizes, peaks)]
                seen = figures(nodes)
                print(f"{took / 60:>7.1f} {' '.join(f'{size / (1 << 20):.0f}' for size in sizes):>16} "
                      f"{seen['accepted']:>12} {seen['late']:>6} {seen['rejected']:>8} {seen['refused']:>8} "
                      f"{seen['results']:>10} {seen['state_bytes'] / (1 << 20):>9.1f}", flush=True)
        finally:
            if feeder.poll() is None:
                feeder.kill()
        said = json.loads(feeder.stdout.read() or "{}")
        if feeder.wait() or not said:
            sys.exit("the feeder failed")
        print(f"fed: {said}")
        # The last window that all producers have passed.
        last = (said["time_max"] - 6_000 - START) // WINDOW_MS * WINDOW_MS - WINDOW_MS
        windows = SENSORS * (last // WINDOW_MS + 1)
        deadline = time.monotonic() + 30
        while (seen := figures(nodes))["results"] < windows and time.monotonic() < deadline:
            time.sleep(0.2)
        if seen["results"] < windows:
            wrong.append(f"{seen['results']} windows, not {windows}")
        sent = said["batches"] * BATCH
        if said["accepted"] + said["duplicate"] != sent or said["rejected"]:
            wrong.append(f"{sent} readings were sent, the answers say: {said}")
        if seen["accepted"] != sent or seen["late"] or seen["late_dropped"] or seen["stale"]:
            wrong.append(f"{sent} readings were sent, the nodes say: {seen}")
        if seen["lost"] or seen["states_lost"]:
            wrong.append(f"results or states were lost: {seen}")
        counted = count_of(nodes[0], START + last)
        if counted != SENSORS * RATE * WINDOW_MS // 1000:
            wrong.append(f"a window has {counted} readings of all sensors, not {SENSORS * RATE * WINDOW_MS // 1000}")
        print(f"one window over all sensors: {counted} readings")
        for number, (first, peak) in enumerate(zip(settled, peaks)):
            if first is None:
                print("too short to judge memory: results did not begin to expire")
            elif peak > first + max(first * GROWTH_MAX, GROWTH_FLOOR):
                wrong.append(f"n{number + 1} grew from {first >> 20} to {peak >> 20} MiB")
            else:
                print(f"n{number + 1}: {first >> 20} MiB, at most {peak >> 20} MiB after")
        if said["behind_ms"] > 5_000:
            print(f"note: the feeder was {said['behind_ms']} ms behind its pace at times")
    for what in wrong:
        print(f"FAILED: {what}")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
