"""What does a Python program print that nobody trusts?

The rule: it runs in a process of its own behind the walls of `poise.tasks.sandbox_launcher` (no network, no file of
this machine but the system's programs, no environment, no other process in sight) and within limits, or not at all.
What it prints is all that comes back; whoever judges it does so out here, where the program has no hand.

What a program can take is bounded: memory by `mebibytes` times `processes`, files by `file_mebibytes` in all.
"""

import functools
import json
import math
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MOST_INPUT_BYTES = 64 * 2**20

ENVIRONMENT = {
    "HOME": "/box",
    "TMPDIR": "/box",
    "PATH": "/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",  # the same program prints the same sets every time
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
"""All that a program finds in its environment."""

SYSTEM_FOLDERS = ("/usr", "/bin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache", "/etc/alternatives")


class IsolationError(Exception):
    """Untrusted programs cannot be shut in on this machine; the message says why."""


@dataclass(frozen=True)
class Limits:
    """What a program may take: seconds on the clock, memory a process, processes and threads, files, output."""

    seconds: float = 5.0
    mebibytes: int = 512
    processes: int = 8
    file_mebibytes: int = 16
    output_bytes: int = 2**20


@dataclass(frozen=True)
class ProgramRun:
    """How a run ended: "" where the program ended by itself without an error, else "program failed", "program timed
    out" or "program printed too much"; and what it printed until then."""

    output: bytes
    cause: str = ""


def program_run(program: str, stdin: str = "", *, limits: Limits) -> ProgramRun:
    """Run a Python program behind walls.

    Args:
        program: Its text; the interpreter and the packages are those of this process.
        stdin: What it reads.
        limits: What it may take.

    Raises:
        IsolationError: If the walls cannot be put up here.
    """
    if sys.platform != "linux":
        raise IsolationError(f"programs are shut in by namespaces of Linux, and this is {sys.platform}")
    files = [_sealed_file(text) for text in (program, stdin)]
    status, writing = os.pipe()
    job = _job(limits, program=files[0], status=writing)
    launcher = Path(__file__).with_name("sandbox_launcher.py")
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(launcher), json.dumps(job)],
            stdin=files[1],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=(files[0], writing),
            env={},
            start_new_session=True,
        )
        os.close(writing)
        output, cause = _output_within(process, limits)
        facts = _facts(status)
    finally:
        for descriptor in (*files, status):
            os.close(descriptor)
    if "started" not in facts and not cause:
        raise IsolationError(facts.get("wall", "the launcher of programs was killed"))
    if not cause and facts.get("exit_code") != 0:
        cause = "program failed"
    return ProgramRun(output, cause)


@functools.cache
def isolation_fault() -> str | None:
    """Why no program can be run behind walls on this machine; None if it can."""
    try:
        run = program_run("print('here')", limits=Limits(seconds=60.0))
    except IsolationError as error:
        return str(error)
    return None if run.output == b"here\n" else f"a program that prints a word ended with {run.cause or run.output!r}"


def _job(limits: Limits, *, program: int, status: int) -> dict[str, Any]:
    """What the launcher is told."""
    file_bytes = limits.file_mebibytes * 2**20
    # Root of a container without the machine's own users is an ordinary user in this.
    is_root = os.geteuid() == 0 and Path("/proc/self/uid_map").read_text().split() == ["0", "0", str(2**32 - 1)]
    own = [str(Path(prefix)) for prefix in dict.fromkeys((sys.prefix, sys.base_prefix))]
    return {
        "program": program,
        "status": status,
        "parent": os.getpid(),
        "is_root": is_root,
        "python": sys.executable,
        "environment": ENVIRONMENT,
        "shown": [*SYSTEM_FOLDERS, *(path for path in own if not path.startswith("/usr/"))],
        "file_bytes": file_bytes,
        "limits": {
            "RLIMIT_AS": limits.mebibytes * 2**20,
            "RLIMIT_NPROC": limits.processes + (0 if is_root else 2),  # the launcher and init are the user's, too
            "RLIMIT_FSIZE": file_bytes,
            "RLIMIT_CPU": math.ceil(limits.seconds * limits.processes) + 1,
            "RLIMIT_NOFILE": 64,
            "RLIMIT_CORE": 0,
        },
    }


def _sealed_file(text: str) -> int:
    """A file without a name that nobody can change, at its beginning."""
    import fcntl

    descriptor = os.memfd_create("poise", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with open(descriptor, "wb", closefd=False) as file:
        file.write(text.encode(errors="replace"))
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _output_within(process: "subprocess.Popen[bytes]", limits: Limits) -> tuple[bytes, str]:
    """What comes out until the end, and which limit was the end, if any; the process is gone afterwards."""
    assert process.stdout is not None
    deadline = time.monotonic() + limits.seconds
    output, cause = bytearray(), ""
    with selectors.DefaultSelector() as selector, process.stdout as stdout:
        selector.register(stdout, selectors.EVENT_READ)
        while not cause:
            left = deadline - time.monotonic()
            if left <= 0 or not selector.select(left):
                cause = "program timed out"
            elif not (piece := os.read(stdout.fileno(), 2**16)):
                break
            else:
                output += piece
                if len(output) > limits.output_bytes:
                    cause = "program printed too much"
        try:
            process.wait(max(0.0, deadline - time.monotonic()) if not cause else 0)
        except subprocess.TimeoutExpired:
            cause = cause or "program timed out"
            process.terminate()  # the launcher ends when everything inside has
            process.wait()
    return bytes(output[: limits.output_bytes]), cause


def _facts(status: int) -> Mapping[str, Any]:
    """What the launcher reported; it is gone, so that nothing more will come."""
    facts: dict[str, Any] = {}
    with open(status, "rb", closefd=False) as file:
        for line in file:
            facts |= json.loads(line)
    return facts
