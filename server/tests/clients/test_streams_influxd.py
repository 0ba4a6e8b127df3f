"""Answers to InfluxDB's line protocol, held against a real influxd's on the same bodies.

What its senders act on is the status, and that good lines beside bad ones are kept. Where Kiln takes
more than influxd 1.6 does, or less, on purpose, the case says so.
"""

import gzip
import json
import pathlib
import random
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request

import pytest

from conftest import SOON

TIME = 1_700_000_000_000_000_000


def ask(base, target, body=b"", headers=None, method="POST"):
    request = urllib.request.Request(f"http://{base}{target}", data=body, method=method, headers=headers or {})
    try:
        with urllib.request.urlopen(request, timeout=SOON) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def influxd(tmp_path_factory):
    binary = shutil.which("influxd")
    if binary is None:
        pytest.skip("influxd is not installed (Debian's package influxdb)")
    home = tmp_path_factory.mktemp("influxd")
    # It cannot be asked which port it took, and another may take a port that was free a moment ago.
    for _ in range(5):
        http, rpc = free_port(), free_port()
        config = home / "influxd.conf"
        config.write_text(f"""
reporting-disabled = true
bind-address = "127.0.0.1:{rpc}"
[meta]
  dir = "{home}/meta"
[data]
  dir = "{home}/data"
  wal-dir = "{home}/wal"
  query-log-enabled = false
[monitor]
  store-enabled = false
[subscriber]
  enabled = false
[http]
  bind-address = "127.0.0.1:{http}"
  log-enabled = false
""")
        with open(home / "log", "w") as log:
            process = subprocess.Popen([binary, "-config", config], stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + SOON
        while process.poll() is None and time.monotonic() < deadline:
            try:
                if ask(f"127.0.0.1:{http}", "/ping", method="GET")[0] == 204:
                    yield f"127.0.0.1:{http}"
                    process.terminate()
                    process.wait(SOON)
                    return
            except OSError:
                time.sleep(0.05)
        process.kill()
        process.wait()
    pytest.fail(f"influxd did not start: {pathlib.Path(home / 'log').read_text()[-2000:]}")


@pytest.fixture
def both(influxd, start):
    """Posts the same to both, to the database `tele`."""
    node = start("--memory", "256MiB")
    status, _ = ask(node.http, "/v1/streams/tele", json.dumps({"format": "influx", "ahead_max": "3650d"}).encode(), method="PUT")
    assert status == 201
    for statement in ("DROP DATABASE tele", "CREATE DATABASE tele"):
        assert ask(influxd, "/query?" + urllib.parse.urlencode({"q": statement}))[0] == 200

    def post(body, query="db=tele", headers=None):
        return ask(influxd, f"/write?{query}", body, headers), ask(node.http, f"/write?{query}", body, headers)

    post.node = node
    post.influxd = influxd
    return post


# `M` becomes a measurement of its own, so that a field of one case has no type from another.
SAME = [
    "M v=1 %d" % TIME, "", "\n\n", "# a remark", "M v=1", "M v=1i", "M v=t", "M v=FALSE", 'M v="x"', "M v=x", "M", "M ",
    "M,host v=1", "M,host= v=1", "M,=a v=1", ",host=a v=1", "M v=", "M =1", "M v=1,", "M v=1 x", "M v=1 1.5", "M v=1 -5",
    "M  v=1", "M v=1  5", "M v=1 5 6", "M v=1e3 5", "M v=1e400 5", "M v=NaN 5", "M v=inf 5", "M v=+1 5", "M v=.5 5",
    "M v=5. 5", "M v=-1 5", "M v=--1 5", "M v=1_0 5", "M v=0x1 5", "M v=99999999999999999999i 5", 'M v="a b,c=d" 5',
    'M v="a\\"b" 5', 'M v="open 5', "M\\,x,ho\\=st=a\\ b v=1 5", "M,host=a,host=b v=1 5", "M v=1,v=2 5", " M v=1 5",
    "M,host=a v=tRue 5", "M v=yes 5", "M v=1i2 5", "M v=1 9223372036854775808", "M,a=b=c v=1 5", "M,", "M v=1 5 ",
    "M\tv=1 5", "M v =1 5", "M v= 1 5", "M v=1 ,b=2 5", 'M v="" 5', 'M v=1,b="s",c=2i 5', "a=b c=1 5",
    "M,b=2,a=1 c=1,d=2,e=3 7", "M v=1\n\nM v=2 8\n# a remark\n", "M v=-0 5", "M v=1.0.0 5", "M v=1e 5", "M v=e1 5",
    "M v=- 5", "M v=1E+3 5", "M v=i 5", "M v=-i 5", "M v=1.5i 5", "M v=00012i 5", "M v=012 5", "M a=1 5\nM bad\nM a=2 6",
]

# Body, influxd's status, ours, and why it differs.
OTHERWISE = [
    ("M v=1u 5", 400, 204, "unsigned integers came with InfluxDB 2"),
    ("M v=1 5\r\n", 400, 204, "line ends of other systems are taken in all formats"),
    ("M v=1 5\t", 400, 204, "blanks at the end of a line are passed over in all formats"),
    ("T v=1 5\nT v=t 6", 400, 204, "a boolean is a reading of 1 or 0: there are no types to conflict"),
]


# What influxd lets slip: text behind a closing quote, which it forgets, and `tag==value`.
SLIPS = re.compile(r'"[^, ]|==')


def test_each_body_gets_the_status_that_influxd_gives_it(both):
    for place, case in enumerate(SAME):
        body = case.replace("M", f"m{place}").encode()
        theirs, ours = both(body)
        assert ours[0] == theirs[0], (case, theirs, ours)
        if ours[0] != 204:
            assert json.loads(ours[1])["error"], case
    for case, expected, answered, why in OTHERWISE:
        theirs, ours = both(case.encode())
        assert (theirs[0], ours[0]) == (expected, answered), (case, why, theirs, ours)


def test_lines_broken_at_random_get_the_status_that_influxd_gives_them(both):
    generator = random.Random(4)
    slips = 0
    pieces = ["v", "host", "a", "1", "2.5", "-3", "1i", "t", '"x y"', "=", ",", " ", "\\ ", "\\,", '"', "e1", ".", "5"]
    lines = ["M,host=a,rack=b v=1.5,w=2i 1700000000000000000", 'M v=1,text="so, it = is" 5', "M,a=b v=t"]
    for place in range(400):
        words = list(generator.choice(lines))[1:]
        for _ in range(generator.randrange(1, 4)):
            at = generator.randrange(1, len(words))
            change = generator.randrange(3)
            if change == 0:
                del words[at:at + generator.randrange(1, 4)]
            elif change == 1:
                words.insert(at, generator.choice(pieces))
            else:
                words[at] = generator.choice(pieces)
            words = list("".join(words)) or [" "]
            if len(words) < 2:
                break
        line = f"r{place}" + "".join(words)
        theirs, ours = both(line.encode())
        if (theirs[0], ours[0]) == (204, 400) and SLIPS.search(line):
            slips += 1
            continue
        assert ours[0] == theirs[0], (line, theirs, ours)
    assert slips < 20


def test_good_lines_beside_bad_ones_are_kept_with_the_same_values_and_times(both):
    generator = random.Random(5)
    rows = {}
    lines = []
    for i in range(500):
        host, at, value = generator.randrange(5), TIME + i * 1_000_000, generator.randrange(-1000, 1000) / 8
        rows.setdefault(host, []).append((at // 1_000_000, value))
        lines.append(f"kept,host=h{host} value={value} {at}")
        if i % 7 == 0:
            lines.append(generator.choice(["kept,host= value=1", "kept value=x", "kept"]))
    theirs, ours = both("\n".join(lines).encode())
    assert theirs[0] == ours[0] == 400
    for text in (theirs[1], ours[1]):
        assert json.loads(text)["error"].startswith("partial write: "), text
    query = urllib.parse.urlencode({"db": "tele", "epoch": "ms", "q": "SELECT last(value) FROM kept GROUP BY host"})
    series = json.loads(ask(both.influxd, f"/query?{query}", method="GET")[1])["results"][0]["series"]
    assert len(series) == len(rows)
    for one in series:
        sensor = urllib.parse.quote(f"kept,host={one['tags']['host']}", safe="")
        latest = json.loads(ask(both.node.http, f"/v1/streams/tele/sensors/{sensor}", method="GET")[1])
        assert [latest["time"], latest["value"]] == one["values"][0]
    assert json.loads(ask(both.node.http, "/v1/streams/tele", method="GET")[1])["figures"]["accepted"] == 500


def test_databases_precisions_and_compression_are_understood_alike(both):
    for query in ("", "db=", "db=none", *(f"db=tele&precision={unit}" for unit in ("n", "u", "ms", "s", "m", "h"))):
        theirs, ours = both(b"p v=1 5", query)
        assert ours[0] == theirs[0], (query, theirs, ours)
        if theirs[1]:
            assert json.loads(ours[1]) == json.loads(theirs[1]), query
    packed = {"Content-Encoding": "gzip"}
    for body in (gzip.compress(b"p v=1 5"), b"not gzip at all"):
        theirs, ours = both(body, headers=packed)
        assert ours[0] == theirs[0], (body, theirs, ours)
