"""Other people's tests: memccapable, and the client libraries' own suites from their sources.

The sources are downloaded by `.ci/run` (KILN_CLIENT_SOURCES names the directory) and are changed
here only in where they look for the server.
"""

import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import time

import pytest

SOURCES = pathlib.Path(os.environ.get("KILN_CLIENT_SOURCES", "/nonexistent"))


def memccapable(port):
    done = subprocess.run(["memccapable", "-h", "127.0.0.1", "-p", str(port), "-a", "-t", "10"],
                          stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300)
    # A name is written before its test; what the test says may stand between it and the verdict.
    verdicts = re.findall(r"\[(pass|FAIL)\]", done.stdout + done.stderr)
    return done.returncode, verdicts.count("pass"), len(verdicts), done.stdout + done.stderr


@pytest.mark.skipif(not shutil.which("memccapable"), reason="memccapable is not installed")
def test_memccapable_finds_all_of_the_text_protocol(kiln):
    code, passed, of, output = memccapable(kiln.port)
    print(f"Kiln: {passed} of {of}")
    if shutil.which("memcached"):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        user = ["-u", "root"] if os.geteuid() == 0 else []
        peer = subprocess.Popen(["memcached", "-l", "127.0.0.1", "-p", str(port), *user],
                                stdin=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 10
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
            _, peer_passed, peer_of, _ = memccapable(port)
            print(f"memcached of this system: {peer_passed} of {peer_of}")
        finally:
            peer.terminate()
            peer.wait()
    assert (code, passed, of) == (0, 27, 27), output


def unpack(name, tmp_path):
    found = sorted(SOURCES.glob(f"{name}-*.tar.gz"))
    if not found:
        pytest.skip(f"no sources of {name} in {SOURCES}")
    with tarfile.open(found[-1]) as archive:
        archive.extractall(tmp_path, filter="data")
    return next(path for path in tmp_path.iterdir() if path.is_dir())


def run_suite(directory, *arguments, **environment):
    empty = directory / "empty.ini"
    empty.write_text("[pytest]\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "ignore", "-p", "no:cacheprovider",
         "-c", str(empty), "--rootdir", str(directory), *arguments],
        cwd=directory, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300,
        env={**os.environ, **environment})
    print(done.stdout.strip().splitlines()[-1])
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def pymemcache_suite(tmp_path):
    root = unpack("pymemcache", tmp_path)
    # The tests alone: the library is the one that is installed.
    suite = root / "suite"
    shutil.move(root / "pymemcache" / "test", suite)
    return suite


def run_pymemcaches_tests(suite, node):
    run_suite(suite, "-m", "integration", "--server", node.host, "--port", str(node.port),
              "-k", "not tls", "test_integration.py")


def test_pymemcaches_own_integration_tests_pass(kiln, tmp_path):
    run_pymemcaches_tests(pymemcache_suite(tmp_path), kiln)


def test_pymemcaches_own_integration_tests_pass_at_any_node_of_three(three_nodes, tmp_path):
    suite = pymemcache_suite(tmp_path)
    # Half a minute each: the tests empty the cache a hundred times. The long run does all.
    for node in three_nodes if os.environ.get("KILN_LONG") else three_nodes[1:2]:
        run_pymemcaches_tests(suite, node)
    # What one node is told, every node knows; and every node holds a part of it.
    writer = three_nodes[0]
    assert writer.ask(b"flush_all\r\n") == b"OK\r\n"
    with writer.connect() as connection, connection.makefile("rb") as replies:
        for number in range(300):
            connection.sendall(b"set spread%d 0 0 3\r\n%03d\r\n" % (number, number))
            assert replies.readline() == b"STORED\r\n"
    for node in three_nodes:
        held = int(re.search(rb"STAT curr_items (\d+)", node.ask(b"stats\r\n", b"END\r\n"))[1])
        assert 0 < held <= 300, f"{node.name} holds {held} of 300 items with two copies each"
        with node.connect() as connection, connection.makefile("rb") as replies:
            for number in range(300):
                connection.sendall(b"get spread%d\r\n" % number)
                answer = [replies.readline() for _ in range(3)]
                assert answer[1:] == [b"%03d\r\n" % number, b"END\r\n"], answer


def test_python_memcacheds_own_tests_pass(start, tmp_path):
    # memcached counts an item's key and header against the limit, so that a value of 1 MiB is just
    # too long; Kiln's limit is that of the value.
    node = start("--max-item-size", str((1 << 20) - 1))
    root = unpack("python_memcached", tmp_path) if list(SOURCES.glob("python_memcached-*")) \
        else unpack("python-memcached", tmp_path)
    tests = root / "tests"
    (tests / "__init__.py").touch()
    # Left out of the source archive.
    if not (tests / "utils.py").exists():
        (tests / "utils.py").write_text(
            "import contextlib, io\n\n\n"
            "@contextlib.contextmanager\n"
            "def captured_stderr():\n"
            "    with contextlib.redirect_stderr(io.StringIO()) as text:\n"
            "        yield text\n")
    for path in tests.glob("*.py"):
        path.write_text(path.read_text().replace("127.0.0.1:11211", node.name))
    run_suite(root, "tests")


def test_pylibmcs_own_tests_pass_over_the_text_protocol(kiln, tmp_path):
    root = unpack("pylibmc", tmp_path)
    # The library is the one that is installed.
    shutil.rmtree(root / "src")
    for path in (root / "tests").glob("*.py"):
        path.write_text(path.read_text().replace("binary=True", "binary=False"))
    # Keys with spaces and control characters exist in the binary protocol only.
    only_binary = "not test_zerokey and not test_utf8_encoding and not autoconf"
    run_suite(root, "-k", only_binary, "tests", MEMCACHED_PORT=str(kiln.port))
