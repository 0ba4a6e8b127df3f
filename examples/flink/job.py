#!/usr/bin/env python3
"""A Flink job whose output goes into Kiln: lines `sensor1, 12, 1700000000000` to windows and latest values.

    lines --CSV--> TUMBLE(10 s): last, count, mean, sample variance --map--> Kiln over HTTP
                                                   cache sensorDataCache: sensor       -> last value
                                                   cache flinkWindows:    sensor/start -> JSON

The windows are computed by Flink (SQL, in the Java machine); the map that puts them into Kiln is what a
sink for Ignite was. A put that fails is tried again and then fails the job, so that Flink restarts it: the
same window put twice is the same item.
"""

import argparse
import http.client
import json
import pathlib
import time
import urllib.parse

from pyflink.common import Types
from pyflink.datastream import MapFunction, RuntimeContext, StreamExecutionEnvironment
from pyflink.table import StreamTableEnvironment

TRIES = 5
TIMEOUT_S = 10


class IntoKiln(MapFunction):
    """Puts a window, and the last value in it, into caches of a node."""

    def __init__(self, node):
        self.node = node
        self.link = None

    def open(self, runtime_context: RuntimeContext):
        self.link = http.client.HTTPConnection(self.node, timeout=TIMEOUT_S)

    def put(self, cache, key, value):
        target = f"/v1/caches/{cache}/keys/{urllib.parse.quote(key, safe='')}"
        for attempt in range(TRIES):
            try:
                self.link.request("PUT", target, body=value)
                answer = self.link.getresponse()
                said = answer.read()
                if answer.status in (200, 201, 204):
                    return
                why = f"{answer.status} {said.decode(errors='replace')}"
            except (OSError, http.client.HTTPException) as error:
                self.link.close()
                why = repr(error)
            time.sleep(0.2 * (attempt + 1))
        raise RuntimeError(f"Kiln at {self.node} does not take {key} into {cache}: {why}")

    def map(self, row):
        sensor, start, last, count, mean, var = row
        window = {"start": start, "count": count, "mean": mean, "var": var}
        self.put("flinkWindows", f"{sensor}/{start}", json.dumps(window))
        self.put("sensorDataCache", sensor, str(last))
        return f"{sensor} {json.dumps(window)}"

    def close(self):
        self.link.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("lines", type=pathlib.Path, help="a file of readings")
    parser.add_argument("--kiln", default="127.0.0.1:7380", help="a node's address for HTTP")
    args = parser.parse_args()
    env = StreamExecutionEnvironment.get_execution_environment()
    env.set_parallelism(1)
    tables = StreamTableEnvironment.create(env)
    # Numbers may have blanks before them: Flink's CSV takes them off.
    tables.execute_sql(f"""
        CREATE TABLE readings (
            sensor STRING, v DOUBLE, t BIGINT,
            ts AS TO_TIMESTAMP_LTZ(t, 3), WATERMARK FOR ts AS ts - INTERVAL '5' SECOND
        ) WITH ('connector' = 'filesystem', 'path' = '{args.lines.resolve().as_uri()}', 'format' = 'csv')""")
    windows = tables.sql_query("""
        SELECT sensor, CAST(MIN(t) / 10000 * 10000 AS BIGINT), LAST_VALUE(v), COUNT(*), AVG(v), VAR_SAMP(v)
        FROM TABLE(TUMBLE(TABLE readings, DESCRIPTOR(ts), INTERVAL '10' SECOND))
        GROUP BY sensor, window_start, window_end""")
    tables.to_data_stream(windows).map(IntoKiln(args.kiln), output_type=Types.STRING()).print()
    env.execute("windows into Kiln")


if __name__ == "__main__":
    main()
