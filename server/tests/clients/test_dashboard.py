"""The dashboard, looked at by a real browser.

Chromium and its driver are Debian packages; where they cannot be had, these tests say so and are
skipped. Clusters larger than a test can start are synthetic: the page is handed what a node would
have told it (`server/tests/dashboard/synthetic.js`).
"""

import http.client
import json
import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import pytest

from conftest import ROOT, SOON, eventually

sys.path.insert(0, str(ROOT / "server/tests/dashboard"))
from browser import Browser  # noqa: E402

SYNTHETIC = (ROOT / "server/tests/dashboard/synthetic.js").read_text()

pytestmark = pytest.mark.skipif(Browser.missing() is not None, reason=str(Browser.missing()))

LIVE = "return document.getElementById('status-text').textContent === 'Live'"


@pytest.fixture(scope="module")
def browsers():
    """One browser for each size and scheme; they are slow to start."""
    kept = {}

    def get(width=1280, height=900, dark=False):
        key = (width, height, dark)
        if key not in kept:
            kept[key] = Browser(width, height, dark)
        return kept[key]

    yield get
    for browser in kept.values():
        browser.close()


@pytest.fixture
def browser(browsers):
    return browsers()


@pytest.fixture
def start(start):
    """Nodes that stay alone."""
    return lambda *flags: start("--listen-peer", "off", *flags)


@pytest.fixture
def node(start):
    return start("--memory", "64MiB", "--name", "oven")


def page(node):
    return f"http://{node.http}/"


def get(node, path):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://{node.http}{path}", timeout=SOON) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read()


def show(browser, node, script):
    """Opens the page and runs a script that ends in a synthetic snapshot being shown."""
    browser.open(page(node))
    browser.until("the page runs", "return globalThis.kilnDashboard !== undefined")
    browser.messages()
    return browser.run(SYNTHETIC + script)


class Load:
    """Some reads and writes, until it is told to stop."""

    def __init__(self, node):
        self.node = node
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)

    def run(self):
        with self.node.connect() as connection:
            file = connection.makefile("rb")
            while not self.stopped.is_set():
                connection.sendall(b"".join(b"set k%d 0 0 1\r\nv\r\nget k%d\r\nget none%d\r\n" % (n, n, n) for n in range(50)))
                for _ in range(50):
                    assert file.readline() == b"STORED\r\n"
                    assert file.readline().startswith(b"VALUE")
                    assert file.readline() == b"v\r\n"
                    assert file.readline() == b"END\r\n"
                    assert file.readline() == b"END\r\n"

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stopped.set()
        self.thread.join()


def test_the_figures_on_the_page_follow_the_load(node, browser):
    browser.open(page(node))
    browser.until("the page is live", LIVE)
    assert browser.messages() == []
    with Load(node):
        browser.until("operations are shown", """
            const big = document.querySelector('#tiles .tile .big').textContent;
            return /^[1-9]/.test(big)""")
        first = browser.run("return document.querySelector('#tiles .tile .big').textContent")
        browser.until("operations change", "return document.querySelector('#tiles .tile .big').textContent !== arguments[0]", first)
        browser.until("a third of the reads miss", """
            const tile = document.querySelectorAll('#tiles .tile .big')[1].textContent;
            return Math.abs(parseFloat(tile) - 50) < 8""")
        browser.until("the latency chart has a line", "return document.querySelectorAll('.chart')[1].querySelectorAll('path.series').length === 3")
        browser.until("the caches table shows its items", """
            const cells = [...document.querySelectorAll('#caches-table tbody tr td')].map((cell) => cell.textContent);
            return cells[0] === 'default' && cells.includes('50')""")
    browser.until("no operations are shown when there are none", "return document.querySelector('#tiles .tile .big').textContent === '0'")
    assert browser.messages() == []


def test_a_reload_shows_the_past(node, browser):
    with Load(node):
        browser.open(page(node))
        browser.until("some seconds are kept", "return kilnDashboard.model.rows.length >= 3")
    before = browser.run("return kilnDashboard.model.rows[1]")
    browser.open(page(node))
    browser.until("the page is live", LIVE)
    assert browser.run("return kilnDashboard.model.rows[1]") == before


