"""Hostile programs are held in, as root and as an ordinary user, and leave nothing behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import uuid
from pathlib import Path

import pytest

from poise.tasks import sandbox
from poise.tasks.sandbox import IsolationError, Limits, ProgramRun, isolation_fault, program_run

QUICK = Limits(seconds=20.0)


def run(program: str, stdin: str = "", *, limits: Limits = QUICK) -> ProgramRun:
    return program_run(textwrap.dedent(program), stdin, limits=limits)


def printed(program: str) -> list[str]:
    """Lines of a program that must end by itself, without an error."""
    found = run(program)
    assert found.cause == "", found
    return found.output.decode().splitlines()


def processes_named(token: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and token in (entry / "cmdline").read_text():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def test_this_machine_can_isolate():
    # Not skipped where it cannot: what follows would say nothing.
    assert isolation_fault() is None


def test_a_program_reads_and_prints():
    assert run("print(sum(map(int, input().split())))", "1 2 3\n") == ProgramRun(b"6\n")
    assert run("import numpy; print(numpy.arange(4).sum())") == ProgramRun(b"6\n")


@pytest.mark.parametrize("program", ["1 / 0", "import sys; sys.exit(3)", "x = (", "import os; os.abort()"])
def test_a_program_that_fails_is_told(program: str):
    assert run(f"print('x', flush=True)\n{program}").cause == "program failed"


# Limits.


@pytest.mark.parametrize(
    "program",
    [
        "while True: pass",
        "import time; time.sleep(100)",
        "import os, time; os.close(1); time.sleep(100)",
        "import signal, time\nfor s in range(1, 32):\n  if s not in (9, 19): signal.signal(s, 1)\ntime.sleep(100)",
    ],
)
def test_a_program_that_does_not_end_is_ended(program: str):
    found = run(f"print('begun', flush=True)\n{program}", limits=Limits(seconds=1.5))
    assert found == ProgramRun(b"begun\n", "program timed out")


def test_endless_output_is_cut():
    found = run("while True: print('x' * 1000)", limits=Limits(seconds=20.0, output_bytes=5000))
    assert found.cause == "program printed too much"
    assert len(found.output) == 5000


def test_a_memory_bomb_goes_off_alone():
    assert run("kept = []\nwhile True: kept.append(bytearray(2**24))").cause == "program failed"
    inside = printed("try: bytearray(2**30)\nexcept MemoryError: print('refused')\nprint(len(bytearray(2**26)))")
    assert inside == ["refused", str(2**26)]


def test_a_fork_bomb_runs_out_of_processes():
    started = int(
        printed(
            """
            import os, time
            started = 0
            try:
                while True:
                    if os.fork() == 0:
                        time.sleep(100)
                    started += 1
            except OSError:
                print(started)
            """
        )[0]
    )
    assert 0 < started <= QUICK.processes
    # Processes that fork for ever, too, end with the program.
    assert run(
        """
        import os
        while True:
            try: os.fork()
            except OSError: pass
        """,
        limits=Limits(seconds=1.5),
    ) == ProgramRun(b"", "program timed out")


def test_files_are_small_few_and_in_one_folder():
    assert run("with open('big', 'wb') as f:\n  while True: f.write(bytes(2**20))").cause == "program failed"
    lines = printed(
        """
        kept = 0
        try:
            while True:
                with open(f"file{kept}", "wb") as f: f.write(bytes(2**20))
                kept += 1
        except OSError as error: print(kept, error.strerror)
        """
    )
    kept, what = lines[0].split(maxsplit=1)
    assert what == "No space left on device"
    assert 0 < int(kept) <= QUICK.file_mebibytes


# Walls.


def test_nothing_can_be_written_outside_the_folder(tmp_path: Path):
    places = [
        "/",
        "/usr",
        "/etc",
        "/proc",
        "/dev",
        sys.prefix,
        sys.base_prefix,
        str(tmp_path),
        "/tmp",
        str(Path.home()),
    ]
    lines = printed(
        f"""
        import os
        for place in {places!r}:
            try:
                open(os.path.join(place, "poise-was-here"), "w")
                print("wrote", place)
            except OSError: pass
        open("poise-was-here", "w").write("x")
        print(os.getcwd(), os.environ["HOME"], os.listdir())
        """
    )
    assert lines[:-1] == []
    assert lines[-1].startswith("/box /box ")
    assert not any((Path(place) / "poise-was-here").exists() for place in places)


def test_what_is_not_the_system_s_cannot_be_read(tmp_path: Path):
    secret = tmp_path / "secret"
    secret.write_text("here")
    paths = [str(secret), __file__, sandbox.__file__, "/etc/passwd", "/etc/shadow", "/proc/1/environ", "/proc/1/mem"]
    lines = printed(
        f"""
        for path in {paths!r}:
            try: print("read", path, open(path, "rb").read(1))
            except OSError: pass
        """
    )
    assert lines == []


def test_the_environment_is_not_the_trainer_s(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    (line,) = printed("import os, json; print(json.dumps(dict(os.environ)))")
    assert json.loads(line) == sandbox.ENVIRONMENT


def test_there_is_no_network():
    lines = printed(
        """
        import socket
        families = {"ip": 2, "ipv6": 10, "netlink": 16, "packet": 17, "crypto": 38, "vsock": 40}
        for name, family in families.items():
            try:
                with socket.socket(family, socket.SOCK_STREAM if family in (2, 10, 40) else socket.SOCK_DGRAM) as s:
                    s.settimeout(5)
                    s.connect({2: ("127.0.0.1", 22), 10: ("::1", 22)}.get(family))
                    print("connected", name)
            except OSError as error: print(name, error.strerror)
        """
    )
    assert [line.split(maxsplit=1)[0] for line in lines] == ["ip", "ipv6", "netlink", "packet", "crypto", "vsock"]
    assert all("unreachable" in line or "Cannot assign" in line for line in lines[:2])
    assert all("not permitted" in line for line in lines[2:])
    # Loopback is all there is, and it is down.
    assert printed("print([line.split()[0] for line in open('/proc/net/dev')][2:])") == ["['lo:']"]


def test_a_program_has_no_rights_and_can_get_none():
    lines = printed(
        """
        import ctypes, os
        libc = ctypes.CDLL(None, use_errno=True)
        status = dict(line.split(":") for line in open("/proc/self/status"))
        print(*[status[f"Cap{name}"].strip() for name in ("Inh", "Prm", "Eff", "Bnd", "Amb")])
        print(status["NoNewPrivs"].strip(), status["Seccomp"].strip())
        print(libc.unshare(0x10000000), libc.mount(b"none", b"/box", b"tmpfs", 0, 0), libc.memfd_create(b"x", 0))
        print(libc.shmget(0, 2**30, 0o600), libc.ptrace(16, 1, 0, 0))
        try: open("/proc/sys/user/max_user_namespaces", "w")
        except OSError as error: print(error.strerror)
        """
    )
    assert lines == [" ".join(["0" * 16] * 5), "1 2", "-1 -1 -1", "-1 -1", "Read-only file system"]


def test_a_new_user_namespace_is_refused_to_clone_as_well():
    number = {"x86_64": 56, "aarch64": 220}[os.uname().machine]
    lines = printed(
        f"""
        import ctypes, os
        libc = ctypes.CDLL(None, use_errno=True)
        pid = libc.syscall({number}, 0x10000000 | 17, 0, 0, 0, 0)
        if pid == 0: os._exit(0)
        print(pid)
        """
    )
    assert lines == ["-1"]


def test_no_process_outside_can_be_seen_or_killed():
    me = os.getpid()
    lines = printed(
        f"""
        import os, signal
        print(sorted(int(name) for name in os.listdir("/proc") if name.isdigit()))
        for pid in (1, os.getppid(), {me}):
            for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                try: os.kill(pid, number)
                except OSError: pass
        try: os.kill(-1, signal.SIGKILL)
        except OSError: pass
        print("still here")
        """
    )
    assert lines == ["[1, 2]", "still here"]


def test_input_cannot_be_changed_nor_handles_be_found():
    found = run(
        """
        import os
        for how in (lambda: os.write(0, b"x"), lambda: open("/proc/self/fd/0", "w").write("x")):
            try: how(); print("written")
            except OSError: pass
        print([number for number in range(64) if os.path.exists(f"/proc/self/fd/{number}")], input())
        """,
        "hello",
    )
    assert found == ProgramRun(b"[0, 1, 2] hello\n")


def test_nothing_outlives_the_program():
    token = uuid.uuid4().hex
    program = f"""
        import os, sys, time
        if os.fork() == 0:
            os.setsid()
            os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(100)", "{token}"])
        while b"{token}" not in open("/proc/3/cmdline", "rb").read():
            time.sleep(0.01)
        print("child is there", flush=True)
    """
    assert run(program) == ProgramRun(b"child is there\n")
    assert processes_named(token) == []
    assert run(program + "    time.sleep(100)", limits=Limits(seconds=2.0)).cause == "program timed out"
    assert processes_named(token) == []


def test_nothing_outlives_a_grader_that_is_killed(tmp_path: Path):
    token = uuid.uuid4().hex
    program = f"import os, sys; os.execv(sys.executable, [sys.executable, '-c', 'while True: pass', '{token}'])"
    script = f"from poise.tasks.sandbox import *\nprogram_run({program!r}, limits=Limits(seconds=60.0))"
    grader = subprocess.Popen([sys.executable, "-c", script])
    deadline = time.monotonic() + 60
    while not [pid for pid in processes_named(token) if pid != grader.pid] and time.monotonic() < deadline:
        time.sleep(0.05)
    inside = [pid for pid in processes_named("while True: pass") if token in Path(f"/proc/{pid}/cmdline").read_text()]
    assert len(inside) >= 1  # the control: it does run
    grader.send_signal(signal.SIGKILL)
    grader.wait()
    while processes_named(token) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes_named(token) == []


def test_an_ordinary_user_has_the_same_walls():
    unshare = shutil.which("unshare")
    assert unshare is not None
    script = """
