"""Drives a headless Chromium by the WebDriver protocol, with the standard library only.

`Browser.missing()` says in one line what is not installed, so that a test can skip plainly. A
browser keeps nothing: its profile is a directory that ends with it.
"""

import base64
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"

# Longest wait for the driver to start, and for one of its answers. Generous: machines are busy.
SOON = 60

FLAGS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--hide-scrollbars", "--force-color-profile=srgb",
]

KEYS = {"home": "\ue011", "left": "\ue012", "up": "\ue013", "right": "\ue014", "down": "\ue015", "tab": "\ue004", "enter": "\ue007"}


class Browser:
    """One window."""

    @staticmethod
    def missing():
        """What has to be installed; `None` when all is there."""
        names = [name for name in ("chromium", "chromedriver") if not shutil.which(name)]
        return f"not installed: {' and '.join(names)} (Debian: chromium, chromium-driver)" if names else None

    def __init__(self, width=1280, height=900, dark=False):
        self.profile = tempfile.TemporaryDirectory(prefix="kiln-chromium-", ignore_cleanup_errors=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        # The browser finds no proxy and no variable of the tests' own.
        environment = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
        self.log = open(os.path.join(self.profile.name, "driver.log"), "w+")
        self.driver = subprocess.Popen(
            ["chromedriver", f"--port={port}", "--allowed-ips=127.0.0.1"], env=environment,
            stdin=subprocess.DEVNULL, stdout=self.log, stderr=subprocess.STDOUT)
        self.session = None
        try:
            self.wait_for_driver()
            flags = FLAGS + [f"--user-data-dir={self.profile.name}/profile", f"--window-size={width},{height}"]
            if dark:
                # The page's own switch is tested apart; this is what the system asks for.
                flags.append("--force-dark-mode")
            wish = {"browserName": "chrome", "goog:chromeOptions": {"binary": shutil.which("chromium"), "args": flags},
                    "goog:loggingPrefs": {"browser": "ALL"}}
            answer = self.call("POST", "/session", {"capabilities": {"alwaysMatch": wish}})
            self.session = answer["sessionId"]
            # Narrower than the least window: only the device's size can be that.
            self.devtools("Emulation.setDeviceMetricsOverride",
                          {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False})
            self.devtools("Emulation.setEmulatedMedia",
                          {"features": [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]})
        except BaseException:
            self.close()
            raise

    def wait_for_driver(self):
        deadline = time.monotonic() + SOON
        while True:
            try:
                if self.call("GET", "/status")["ready"]:
                    return
            except (OSError, urllib.error.URLError):
                pass
            if self.driver.poll() is not None or time.monotonic() > deadline:
                self.log.seek(0)
                raise RuntimeError(f"chromedriver does not start: {self.log.read()}")
            time.sleep(0.05)

    def call(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"content-type": "application/json"}, method=method)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=SOON) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{method} {path}: {error.read().decode()[:2000]}") from None

    def command(self, method, path, body=None):
        return self.call(method, f"/session/{self.session}{path}", body)

    def devtools(self, name, parameters):
        return self.command("POST", "/goog/cdp/execute", {"cmd": name, "params": parameters})

    def open(self, url):
        self.command("POST", "/url", {"url": url})

    def run(self, script, *arguments):
        """Runs the body of a function in the page and gives back what it returns."""
        return self.command("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def until(self, what, script, *arguments, within=SOON):
        """Polls a script until it returns something true, and fails with its name otherwise."""
        deadline = time.monotonic() + within
        while True:
            found = self.run(script, *arguments)
            if found:
                return found
            assert time.monotonic() < deadline, f"in vain: {what}; {self.messages()}"
            time.sleep(0.05)

    def find(self, selector):
        return self.command("POST", "/element", {"using": "css selector", "value": selector})[ELEMENT]

    def text(self, selector):
        return self.run("return document.querySelector(arguments[0]).innerText", selector)

    def click(self, selector):
        self.command("POST", f"/element/{self.find(selector)}/click", {})

    def type(self, selector, text):
        self.command("POST", f"/element/{self.find(selector)}/value", {"text": text})

    def press(self, *keys):
        """Presses keys wherever the focus is."""
        actions = [action for key in keys for action in
                   ({"type": "keyDown", "value": KEYS.get(key, key)}, {"type": "keyUp", "value": KEYS.get(key, key)})]
        self.command("POST", "/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    def messages(self):
        """What the page said on the console since the last call; violations of its policy too."""
        return [entry["message"] for entry in self.command("POST", "/se/log", {"type": "browser"})]

    def screenshot(self, path, full=False):
        if full:
            size = self.devtools("Page.getLayoutMetrics", {})["cssContentSize"]
            clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
            png = self.devtools("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})["data"]
        else:
            png = self.command("GET", "/screenshot")
        with open(path, "wb") as file:
            file.write(base64.b64decode(png))

    def close(self):
        if self.session:
            try:
                self.command("DELETE", "")
            except (AssertionError, OSError):
                pass
        self.driver.terminate()
        try:
            self.driver.wait(SOON)
        except subprocess.TimeoutExpired:
            self.driver.kill()
            self.driver.wait()
        self.log.close()
        self.profile.cleanup()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