def test_the_partition_map_tells_who_holds_a_partition(node, browser):
    browser.open(page(node))
    browser.until("the page is live", LIVE)
    browser.click("a[href='#partitions']")
    browser.run("document.getElementById('map').focus()")
    browser.press("right", "right", "down")
    told = browser.text("#map-detail")
    columns = browser.run("return Math.round(Math.sqrt(1024 * document.getElementById('map').clientWidth / document.getElementById('map').clientHeight))")
    assert told == f"Partition {columns + 2}: primary on oven."
    colors = browser.run("""
        const map = document.getElementById('map');
        const data = map.getContext('2d').getImageData(0, 0, map.width, map.height).data;
        const seen = new Set();
        for (let at = 0; at < data.length; at += 4) if (data[at + 3] === 255) seen.add(data.slice(at, at + 3).join());
        return [...seen]""")
    assert colors, "the map is not drawn"


def test_a_key_is_found_and_looked_at(node, browser):
    node.ask(b"set user:17 5 300 15\r\n{\"name\":\"Anna\"}\r\n")
    node.ask(b"set session:1 0 0 3\r\n\x00\xff\x01\r\n")
    browser.open(page(node))
    browser.until("the page is live", LIVE)
    browser.type("#keys-prefix", "user:")
    browser.press("enter")
    browser.until("the key is listed", "return document.querySelectorAll('#keys-found tr').length === 1")
    cells = browser.run("return [...document.querySelectorAll('#keys-found td')].map((cell) => cell.textContent)")
    assert cells[0] == "user:17" and cells[1] == "15\u202fB" and cells[3] == '{"name":"Anna"}'
    assert cells[2].startswith("4\u202fm") or cells[2].startswith("5\u202fm")
    browser.click("#keys-found button")
    browser.until("the value is shown", "return document.getElementById('item-value').textContent !== ''")
    assert browser.run("return document.getElementById('item-value').textContent") == '{\n  "name": "Anna"\n}'
    assert "Flags\n5" in browser.text("#item-facts").replace("\n\n", "\n")

    browser.run("document.getElementById('keys-prefix').value = ''")
    browser.click("#finder button")
    browser.until("both keys are listed", "return document.querySelectorAll('#keys-found tr').length === 2")
    browser.run("[...document.querySelectorAll('#keys-found button')].find((button) => button.textContent === 'session:1').click()")
    browser.until("bytes are shown", "return document.getElementById('item-value').textContent.startsWith('0000  00 ff 01')")


def test_keys_are_not_shown_where_that_is_turned_off(start, browser):
    node = start("--dashboard-keys=false")
    node.ask(b"set user:17 0 0 1\r\nv\r\n")
    for path in ["/dashboard/keys?cache=default", "/dashboard/item?cache=default&key=dXNlcjoxNw"]:
        status, headers, body = get(node, path)
        assert (status, headers["content-type"]) == (403, "application/problem+json"), body
    browser.open(page(node))
    browser.until("the page is live", LIVE)
    assert browser.run("return document.getElementById('keys-allowed').hidden && !document.getElementById('keys-forbidden').hidden")
    assert json.loads(snapshot(node))["hottest"] == []


