"""The files for operators name only what a node really tells."""

import json
import re
import time
import urllib.request

import pytest

from conftest import ROOT, SOON, Node

# Told once something was fetched from Kafka.
OF_KAFKA = {"kiln_stream_source_lag"}


@pytest.fixture(scope="module")
def told():
    node = Node("--memory", "96MiB")
    try:
        text = figures_of(node)
    finally:
        node.stop()
    series = re.findall(r"^([a-z_]+)(\{.*\})? ", text, re.MULTILINE)
    return {name for name, _ in series}, " ".join(labels for _, labels in series)


def figures_of(node):
    # Reads of many keys: what needs some to be estimated is told then, too.
    node.ask(b"".join(b"get operator%d\r\n" % n for n in range(4_000)) + b"mn\r\n", end=b"MN\r\n")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    # A stream with a source that nobody answers for.
    stream = json.dumps({"sources": [{"mqtt": "mqtt://127.0.0.1:1", "topic": "a"}]}).encode()
    made = urllib.request.Request(f"http://{node.http}/v1/streams/s", data=stream, method="PUT")
    opener.open(made, timeout=SOON).close()
    deadline = time.monotonic() + SOON
    while True:
        with opener.open(f"http://{node.http}/metrics", timeout=SOON) as answer:
            text = answer.read().decode()
        if "kiln_stream_source_up" in text or time.monotonic() > deadline:
            return text
        time.sleep(0.05)


def names(text):
    return set(re.findall(r"\b(?:kiln|process)_[a-z_]+", text))


@pytest.mark.parametrize("file", ["alerts.yml", "grafana.json"])
def test_every_metric_and_label_that_is_asked_for_is_told(file, told):
    metrics, labels = told
    text = (ROOT / "config" / file).read_text()
    if file.endswith(".json"):
        board = json.loads(text)
        text = " ".join(target["expr"] for panel in board["panels"] for target in panel.get("targets", []))
    asked = names(text)
    assert len(asked) > 10
    assert asked - OF_KAFKA <= metrics, asked - metrics
    for label, value in re.findall(r'\b(command|result|use|protocol)="([a-z_]+)"', text):
        assert f'{label}="{value}"' in labels, (label, value)


def test_the_panels_of_the_grafana_dashboard_do_not_overlap():
    board = json.loads((ROOT / "config/grafana.json").read_text())
    taken = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert not cells & taken and place["x"] + place["w"] <= 24, panel["title"]
        taken |= cells
