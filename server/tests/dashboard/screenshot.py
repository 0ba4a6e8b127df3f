"""Takes a picture of a running node's dashboard: screenshot.py URL FILE [WIDTH HEIGHT [dark]]

The README's is made so: a node under load for five minutes on an otherwise idle machine, then
screenshot.py http://127.0.0.1:7380/ docs/dashboard.png
"""

import sys
import time

from browser import Browser


def main(url, file, width="1280", height="900", scheme="light"):
    with Browser(int(width), int(height), scheme == "dark") as browser:
        browser.open(url)
        browser.run("localStorage.setItem('kiln.range', '300')")
        browser.open(url)
        browser.until("the page is live", "return document.getElementById('status-text').textContent === 'Live'")
        # The next tick draws everything that a page begins without.
        time.sleep(2)
        browser.screenshot(file)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
