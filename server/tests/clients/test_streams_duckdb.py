"""The figures of windows, held against DuckDB's on the same readings."""

import json
import math
import random
import time
import urllib.request

import pytest

BASE = 1_700_000_000_000
SENSORS = 50
READINGS = 30_000

# What DuckDB calls our aggregates, each over the readings of one window.
FIGURES = {
    "count": "count(*)",
    "sum": "sum(value)",
    "mean": "avg(value)",
    "min": "min(value)",
    "max": "max(value)",
    "var": "var_samp(value)",
    "std": "stddev_samp(value)",
    "var_pop": "var_pop(value)",
    "std_pop": "stddev_pop(value)",
    "first": "arg_min(value, time)",
    "last": "arg_max(value, time)",
}


def request(node, method, target, body=None):
    url = f"http://{node.http}{target}"
    asked = urllib.request.Request(url, data=body, method=method)
    with urllib.request.urlopen(asked, timeout=20) as answer:
        text = answer.read()
        return json.loads(text) if text else None


def test_windows_equal_those_of_duckdb(start):
    duckdb = pytest.importorskip("duckdb", reason="duckdb is not installed")
    node = start("--memory", "256MiB")
    definition = {
        "windows": [{"tumbling": "10s"}, {"hopping": "1m", "every": "10s"}],
        "aggregates": list(FIGURES),
        "watermark_delay": "30s",
    }
    request(node, "PUT", "/v1/streams/s", json.dumps(definition).encode())
    generator = random.Random(11)
    # Up to 30 s of disorder, within the delay; every time of a sensor once, so that first and last
    # are clear.
    times = {}
    rows = []
    for i in range(READINGS):
        sensor = generator.randrange(SENSORS)
        at = BASE + max(0, i * 10 - generator.randrange(30_000))
        while (sensor, at) in times:
            at += 1
        times[sensor, at] = True
        # Large and nearly equal: what a sum of squares would get wrong.
        value = 1e6 + generator.gauss(0, 1) if sensor % 2 else generator.gauss(20, 5)
        rows.append((f"s{sensor}", value, at))
    late = 0
    for begin in range(0, len(rows), 1000):
        text = "".join(f"{s}, {v!r}, {t}\n" for s, v, t in rows[begin:begin + 1000])
        late += request(node, "POST", "/v1/streams/s/readings", text.encode())["late"]
    assert late == 0
    closing = f"end, 0, {BASE + 3_600_000}\n".encode()
    request(node, "POST", "/v1/streams/s/readings", closing)

    database = duckdb.connect()
    database.execute("create table readings (sensor varchar, value double, time bigint)")
    database.executemany("insert into readings values (?, ?, ?)", rows)
    figures = ", ".join(FIGURES.values())
    compared = 0
    for name, size in [("10s", 10_000), ("1m", 60_000)]:
        expected = {}
        for row in database.execute(f"""
            select sensor, start, {figures} from readings,
            range({BASE - 60_000}, {BASE + 400_000}, 10_000) as starts(start)
            where time >= start and time < start + {size} group by sensor, start
        """).fetchall():
            expected[row[0], row[1]] = row[2:]
        for sensor in range(SENSORS):
            wanted = {start: row for (s, start), row in expected.items() if s == f"s{sensor}"}
            target = (f"/v1/streams/s/sensors/s{sensor}/windows?window={name}"
                      f"&from={BASE - 60_000}&to={BASE + 400_000}&limit=10000")
            deadline = time.monotonic() + 20
            while True:
                found = {w["start"]: w for w in request(node, "GET", target)["windows"]}
                if found.keys() == wanted.keys() or time.monotonic() > deadline:
                    break
                time.sleep(0.05)
            assert found.keys() == wanted.keys()
            for start, row in wanted.items():
                for figure, value in zip(FIGURES, row):
                    ours = found[start][figure]
                    if value is None or (figure in ("var", "std") and row[0] == 1):
                        assert ours is None, (figure, ours)
                    else:
                        near = math.isclose(ours, value, rel_tol=1e-7, abs_tol=1e-7)
                        assert near, (name, sensor, start, figure, ours, value)
                    compared += 1
    assert compared > 30_000, compared
