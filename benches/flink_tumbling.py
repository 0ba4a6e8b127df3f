#!/usr/bin/env python3
"""The tumbling job of `streams.py` in Flink: prints one JSON list with what each row cost.

Table API, SQL only: `TUMBLE` of 10 s of event time with count, sum, mean, sample variance and deviation,
least and greatest by sensor, into `blackhole`. The plan is compiled to Java and runs in the Java machine;
no line of Python is in its path. One task slot, parallelism 1, objects reused, no checkpoints, which is in
its favour. Two sources, 1,000 sensors in random order, 100 readings per second of event time each:
`datagen`, which makes rows of numbers, and a CSV file with the lines that Kiln gets (without the blanks).
Each job runs once to get warm and is then measured: processor time of the whole Java machine, with its
collector and compiler, and the clock.
"""

import argparse
import json
import os
import pathlib
import random
import sys
import tempfile
import time

from pyflink.common import Configuration
from pyflink.table import EnvironmentSettings, TableEnvironment
from pyflink.version import __version__

SENSORS = 1_000
START = 1_700_000_000_000
PER_MS = SENSORS * 100 // 1_000
TIME = "WATERMARK FOR ts AS ts - INTERVAL '1' SECOND"


def cpu_s(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def java():
    """The Java machine, which is a child of this process."""
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)
            except OSError:
                continue
            if fields[0].endswith("(java") and int(fields[1].split()[1]) == os.getpid():
                return int(entry.name)
    sys.exit("the Java machine is not found")


def environment():
    settings = Configuration()
    for name, value in {
        "parallelism.default": "1", "taskmanager.numberOfTaskSlots": "1", "pipeline.object-reuse": "true",
        "taskmanager.memory.network.max": "128mb", "rest.bind-port": "0", "python.execution-mode": "thread",
    }.items():
        settings.set_string(name, value)
    made = EnvironmentSettings.new_instance().in_streaming_mode().with_configuration(settings).build()
    return TableEnvironment.create(made)


def tables(env, directory, readings):
    """Both sources and the sink; `small_` ones are for getting warm."""
    for prefix, count in (("small_", readings // 2), ("", readings)):
        env.execute_sql(f"""
            CREATE TABLE {prefix}datagen (
                seq BIGINT, sensor INT, v DOUBLE, ts AS TO_TIMESTAMP_LTZ({START} + seq / {PER_MS}, 3), {TIME}
            ) WITH ('connector' = 'datagen', 'rows-per-second' = '1000000000', 'number-of-rows' = '{count}',
                'fields.seq.kind' = 'sequence', 'fields.seq.start' = '0', 'fields.seq.end' = '{count - 1}',
                'fields.sensor.min' = '0', 'fields.sensor.max' = '{SENSORS - 1}',
                'fields.v.min' = '0', 'fields.v.max' = '10000')""")
        path = pathlib.Path(directory) / f"{prefix}readings.csv"
        dice = random.Random(1)
        with path.open("w") as lines:
            for seq in range(count):
                lines.write(f"sensor{dice.randrange(SENSORS)},{dice.randrange(1_048_576) / 100},"
                            f"{START + seq // PER_MS}\n")
        env.execute_sql(f"""
            CREATE TABLE {prefix}csv (
                sensor STRING, v DOUBLE, t BIGINT, ts AS TO_TIMESTAMP_LTZ(t, 3), {TIME}
            ) WITH ('connector' = 'filesystem', 'path' = '{path.as_uri()}', 'format' = 'csv')""")
    for source, kind in (("datagen", "INT"), ("csv", "STRING")):
        env.execute_sql(f"""
            CREATE TABLE {source}_sink (
                w TIMESTAMP(3), sensor {kind}, n BIGINT, s DOUBLE, m DOUBLE, v DOUBLE, d DOUBLE, lo DOUBLE, hi DOUBLE
            ) WITH ('connector' = 'blackhole')""")


def run(env, source, prefix=""):
    env.execute_sql(f"""
        INSERT INTO {source}_sink
        SELECT window_start, sensor, COUNT(*), SUM(v), AVG(v), VAR_SAMP(v), STDDEV_SAMP(v), MIN(v), MAX(v)
        FROM TABLE(TUMBLE(TABLE {prefix}{source}, DESCRIPTOR(ts), INTERVAL '10' SECOND))
        GROUP BY window_start, window_end, sensor""").wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--readings", type=int, default=10_000_000)
    args = parser.parse_args()
    env = environment()
    pid = java()
    found = []
    with tempfile.TemporaryDirectory(prefix="kiln-flink-") as directory:
        tables(env, directory, args.readings)
        for source in ("datagen", "csv"):
            run(env, source, "small_")
            spent, began = cpu_s(pid), time.monotonic()
            run(env, source)
            spent, took = cpu_s(pid) - spent, time.monotonic() - began
            found.append({
                "name": f"tumbling 10s from {source}, {SENSORS} sensors", "source": source, "version": __version__,
                "readings": args.readings, "millions_per_s": args.readings / spent / 1e6, "seconds": took,
                "millions_per_s_by_the_clock": args.readings / took / 1e6,
            })
    print(json.dumps(found))


if __name__ == "__main__":
    main()
