"""A client in another language, generated from the OpenAPI document, does what it says."""

import importlib
import io
import subprocess
import sys

import pytest

from conftest import ROOT


@pytest.fixture
def api(tmp_path, monkeypatch):
    pytest.importorskip("openapi_python_client", reason="openapi-python-client is not installed")
    directory = tmp_path / "generated_kiln"
    generate = subprocess.run(
        [sys.executable, "-m", "openapi_python_client", "generate", "--meta", "none",
         "--path", ROOT / "docs/openapi.json", "--output-path", directory,
         "--config", config(tmp_path)],
        capture_output=True, text=True)
    assert generate.returncode == 0, generate.stdout + generate.stderr
    monkeypatch.syspath_prepend(str(tmp_path))
    yield lambda name: importlib.import_module(f"generated_kiln.{name}")
    for name in [name for name in sys.modules if name.startswith("generated_kiln")]:
        del sys.modules[name]


def config(directory):
    """Without the formatters that the generator would run afterwards."""
    path = directory / "generator.yaml"
    path.write_text("post_hooks: []\n")
    return path


def test_a_generated_client_reads_writes_counts_and_makes_caches(kiln, api):
    client = api("client").Client(base_url=f"http://{kiln.http}")
    types, models = api("types"), api("models")
    item = {"cache": "default", "key": "a/b \u00e9", "client": client}

    put = api("api.items.put_item").sync_detailed
    get = api("api.items.get_item").sync_detailed
    body = types.File(payload=io.BytesIO(b"\x00hello\xff"))
    assert put(**item, body=body, ttl="1h").status_code == 201
    read = get(**item)
    assert read.status_code == 200 and read.content == b"\x00hello\xff"
    assert read.parsed.payload.read() == b"\x00hello\xff"
    assert get(**item, if_none_match=read.headers["etag"]).status_code == 304
    refused = put(**item, body=types.File(payload=io.BytesIO(b"x")), if_none_match="*")
    assert refused.status_code == 412
    assert refused.parsed.type_ == "/docs#problem-condition-failed" and refused.parsed.status == 412

    increment = api("api.items.increment_item").sync
    number = {"cache": "default", "key": "n", "client": client}
    assert increment(**number, initial=41).number == 41
    assert increment(**number, idempotency_key="once").number == 42
    assert increment(**number, idempotency_key="once").number == 42

    batch = models.Batch.from_dict({"operations": [
        {"op": "set", "key": "c", "value": "1"},
        {"op": "get", "key": "c"},
        {"op": "get", "key": "nothing"},
    ]})
    results = api("api.items.run_batch").sync(cache="default", client=client, body=batch).results
    assert [result.status for result in results] == [201, 200, 404]
    assert results[2].problem.title == "No such item"

    page = api("api.items.scan_cache").sync(cache="default", client=client, prefix="a/")
    assert [found.key for found in page.items] == ["a/b \u00e9"]

    settings = models.CacheSettings.from_dict({"memory": 8 << 20, "eviction": "lru"})
    made = api("api.caches.create_cache").sync_detailed(cache="made", client=client, body=settings)
    assert made.status_code == 201 and made.parsed.eviction == "lru"
    names = [cache.name for cache in api("api.caches.list_caches").sync(client=client).caches]
    assert names == ["default", "made"]
    assert api("api.caches.drop_cache").sync_detailed(cache="made", client=client).status_code == 204
    gone = api("api.caches.show_cache").sync(cache="made", client=client)
    assert gone.type_ == "/docs#problem-no-such-cache"
    missing = api("api.items.delete_item").sync(cache="default", key="nothing", client=client)
    assert missing.type_ == "/docs#problem-miss"
