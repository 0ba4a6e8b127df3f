#!/usr/bin/env python3
"""What a GET of 100 bytes over HTTP costs, beside an axum handler that returns a constant; and what an
idle connection costs.

    cargo build --release -p kiln -p kiln-null-server
    python3 benches/rest.py [--kiln target/release/kiln] [--null target/release/kiln-null-http]

Needs wrk (Debian). Rounds are interleaved and the median counts. CPU is the server's own processor
time over the requests of the same window, so what else the machine does hardly moves it. Exits with 1
when Kiln costs more than twice the constant, or an idle connection 40 KiB or more.
"""

import argparse
import os
import re
import resource
import socket
import statistics
import subprocess
import sys
import urllib.request

CPU_RATIO_MAX = 2.0
IDLE_BYTES_MAX = 40 << 10
PATH = "/v1/caches/default/keys/bench"


def start(processes, command, pattern):
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    processes.append(process)
    ready = re.search(pattern, process.stdout.readline())
    if not ready:
        sys.exit(f"{command[0]} did not start")
    return process, ready.group(1)


def cpu_s(pid):
    fields = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss(pid):
    return int(open(f"/proc/{pid}/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def round_of(process, address, connections, seconds):
    before = cpu_s(process.pid)
    run = subprocess.run(["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", f"http://{address}{PATH}"],
                         capture_output=True, text=True, check=True)
    spent = cpu_s(process.pid) - before
    assert "Non-2xx" not in run.stdout and "Socket errors" not in run.stdout, run.stdout
    requests = int(re.search(r"(\d+) requests in", run.stdout).group(1))
    return spent / requests * 1e6


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kiln", default="target/release/kiln")
    parser.add_argument("--null", default="target/release/kiln-null-http")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--idle", type=int, default=10_000)
    args = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    processes = []
    try:
        sys.exit(measure(args, processes))
    finally:
        for process in processes:
            process.terminate()
            process.wait()


def measure(args, processes):
    """Prints the figures; True when one is missed."""
    null, null_at = start(processes, [args.null], r"ready (\S+)")
    kiln, kiln_at = start(
        processes,
        [args.kiln, "serve", "--threads", "1", "--listen-memcached", "127.0.0.1:0", "--listen-native", "off",
         "--listen-peer", "off", "--listen-http", "127.0.0.1:0", "--memory", "1GiB",
         "--max-http-connections", str(args.idle + 100)], r"http=(\S+)")
    failed = False
    put = urllib.request.Request(f"http://{kiln_at}{PATH}", data=b"v" * 100, method="PUT")
    urllib.request.build_opener(urllib.request.ProxyHandler({})).open(put).close()
    costs = {"constant": [], "kiln": []}
    for _ in range(args.rounds):
        costs["constant"].append(round_of(null, null_at, args.connections, args.seconds))
        costs["kiln"].append(round_of(kiln, kiln_at, args.connections, args.seconds))
    medians = {name: statistics.median(all_) for name, all_ in costs.items()}
    ratio = medians["kiln"] / medians["constant"]
    print(f"CPU us/request: constant {medians['constant']:.2f}, kiln {medians['kiln']:.2f}, "
          f"ratio {ratio:.2f} (at most {CPU_RATIO_MAX})")
    failed |= ratio > CPU_RATIO_MAX

    before = rss(kiln.pid)
    host, port = kiln_at.rsplit(":", 1)
    idle = []
    for _ in range(args.idle):
        connection = socket.create_connection((host, int(port)))
        connection.sendall(f"GET {PATH} HTTP/1.1\r\nhost: kiln\r\n\r\n".encode())
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        idle.append(connection)
    each = (rss(kiln.pid) - before) / len(idle)
    print(f"{len(idle)} idle connections: {each / 1024:.1f} KiB each (under {IDLE_BYTES_MAX >> 10})")
    failed |= each >= IDLE_BYTES_MAX
    return failed


if __name__ == "__main__":
    main()
