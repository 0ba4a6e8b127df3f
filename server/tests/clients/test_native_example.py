"""The client that is written from the specification alone works against the real node."""

import subprocess
import sys

from conftest import ROOT, SOON


def test_the_example_written_from_the_specification_runs_to_its_end(kiln):
    example = ROOT / "examples/native_client.py"
    assert len(example.read_text().splitlines()) < 150
    run = subprocess.run([sys.executable, example, kiln.native],
                         capture_output=True, text=True, timeout=3 * SOON)
    assert run.returncode == 0, run.stderr
    assert run.stdout.endswith("all is well\n"), run.stdout
