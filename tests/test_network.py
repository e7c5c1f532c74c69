"""No command opens a connection to another machine, or listens to one, unless a recipe names a server or a hub id."""

import json
import os
import subprocess
import sys

import pytest
from conftest import PROJECT

# In a process of its own: every socket that Python opens is noted with where to, and those of other machines fail.
GUARDED = """
import contextlib, io, ipaddress, json, sys
opened = []
def guard(event, given):
    if event in ("socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"):
        place = given[0] if event.startswith("socket.get") else given[1]
        host = str(place[0] if isinstance(place, tuple) else place or "")
        if not host.startswith(("127.", "::1", "localhost", "/", "b'", "\\0")):
            opened.append(f"{event} {host}")
            raise PermissionError(opened[-1])
sys.addaudithook(guard)
from workbench.cli.main import main
for command in json.loads(sys.argv[1]):
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            status = main(command)
        except SystemExit as ended:
            status = ended.code
    print(json.dumps([command, status, said.getvalue()[-300:], opened]), flush=True)
    opened.clear()
"""
COMMANDS = [
    ["open", "sample"],
    ["summary", "sample"],
    ["check", "sample"],
    ["watch", "sample"],
    ["runs"],
    [],
    ["trace", "sample", "0"],
    ["plan", "arte-demo"],
    ["study"],
    ["study", "goodhart"],
    ["export", "sample"],
    ["restore", "sample"],
    ["doctor"],
]
# These say that they cannot, in words: no such row, no models in the sample, nothing moved aside.
REFUSED = ("trace", "export", "restore")


def guarded(commands: list, tmp_path, then: str = "") -> list:
    environment = os.environ | {"WORKBENCH_RUNS": str(tmp_path / "runs"), "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-c", GUARDED + then, json.dumps(commands)]
    done = subprocess.run(command, cwd=PROJECT, env=environment, text=True, capture_output=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_no_command_opens_anything_but_loopback(tmp_path):
    for command, status, said, opened in guarded(COMMANDS, tmp_path):
        assert status == 0 or (command[0] in REFUSED and said.startswith("workbench: ")), (command, status, said)
        assert not opened, (command, opened)


@pytest.mark.parametrize("place", ["192.0.2.1", "example.invalid"])
def test_the_guard_sees_a_connection(tmp_path, place):
    tries = (
        f"import socket\nwith contextlib.suppress(PermissionError):\n    socket.create_connection(({place!r}, 9), 1)\n"
    )
    ((said,),) = guarded([], tmp_path, f"{tries}print(json.dumps([opened]))")
    assert any(place in one for one in said)
