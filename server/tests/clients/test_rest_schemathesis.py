"""Schemathesis: requests made up from the OpenAPI document, and answers held against it.

KILN_SCHEMATHESIS_EXAMPLES says how many for each operation: 20 in `.ci/run`, which end after a
minute at the latest, at least 1,000 before a release. What is expected beside success: problems that
depend on what the node holds, which the document cannot express.
"""

import json
import os
import subprocess
import sys
import textwrap
import urllib.request

import pytest

SECONDS = 60

# Streams that operations meet by the names of their examples.
STREAMS = {
    "plant": {"windows": [{"tumbling": "10s"}, {"count": 3}, {"session": "30s"}],
              "detectors": ["ewma_z", {"threshold": {"above": 80.0}}], "keep_late": True},
    "tele": {"format": "influx"},
}

SETTINGS = """
    [checks]
    # 503 to 507 are answers of a node that has no room or no copy, and are documented as such.
    not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", 503, 504, 507]
    # A condition that does not hold, a key that came before, settings that do not fit the node.
    positive_data_acceptance.expected-statuses =
        ["2xx", "3xx", 401, 403, 404, 408, 409, 410, 412, 413, 414, 416, 422, 429, 431, 503, 504, 507]

    # Which windows a stream has, what belongs to a producer, and whether lines are right, the document
    # cannot express either: there 400 is an answer too.
    [[operations]]
    include-operation-id = ["ingestReadings", "listWindows", "influxWrite", "influxWriteV2"]
    checks.positive_data_acceptance.expected-statuses = ["2xx", 400, 404, 409, 413, 414, 415, 429, 503]

    # Names that are there; others are tried by the operations that make and drop streams.
    [[operations]]
    include-operation-id = ["showStream", "ingestReadings", "showSensor", "listWindows", "listAlarms", "listLate"]
    parameters."path.stream" = "plant"

    # It answers for as long as it is listened to.
    [[operations]]
    include-operation-id = "followStream"
    enabled = false
"""


def test_no_request_that_the_document_allows_or_forbids_is_answered_otherwise(start, tmp_path):
    if "KILN_SCHEMATHESIS_EXAMPLES" not in os.environ:
        pytest.skip("set KILN_SCHEMATHESIS_EXAMPLES, to 20 for example")
    pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    node = start("--memory", "256MiB")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for name, definition in STREAMS.items():
        request = urllib.request.Request(f"http://{node.http}/v1/streams/{name}", method="PUT",
                                         data=json.dumps(definition).encode())
        assert opener.open(request).status == 201
    settings = textwrap.dedent(SETTINGS).replace(" =\n    [", " = [")
    (tmp_path / "schemathesis.toml").write_text(settings)
    examples = os.environ["KILN_SCHEMATHESIS_EXAMPLES"]
    command = [sys.executable, "-m", "schemathesis.cli", "run",
               f"http://{node.http}/openapi.json",
               "--phases", "examples,coverage,fuzzing", "--max-examples", examples,
               "--continue-on-failure", "--suppress-health-check", "all", "--request-timeout", "20",
               "--generation-deterministic", "--no-color"]
    if int(examples) <= 20:
        command += ["--max-time", str(SECONDS)]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    print(run.stdout[-8000:])
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]
    assert node.process.poll() is None, "the node ended"
