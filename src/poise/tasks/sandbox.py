"""Runs of Python programs that nobody trusts.

A program runs in a process of its own behind the walls of `poise.tasks.sandbox_launcher` (no network, no file of this
machine but the system's programs and Python's packages, no environment, no other process in sight) and within limits,
or not at all. What it prints is all that comes back; whoever judges it does so out here, where the program has no hand.

Time is what a program computes or waits for: while it is ready to compute and the machine is busy with something else,
its clock stands still. Memory is what all its processes use together; what they only reserve is theirs.
"""

import functools
import json
import math
import os
import selectors
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
SECONDS_TO_BEGIN = 120.0
"""On the clock; a program that has not begun by then has not been tried."""
MOST_WAITING, LONGEST_RUN = 10, 600.0
"""How many times longer than its limit of seconds a program may take on the clock, on a machine that is busy; and the
most seconds."""
RESERVED = 8
"""How many times as much memory as it may use a process may reserve."""

Judge = Callable[[bytearray, float], str | None]
"""Told what a program has printed, of which it may take parts away, and how many seconds it has spent; what it gives
but None ends the run, with that as its cause."""


class IsolationError(Exception):
    """Untrusted programs cannot be shut in on this machine; the message says why."""


class NotBegunError(Exception):
    """The machine did not bring a program to its beginning, so that nothing can be said about it."""


@dataclass(frozen=True)
class Limits:
    """What a program may take: seconds that it computes or waits, memory in all, processes and threads, files,
    output."""

    seconds: float = 5.0
    mebibytes: int = 512
    processes: int = 8
    file_mebibytes: int = 16
    output_bytes: int = 2**20


@dataclass(frozen=True)
class ProgramRun:
    """How a run ended: "" where the program ended by itself without an error, else "program failed", "program timed
    out", "program printed too much" or what the judge said; and what it printed until then."""

    output: bytes
    cause: str = ""


def program_run(program: str, stdin: str = "", *, limits: Limits, judge: Judge | None = None) -> ProgramRun:
    """Run a Python program behind walls.

    Args:
        program: Its text; the interpreter and the packages are those of this process.
        stdin: What it reads.
        limits: What it may take.
        judge: Ends the run early.

    Raises:
        IsolationError: If the walls cannot be put up here.
        NotBegunError: If the machine is too busy for its beginning.
    """
    if sys.platform != "linux":
        raise IsolationError(f"programs are shut in by namespaces of Linux, and this is {sys.platform}")
    files = [_sealed_file(text) for text in (program, stdin)]
    status, writing = os.pipe()
    files.append(_sealed_file(json.dumps(_job(limits, program=files[0], status=writing))))
    launcher = Path(__file__).with_name("sandbox_launcher.py")
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(launcher), str(files[2])],
            stdin=files[1],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=(files[0], files[2], writing),
            env={},
            start_new_session=True,
        )
        os.close(writing)
        return _watched(process, status, limits, judge)
    finally:
        for descriptor in (*files, status):
            os.close(descriptor)


@functools.cache
def isolation_fault() -> str | None:
    """Why no program can be run behind walls on this machine; None if it can."""
    try:
        run = program_run("print('here')", limits=Limits(seconds=60.0))
    except (IsolationError, NotBegunError) as error:
        return str(error)
    return None if run.output == b"here\n" else f"a program that prints a word ended with {run.cause or run.output!r}"


def _job(limits: Limits, *, program: int, status: int) -> dict[str, Any]:
    """What the launcher is told."""
    file_bytes, memory = limits.file_mebibytes * 2**20, limits.mebibytes * 2**20
    # Root of a container without the machine's own users is an ordinary user in this.
    is_root = os.geteuid() == 0 and Path("/proc/self/uid_map").read_text().split() == ["0", "0", str(2**32 - 1)]
    return {
        "program": program,
        "status": status,
        "parent": os.getpid(),
        "is_root": is_root,
        "python": sys.executable,
        "interpreter": os.path.realpath(sys.executable),
        "environment": ENVIRONMENT,
        "system": SYSTEM_FOLDERS,
        "shown": list(_shown()),
        "file_bytes": file_bytes,
        "memory": memory,
        "limits": {  # soft and hard
            "RLIMIT_AS": (RESERVED * memory, RESERVED * memory),
            "RLIMIT_DATA": (memory, RESERVED * memory),
            # The launcher and init are the user's, too.
            "RLIMIT_NPROC": (limits.processes + (0 if is_root else 2),) * 2,
            "RLIMIT_FSIZE": (file_bytes, file_bytes),
            "RLIMIT_CPU": (math.ceil(limits.seconds * limits.processes) + 1,) * 2,
            "RLIMIT_NOFILE": (64, 64),
            "RLIMIT_CORE": (0, 0),
        },
    }


def _shown() -> Iterator[tuple[str, str]]:
    """Where Python's own files are, without links on the way, and where programs find them.

    Never a whole environment: one may have been made in the folder of a project, beside its data.
    """
    base = Path(sys.base_prefix)
    folders = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    files = [os.path.join(sys.prefix, "pyvenv.cfg"), *map(str, base.glob("lib/*.so*"))]
    for place in dict.fromkeys([*folders, *files, os.path.realpath(sys.executable)]):
        real = os.path.realpath(place)
        for target in dict.fromkeys([real, os.path.abspath(place)]):
            if os.path.exists(real) and not target.startswith("/usr/"):
                yield real, target


def _sealed_file(text: str) -> int:
    """A file without a name that nobody can change, at its beginning."""
    import fcntl

    descriptor = os.memfd_create("poise", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with open(descriptor, "wb", closefd=False) as file:
        file.write(text.encode(errors="replace"))
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _watched(process: "subprocess.Popen[bytes]", status: int, limits: Limits, judge: Judge | None) -> ProgramRun:
    """The run until its end or its first offence; the process is gone afterwards."""
    assert process.stdout is not None
    os.fchmod(process.stdout.fileno(), 0o622)  # a program may open /dev/stdout, too
    output, facts, reports, cause = bytearray(), {"spent": 0.0}, bytearray(), None
    deadline = time.monotonic() + SECONDS_TO_BEGIN
    with process.stdout as stdout, selectors.DefaultSelector() as selector:
        for pipe, into in ((stdout.fileno(), output), (status, reports)):
            selector.register(pipe, selectors.EVENT_READ, into)
        while cause is None and selector.get_map():
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            for key, _ in ready:
                piece = os.read(key.fd, 2**16)
                key.data.extend(piece)
                if not piece:
                    selector.unregister(key.fd)
            *lines, reports[:] = reports.split(b"\n")
            for line in lines:
                if b"started" in line:
                    deadline = time.monotonic() + min(MOST_WAITING * limits.seconds, LONGEST_RUN)
                facts |= json.loads(line)
            cause = judge(output, facts["spent"]) if judge and "started" in facts else None
            if cause is None and (facts["spent"] > limits.seconds or not ready):
                cause = "program timed out"
            if cause is None and len(output) > limits.output_bytes:
                cause = "program printed too much"
        process.terminate()  # the launcher ends when everything inside has
        process.wait()
    if "wall" in facts:
        raise IsolationError(facts["wall"])
    if "started" not in facts:
        raise NotBegunError("a program did not begin" if cause else "the launcher of programs was killed")
    if cause is None:
        cause = "" if facts.get("exit_code") == 0 else "program failed"
    return ProgramRun(bytes(output[: limits.output_bytes]), cause)