def snapshot(node):
    """The first event of a viewer's stream."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://{node.http}/dashboard/events", timeout=SOON) as answer:
        assert answer.headers["content-type"] == "text/event-stream"
        assert answer.readline() == b"event: snapshot\n"
        return answer.readline().removeprefix(b"data: ")


def test_what_is_asked_of_the_keys_is_checked(node):
    for path, status in [
        ("/dashboard/keys", 400), ("/dashboard/keys?cache=none", 404), ("/dashboard/keys?cache=default&prefix=%21", 400),
        ("/dashboard/keys?cache=default&cursor=x", 400), ("/dashboard/keys?cache=default&more=1", 400),
        ("/dashboard/item?cache=default&key=bm9uZQ", 404), ("/dashboard/item?cache=default", 400),
    ]:
        got, headers, body = get(node, path)
        assert (got, headers["content-type"]) == (status, "application/problem+json"), (path, body)
        assert json.loads(body)["status"] == status
    status, _, body = get(node, "/dashboard/keys?cache=default&cursor=18446744073709551615")
    assert status == 200 and json.loads(body)["keys"] == []


def test_the_page_may_load_nothing_from_elsewhere_and_run_only_its_own_script(node):
    status, headers, body = get(node, "/")
    policy = headers["content-security-policy"]
    assert status == 200 and "default-src 'none'" in policy and "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert b"http://" not in body.replace(b"http://www.w3.org/2000/svg", b"") and b"https://" not in body
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(page(node), headers={"if-none-match": headers["etag"]})
    with pytest.raises(urllib.error.HTTPError) as known:
        opener.open(request, timeout=SOON)
    assert known.value.code == 304


def test_viewers_are_bounded_and_a_place_is_free_again_when_one_leaves(node):
    viewers = []
    for _ in range(32):
        viewer = http.client.HTTPConnection(node.http, timeout=SOON)
        viewer.request("GET", "/dashboard/events")
        answer = viewer.getresponse()
        assert answer.status == 200
        viewers.append((viewer, answer))
    status, headers, _ = get(node, "/dashboard/events")
    assert status == 503 and int(headers["retry-after"]) > 0
    for viewer, answer in viewers:
        answer.close()
        viewer.close()
    eventually("a place is free", lambda: b'"seq"' in snapshot_or_nothing(node))


def snapshot_or_nothing(node):
    try:
        return snapshot(node)
    except urllib.error.HTTPError:
        return b""


def test_a_node_with_viewers_stops_at_once_and_tells_them(node):
    viewer = http.client.HTTPConnection(node.http, timeout=SOON)
    viewer.request("GET", "/dashboard/events")
    answer = viewer.getresponse()
    begun = time.monotonic()
    node.process.terminate()
    told = answer.read()
    assert node.process.wait(SOON) == 0
    assert time.monotonic() - begun < 5
    assert told.endswith(b"event: goodbye\ndata: {}\n\n"), told[-200:]


def test_the_page_says_when_the_node_is_gone_and_comes_back_by_itself(start, browser):
    node = start("--name", "phoenix")
    browser.open(page(node))
    browser.until("the page is live", LIVE)
    height = browser.run("return document.documentElement.scrollHeight")
    node.stop()
    browser.until("the loss is told", "return !document.getElementById('toast').hidden")
    assert browser.text("#status-text") == "Reconnecting…"
    assert browser.run("return document.documentElement.scrollHeight") == height, "the page jumped"
    again = subprocess.Popen(
        [node.process.args[0], "serve", "--name", "phoenix", "--listen-http", node.http, "--listen-memcached", "127.0.0.1:0",
         "--listen-native", "off", "--listen-peer", "off"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={name: value for name, value in os.environ.items() if not name.startswith("KILN_")})
    try:
        browser.until("the page is live again", LIVE)
        assert browser.run("return document.getElementById('toast').hidden")
        browser.messages()
    finally:
        again.terminate()
        again.wait(SOON)


def send(node, method, path, body):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(f"http://{node.http}{path}", data=body, method=method)
    with opener.open(request, timeout=SOON) as answer:
        return json.loads(answer.read())


def test_a_stream_is_shown_with_its_sensors_windows_and_alarms(node, browser):
    browser.open(page(node))
    browser.until("the page is live", LIVE)
    assert browser.run("return document.getElementById('streams').hidden && document.getElementById('nav-streams').hidden")
    definition = {"windows": [{"tumbling": "1s"}, {"tumbling": "10s"}], "watermark_delay": "0s",
                  "detectors": [{"threshold": {"above": 90.0}}]}
    send(node, "PUT", "/v1/streams/plant", json.dumps(definition).encode())
    now = int(time.time() * 1000) // 1000 * 1000
    lines = [f"press-{sensor}, {95 if (sensor, place) == (1, 30) else 40 + sensor + place % 7}, {now - 60_000 + place * 1000}\n"
             for place in range(60) for sensor in (1, 2)]
    told = send(node, "POST", "/v1/streams/plant/readings", "".join(lines).encode() + b"bad\n")
    assert (told["accepted"], told["rejected"]) == (120, 1)

    browser.until("the stream is listed", """
        const cells = [...document.querySelectorAll('#streams-table tbody tr td')].map((cell) => cell.textContent);
        return !document.getElementById('nav-streams').hidden && cells[0] === 'plant' && cells[2] === '2'
          && cells[4].endsWith('s') && cells[6].startsWith('1') && cells[7] === '2'""")
    browser.run("document.getElementById('streams').scrollIntoView()")
    browser.until("sensors are listed with their latest values", """
        const told = [...document.querySelectorAll('#stream-sensors button')].map((button) => button.innerText.split(/\\s+/).join(' '));
        return told.join() === 'press-1 44,press-2 45'""")
    browser.until("windows of the first are drawn, with the alarm", """
        return document.querySelector('#stream-plot path.series:not(.expected)')?.getAttribute('d').split('L').length > 50
          && document.querySelectorAll('#stream-plot .alarm').length === 2""")
    assert browser.text("#stream-alarms").startswith("1 alarm · last threshold at ")
    height = browser.run("return document.documentElement.scrollHeight")

    browser.run("document.getElementById('stream-plot').focus()")
    browser.press("home")
    first = browser.text("#stream-detail")
    browser.press("right")
    assert "mean" in first and browser.text("#stream-detail") not in ("", first)
    browser.run("document.querySelectorAll('#stream-sensors button')[1].focus()")
    browser.press("enter")
    browser.until("the other sensor is shown", """
        return document.getElementById('stream-title').textContent === 'Windows of press-2'
          && document.querySelectorAll('#stream-plot path.series:not(.expected)').length === 1
          && document.querySelectorAll('#stream-plot .alarm').length === 0""")
    browser.until("what is expected next is drawn in its band", """
        return document.querySelector('#stream-plot path.series.expected')?.getAttribute('d').split('L').length === 13
          && document.querySelectorAll('#stream-plot path.area.expected').length === 1""")
    browser.run("""
        const window = document.getElementById('stream-window');
        window.value = '10s';
        window.dispatchEvent(new Event('change'))""")
    browser.until("the longer windows are drawn", "return document.querySelector('#stream-plot path.series:not(.expected)')?.getAttribute('d').split('L').length < 10")
    assert browser.run("return document.documentElement.scrollHeight") == height, "the page jumped"
    assert browser.messages() == []


def test_two_hundred_nodes_and_a_thousand_caches_are_drawn_quickly_and_a_page_at_a_time(node, browser):
    took = show(browser, node, """
        const big = syntheticSnapshot({ nodes: 200, caches: 1000, transfers: 300, copies: 3, short: 30, lost: 4, groups: 2, streams: 3, events: 200 });
        const begun = performance.now();
        kilnDashboard.show(big);
        return performance.now() - begun""")
    # About 60 ms on two old cores; this only catches what is out of all proportion.
    assert took < 2000
    rows = browser.run("return [document.querySelectorAll('#nodes-table tbody tr').length, document.querySelectorAll('#caches-table tbody tr').length]")
    assert rows == [15, 15]
    assert browser.run("return document.querySelectorAll('*').length") < 5000
    assert browser.text("#health-text") == "4 partitions lost all copies"
    assert not browser.run("return document.getElementById('streams').hidden")
    assert browser.run(SYNTHETIC + """
        kilnDashboard.streams.take(syntheticWindows());
        return [document.querySelectorAll('#streams-table tbody tr').length, document.querySelectorAll('#stream-plot .alarm').length]""") == [3, 2]

    height = browser.run("return document.documentElement.scrollHeight")
    end = browser.run("return Math.round(document.querySelector('footer').getBoundingClientRect().bottom + scrollY)")
    assert abs(height - end) <= 1, "something hangs out below the page"
    browser.run("for (let page = 0; page < 13; page += 1) document.querySelector('[aria-label=\"Next page of nodes\"]').click()")
    assert browser.text("#nodes-table .pager span") == "196–200 of 200"
    assert browser.run("return document.documentElement.scrollHeight") == height, "the last page made the page jump"

    browser.type("#caches-table input", "carts-144")
    assert browser.text("#caches-table .pager span") == "1–1 of 1"
    assert browser.run("return document.documentElement.scrollHeight") == height, "the filter made the page jump"
    assert browser.messages() == []


def test_tables_are_sorted_by_what_a_column_holds(node, browser):
    show(browser, node, "kilnDashboard.show(syntheticSnapshot({ nodes: 200, caches: 1000 }))")
    names = "return [...document.querySelectorAll('#nodes-table tbody tr td:first-child')].map((cell) => cell.textContent.replace('this page', ''))"
    assert browser.run(names)[:3] == ["oven-1", "oven-2", "oven-3"]
    browser.run("document.querySelector('#nodes-table th button').click()")
    assert browser.run(names)[:3] == ["oven-200", "oven-199", "oven-198"]
    assert browser.run("return document.querySelector('#nodes-table th').getAttribute('aria-sort')") == "descending"
    browser.run("[...document.querySelectorAll('#caches-table th button')].find((button) => button.textContent.startsWith('Items')).click()")
    items = browser.run("return kilnDashboard.model.topology.caches.map((cache) => kilnDashboard.model.caches.get(cache.id)).sort((a, b) => b.items - a.items)[0].id")
    name = browser.run("return kilnDashboard.model.topology.caches[arguments[0]].name", items)
    assert browser.run("return document.querySelector('#caches-table tbody td').textContent") == name


def test_a_tick_brings_the_page_up_to_date(node, browser):
    show(browser, node, """
        const now = syntheticSnapshot({ nodes: 3 });
        kilnDashboard.show(now);
        const row = now.history.rows.at(-1).slice();
        row[0] += 1; row[1] = 1234000; row[2] = 0; row[3] = 0;
        kilnDashboard.tick({ seq: 2, now_ms: now.now_ms + 1000, row, streams: [],
            events: [{ number: 99, at_ms: now.now_ms, weight: 'warning', about: 'node', text: 'Node oven-2 is down.' }] });
        // One that came late, or twice, changes nothing.
        kilnDashboard.tick({ seq: 2, now_ms: now.now_ms, row: row.map(() => 0), streams: [], events: [] });""")
    assert browser.text("#tiles .tile .big").replace("\n", "") == "1.23M"
    assert browser.text("#event-list li > span:last-child") == "Node oven-2 is down."
    assert browser.run("return kilnDashboard.model.rows.length") == 600


def test_what_a_client_named_is_only_ever_text(node, browser):
    show(browser, node, """
        const evil = '<img src=x onerror="document.title=1"><script>document.title=2</script>';
        const bad = syntheticSnapshot({ nodes: 3, streams: 1, transfers: 1 });
        for (const one of [...bad.topology.nodes, ...bad.topology.caches, ...bad.streams]) one.name = evil;
        for (const one of bad.topology.nodes) one.state = one.zone = evil;
        for (const one of bad.events) one.text = evil;
        for (const one of bad.hottest) one.key = evil;
        bad.node.name = bad.node.version = evil;
        kilnDashboard.show(bad);""")
    assert browser.run("return document.querySelectorAll('img').length") == 0
    assert browser.run("return document.title").startswith("<img")
    assert browser.messages() == []


def test_the_page_fits_and_does_not_jump_at_either_width_and_scheme(node, browsers):
    for width, height, dark in [(1280, 900, False), (400, 900, True)]:
        browser = browsers(width, height, dark)
        browser.open(page(node))
        empty = browser.until("the page has a height", "return document.documentElement.scrollHeight")
        browser.until("the page is live", LIVE)
        assert browser.run("return document.documentElement.scrollWidth") == width
        tops = "return [...document.querySelectorAll('section')].filter((one) => !one.hidden).map((one) => Math.round(one.getBoundingClientRect().top + scrollY))"
        before = browser.run(tops)
        with Load(node):
            browser.until("there is load", "return /^[1-9]/.test(document.querySelector('#tiles .tile .big').textContent)")
            browser.until("more seconds pass", "globalThis.begun ??= kilnDashboard.model.rows.length; return kilnDashboard.model.rows.length >= globalThis.begun + 4")
        assert browser.run(tops) == before, "sections moved"
        assert empty > 0
        ground = browser.run("return getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, ground[4:-1].split(","))) < 200) == dark, ground
        assert browser.messages() == []


def test_the_theme_can_be_chosen_and_is_remembered(node, browser):
    ground = "return getComputedStyle(document.body).backgroundColor"
    browser.open(page(node))
    browser.until("the page is live", LIVE)
    light = browser.run(ground)
    browser.click("#theme")
    assert browser.text("#theme") == "Theme: light" and browser.run(ground) == light
    browser.click("#theme")
    dark = browser.run(ground)
    assert browser.text("#theme") == "Theme: dark" and dark != light
    browser.open(page(node))
    assert browser.run(ground) == dark
    browser.click("#theme")
    assert browser.text("#theme") == "Theme: auto" and browser.run(ground) == light


def test_everything_can_be_reached_and_is_named_for_those_who_do_not_see_it(node, browser):
    show(browser, node, "kilnDashboard.show(syntheticSnapshot({ nodes: 3, transfers: 2 }))")
    nameless = browser.run("""
        const named = (one) => one.getAttribute('aria-label') || one.textContent.trim() || one.labels?.length || one.getAttribute('aria-labelledby');
        return [...document.querySelectorAll('button, input, select, a, [tabindex=\\"0\\"]')].filter((one) => !named(one)).map((one) => one.outerHTML)""")
    assert nameless == []
    assert browser.run("return [...document.querySelectorAll('.chart .plot[role=img]')].every((plot) => /now: /.test(plot.getAttribute('aria-label')))")
    browser.run("document.querySelector('.plot').focus()")
    browser.press("left", "left")
    assert ", at " in browser.run("return document.querySelector('.plot').getAttribute('aria-label')") or browser.until(
        "the moment is told", "return document.querySelector('.plot').getAttribute('aria-label').includes(', at ')")
    contrast = browser.run(CONTRAST)
    assert contrast == [], contrast


# Text against what is behind it, by the formula of WCAG 2, in both schemes.
CONTRAST = """
    const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
    const parse = (color) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1); return [...canvas.getImageData(0, 0, 1, 1).data]; };
    const light = ([r, g, b]) => [r, g, b].map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)).reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const behind = (one) => { for (; one; one = one.parentElement) { const color = parse(getComputedStyle(one).backgroundColor); if (color[3] > 200) return color; } return [255, 255, 255, 255]; };
    const faults = new Set();
    for (const theme of ['light', 'dark']) {
      document.documentElement.dataset.theme = theme;
      for (const one of document.querySelectorAll('body *')) {
        if (![...one.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim()) || one.closest('svg, [hidden], :disabled, noscript, script, style') || one.offsetParent === null) continue;
        const [a, b] = [light(parse(getComputedStyle(one).color)), light(behind(one))];
        const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        if (ratio < 4.5) faults.add(`${theme} ${one.tagName}.${one.className}: ${ratio.toFixed(2)}`);
      }
    }
    delete document.documentElement.dataset.theme;
    return [...faults]
"""


def test_users_are_asked_who_they_are_where_the_node_has_users(start, tmp_path):
    users = tmp_path / "users"
    users.write_text("ann:secret\n")
    users.chmod(0o600)
    node = start("--auth-file", str(users))
    for path in ["/", "/dashboard/events", "/dashboard/keys?cache=default"]:
        assert get(node, path)[0] == 401, path