import os
from poise.tasks.sandbox import *
assert os.geteuid() == 1000 and "CapEff:\\t0000000000000000" in open("/proc/self/status").read()
program = '''
import os
status = dict(line.split(":") for line in open("/proc/self/status"))
print(status["CapEff"].strip(), status["CapBnd"].strip(), sorted(p for p in os.listdir("/proc") if p.isdigit()))
try: open("/usr/poise-was-here", "w")
except OSError as error: print(error.strerror)
try: os.setuid(1)
except OSError as error: print(error.strerror)
'''
print(program_run(program, limits=Limits(seconds=20.0)).output.decode(), end="")
"""
    as_user = [unshare, "--user", "--map-user=1000", "--map-group=1000"]
    done = subprocess.run([*as_user, sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == [
        f"{'0' * 16} {'0' * 16} ['1', '2']",
        "Read-only file system",
        "Invalid argument",
    ], done.stderr


def test_memory_is_limited_in_all_and_not_by_process():
    hungry = "import os, time\nif os.fork() or os.fork():\n  kept = bytearray(300 * 2**20)\ntime.sleep(60)"
    assert run(hungry).cause == "program failed"
    shared = "import mmap\nkept = [mmap.mmap(-1, 2**27) for _ in range(8)]\nfor each in kept: each.write(bytes(2**27))"
    assert run(shared).cause == "program failed"
    # What processes share counts once.
    together = (
        "import os, time\nkept = bytearray(300 * 2**20)\nfor _ in range(4):\n  if os.fork() == 0: time.sleep(0.3)"
    )
    assert run(together).cause == ""


def test_the_clock_stands_still_while_the_machine_is_busy():
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4 * (os.cpu_count() or 1))]
    try:
        program = "import time\nwhile time.process_time() < 1.0: pass\nprint('done')"
        assert run(program, limits=Limits(seconds=1.7)) == ProgramRun(b"done\n")
    finally:
        for process in busy:
            process.kill()
            process.wait()


def test_the_launcher_says_nothing_of_itself():
    lines = printed(
        "print(repr(open('/proc/1/cmdline').read().strip(chr(0))), len(open('/proc/2/cmdline').read()) > 0)"
    )
    assert lines == ["'' True"]


@pytest.mark.parametrize("linked", [False, True])
def test_an_environment_in_a_project_s_folder_shows_packages_alone(tmp_path: Path, linked: bool):
    project = tmp_path / "project"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(project)], check=True)
    (project / "answers.jsonl").write_text("gold")
    (packages,) = project.glob("lib/python*/site-packages")
    (packages / "package_of_mine.py").write_text("here = 'package'")
    if linked:  # as homes on clusters
        (tmp_path / "home").symlink_to(tmp_path)
        project = tmp_path / "home" / "project"
    program = "import os, sys, package_of_mine as p\nprint(p.here, sys.prefix, *sorted(os.listdir(sys.prefix)))"
    script = f"import sandbox as s\nprint(s.program_run({program!r}, limits=s.Limits(seconds=20.0)))"
    alone = {"PYTHONPATH": str(Path(sandbox.__file__).parent)}  # without the packages that poise needs
    python = [project / "bin" / "python", "-c", script]
    done = subprocess.run(python, env=alone, capture_output=True, text=True, check=False)
    there = f"package {project} bin lib pyvenv.cfg\n".encode()
    assert done.stdout == f"{ProgramRun(there)}\n", done.stderr


# Where there are no walls, nothing runs.


def test_where_proc_is_partly_covered_the_sentence_says_what_is_needed():
    script = "from poise.tasks.sandbox import *\nprint(isolation_fault())"
    covered = f"mount --bind /dev/null /proc/meminfo && exec {sys.executable} -c '{script}'"
    as_container = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", covered]
    done = subprocess.run(as_container, capture_output=True, text=True, check=False)
    assert "--security-opt systempaths=unconfined" in done.stdout, done.stderr


def test_without_namespaces_a_program_does_not_run(tmp_path: Path):
    script = """
import os, resource
from poise.tasks.sandbox import *
open("/proc/sys/user/max_user_namespaces", "w").write("0")
try:
    print(program_run("print('ran')", limits=Limits(seconds=20.0)))
except IsolationError as error:
    print(error)
print(isolation_fault())
"""
    # Inside a namespace that allows no further ones.
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines() == ["unshare is not allowed here: No space left on device"] * 2, done.stderr


def test_on_other_systems_nothing_runs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sandbox.sys, "platform", "darwin")
    with pytest.raises(IsolationError, match="programs are shut in by namespaces of Linux, and this is darwin"):
        program_run("print(1)", limits=QUICK)
