"""Script that shuts a program in before its first instruction.

It is started by `poise.tasks.sandbox` in a process of its own, with the standard library alone. Every wall stands
before the program begins, and whatever cannot be put up ends the launcher with a sentence instead.

    launcher      new user, mount, pid, network, IPC and host name namespaces; waits
      init        process 1 of the new pid namespace: puts up the rest, watches time and memory, and when the program
                  ends, the kernel ends whatever it left behind
        program   limits, no capability, few system calls; then it becomes Python

What init sees is written as lines of JSON to a pipe that the program does not have.
"""

import ctypes
import errno
import json
import os
import platform
import resource
import signal
import struct
import sys
import time
from typing import Any

CLONE_NEW = {"mnt": 0x00020000, "uts": 0x04000000, "ipc": 0x08000000, "user": 0x10000000, "pid": 0x20000000}
CLONE_NEW |= {"net": 0x40000000}
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
MNT_DETACH = 2
AT_FDCWD, AT_RECURSIVE, MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID = -100, 0x8000, 1, 2
SYS_MOUNT_SETATTR = 442  # the same everywhere
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_CAPBSET_DROP, PR_SET_SECUREBITS, PR_SET_NO_NEW_PRIVS = 1, 22, 24, 28, 38
SECUREBITS_NO_ROOT = 0x2F  # the number 0 gives no capability, for good
TICK, LONGEST_TICK = 0.02, 0.1
"""Seconds between two looks of init, and what a late one counts for at most."""
PROGRAM_UID = 1
"""The program's user inside, where the launcher's is root; root is bound by no number of processes."""

# Audit number of the architecture, and the numbers of system calls that a program for a test has no need of: memory and
# keys that outlive or pass by a process' limits, other processes' insides, namespaces, and ways around this filter.
DENIED = {
    "x86_64": (
        0xC000003E,
        {"socket": 41},
        [29, 30, 64, 68, 101, 155, 161, 165, 166, 240, 246, 248, 249, 250, 272, 298, 304, 308, 310, 311, 319, 321, 323],
    ),
    "aarch64": (
        0xC00000B7,
        {"socket": 198},
        [194, 196, 190, 186, 117, 41, 51, 40, 39, 180, 104, 217, 218, 219, 97, 241, 265, 268, 270, 271, 279, 280, 282],
    ),
}
"""shmget, shmat, semget, msgget, ptrace, pivot_root, chroot, mount, umount2, mq_open, kexec_load, add_key, request_key,
keyctl, unshare, perf_event_open, open_by_handle_at, setns, process_vm_readv, process_vm_writev, memfd_create, bpf,
userfaultfd; with the same number everywhere, from io_uring on, and the new calls for mounts."""
DENIED_EVERYWHERE = [425, 426, 427, 428, 429, 430, 431, 432, 433, 438, 442, 447]
SOCKET_FAMILIES = [1, 2, 10]
"""Unix, IPv4 and IPv6: those that a network namespace holds in."""

CONTAINERS = "Docker: --security-opt seccomp=unconfined; Ubuntu: sysctl kernel.apparmor_restrict_unprivileged_userns=0"
HINTS = {
    ("unshare", errno.EPERM): f" (new user namespaces are forbidden; {CONTAINERS})",
    ("mount", errno.EPERM): f" (mounts are forbidden in new user namespaces; {CONTAINERS})",
}
"""What helps, by what fails."""
COVERED_PROC = (
    "a new /proc cannot be mounted, because this container covers parts of its own: start it with all of /proc open "
    "(Docker and Podman: --security-opt systempaths=unconfined or unmask=ALL; Kubernetes: procMount: Unmasked)"
)

libc = ctypes.CDLL(None, use_errno=True)


class WallError(Exception):
    """Something that isolation needs cannot be had."""


def called(name: str, *arguments: Any) -> None:
    """Call a function of libc; what fails ends the launcher."""
    if getattr(libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise WallError(f"{name} is not allowed here: {os.strerror(number)}{HINTS.get((name, number), '')}")


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    """mount(2)."""
    called("mount", source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode())


def make_read_only(path: str) -> None:
    """Let nobody write below a mount, nor any file there lend its owner's rights."""
    attributes = struct.pack("QQQQ", MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID, 0, 0, 0)
    called("syscall", SYS_MOUNT_SETATTR, AT_FDCWD, path.encode(), AT_RECURSIVE, attributes, len(attributes))


def enter_namespaces(*, is_root: bool) -> None:
    """New namespaces of every kind, in which the launcher is root and, outside, who it was."""
    uid, gid, launcher = os.geteuid(), os.getegid(), os.getpid()
    reading, writing = os.pipe()
    helper = os.fork()
    if helper == 0:  # maps are written from outside
        os.close(writing)
        if not os.read(reading, 1):
            os._exit(1)  # there is nothing to write them for
        # The machine's root maps one more user, a number that no account and no other sandbox has.
        other = "" if not is_root else f"\n{PROGRAM_UID} {0x70000000 + launcher} 1"
        try:
            for name, text in (
                ("setgroups", "deny"),
                ("uid_map", f"0 {uid} 1{other}"),
                ("gid_map", f"0 {gid} 1{other}"),
            ):
                with open(f"/proc/{launcher}/{name}", "w") as file:
                    file.write(text)
        except OSError:
            os._exit(1)
        os._exit(0)
    called("unshare", sum(CLONE_NEW.values()))
    os.write(writing, b"x")
    if os.waitpid(helper, 0)[1] != 0:
        raise WallError("the map of users cannot be written")
    os.close(reading)
    os.close(writing)


def enter_root(job: dict[str, Any]) -> None:
    """A file system with the system's programs, read-only, and one small writable folder, /box."""
    mount("none", "/", "", MS_REC | MS_PRIVATE)
    mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
    os.mkdir("/tmp/old")
    called("pivot_root", b"/tmp", b"/tmp/old")
    os.chdir("/")
    for name in ("box", "dev", "proc"):
        os.mkdir(f"/{name}")
    for path in [*job["system"], *(f"/dev/{name}" for name in ("null", "zero", "random", "urandom"))]:
        show(path, path)
    for source, path in job["shown"]:
        show(source, path)
    if not os.path.lexists(job["python"]):
        os.makedirs(os.path.dirname(job["python"]), exist_ok=True)
        os.symlink(job["interpreter"], job["python"])
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        os.symlink(f"/proc/self/fd/{number}", f"/dev/{name}")
    try:  # while the old one is in sight: else the kernel refuses
        mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV)
    except WallError as error:
        raise WallError(COVERED_PROC) from error
    with open("/proc/sys/user/max_user_namespaces", "w") as file:
        file.write("0")
    make_read_only("/proc")
    called("umount2", b"/old", MNT_DETACH)
    os.rmdir("/old")
    make_read_only("/")
    box = f"size={job['file_bytes']},mode=777,nr_inodes=4096"
    mount("tmpfs", "/box", "tmpfs", MS_NOSUID | MS_NODEV, box)
    os.chdir("/box")


def show(source: str, path: str) -> None:
    """A file or folder of the old root at a place in the new one; the system's links stay links."""
    old = f"/old{source}"
    if os.path.islink(old):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.symlink(os.readlink(old), path)
        return
    if not os.path.exists(old):
        return
    if os.path.isdir(old):
        os.makedirs(path, exist_ok=True)
    elif not os.path.exists(path):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w"):
            pass
    mount(old, path, "", MS_BIND | MS_REC)


def give_up_everything(job: dict[str, Any]) -> None:
    """Limits of every kind; no capability now or ever; no system call that goes around the walls."""
    for name, both in job["limits"].items():
        resource.setrlimit(getattr(resource, name), tuple(both))
    for capability in range(64):
        if libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
            break  # the kernel has no more of them
    called("prctl", PR_SET_SECUREBITS, SECUREBITS_NO_ROOT, 0, 0, 0)
    if job["is_root"]:
        os.setresgid(PROGRAM_UID, PROGRAM_UID, PROGRAM_UID)
        os.setresuid(PROGRAM_UID, PROGRAM_UID, PROGRAM_UID)
    called("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    deny_system_calls()


def deny_system_calls() -> None:
    """Let denied system calls fail with "not permitted", by a filter in classic BPF."""
    audit, named, numbers = DENIED[platform.machine()]
    load, equal, at_least, give_back = 0x20, 0x15, 0x35, 0x06
    allow, fail, kill = 0x7FFF0000, 0x00050000 | 1, 0x80000000

    def step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
        return struct.pack("HBBI", code, if_true, if_false, value)

    denied = [*numbers, *DENIED_EVERYWHERE]
    steps = [step(load, 4), step(equal, audit, 1, 0), step(give_back, kill)]
    steps += [step(load, 0), step(at_least, 0x40000000, 0, 1), step(give_back, kill)]  # another table of numbers
    for number in denied:
        steps += [step(equal, number, 0, 1), step(give_back, fail)]
    families = [step(equal, family, len(SOCKET_FAMILIES) - place, 0) for place, family in enumerate(SOCKET_FAMILIES)]
    steps += [step(equal, named["socket"], 0, len(families) + 2), step(load, 16), *families]
    steps += [step(give_back, fail), step(give_back, allow)]
    code = ctypes.create_string_buffer(b"".join(steps))

    class Filter(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.c_void_p))

    filter_ = Filter(len(steps), ctypes.cast(code, ctypes.c_void_p))
    called("prctl", PR_SET_SECCOMP, 2, ctypes.byref(filter_), 0, 0)


def run_as_init(job: dict[str, Any], program: bytes, status: int) -> None:
    """Process 1: builds the root, lets the program run, and says how it ended."""
    called("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # what init does not handle, nobody inside can send it
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])  # waited for below
    enter_root(job)
    hide_command_line()
    with open("/box/program.py", "wb") as file:
        file.write(program)
    os.chmod("/box/program.py", 0o644)
    reading, writing = os.pipe()  # closed when the program begins; a sentence comes before if it cannot
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
            give_up_everything(job)
            os.execve(job["python"], [job["python"], "-s", "-P", "-B", "program.py"], job["environment"])
        except BaseException as error:
            os.write(writing, str(error).encode())
            os._exit(1)
    os.close(writing)
    if sentence := os.read(reading, 1000):
        raise WallError(sentence.decode())
    report(status, started=True)
    watch(child, status, job["memory"])


def hide_command_line() -> None:
    """Empty what the program could read in /proc/1/cmdline."""
    with open("/proc/self/stat") as file:
        start, end = map(int, file.read().rpartition(")")[2].split()[45:47])
    ctypes.memset(start, 0, end - start)


def watch(child: int, status: int, memory: int) -> None:
    """Report the seconds that are spent inside until the program ends or uses too much memory.

    A second is spent where some process computes for one, or where all of them sleep for one. One that could compute
    and does not get its turn spends nothing.
    """
    spent, earlier, looked = 0.0, 0.0, time.monotonic()
    while True:
        if signal.sigtimedwait([signal.SIGCHLD], TICK):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == child:
                    report(status, exit_code=os.waitstatus_to_exitcode(ended[1]))
                    os._exit(0)
        now = time.monotonic()
        computed, waits, resident = usage()
        spent += max(computed - earlier, min(now - looked, LONGEST_TICK) if waits else 0.0)
        earlier, looked = max(computed, earlier), now
        report(status, spent=spent)
        if resident > memory and proportional() > memory:
            report(status, exit_code=-signal.SIGKILL)
            os._exit(0)


def usage() -> tuple[float, bool, int]:
    """Seconds that everything inside has computed, whether all of it sleeps, and bytes in memory, shared ones anew for
    each process."""
    done = resource.getrusage(resource.RUSAGE_CHILDREN)
    ticks, waits, pages = 0, True, 0
    for pid in inside():
        try:
            fields = stat(f"/proc/{pid}/stat")
            ticks += sum(map(int, fields[11:15]))
            pages += int(fields[21])
            threads = os.listdir(f"/proc/{pid}/task") if int(fields[17]) > 1 else []
            states = [fields[0], *(stat(f"/proc/{pid}/task/{each}/stat")[0] for each in threads)]
            waits &= "R" not in states
        except OSError:
            continue  # it has just ended
    computed = done.ru_utime + done.ru_stime + ticks / os.sysconf("SC_CLK_TCK")
    return computed, waits, pages * resource.getpagesize()


def stat(path: str) -> list[str]:
    """The fields of a stat file, from the state on."""
    with open(path) as file:
        return file.read().rpartition(")")[2].split()


def inside() -> list[str]:
    """The numbers of all processes but init."""
    return [name for name in os.listdir("/proc") if name.isdigit() and name != "1"]


def proportional() -> int:
    """Bytes in memory, shared ones once."""
    total = 0
    for pid in inside():
        try:
            with open(f"/proc/{pid}/smaps_rollup") as file:
                total += sum(1024 * int(line.split()[1]) for line in file if line.startswith("Pss:"))
        except OSError:
            continue
    return total


def report(status: int, **facts: Any) -> None:
    """One line for whoever started the launcher."""
    os.write(status, (json.dumps(facts) + "\n").encode())


def main() -> None:
    """Run the job that a file describes; the argument is its number."""
    with open(int(sys.argv[1])) as file:
        job = json.load(file)
    status = job["status"]
    os.set_inheritable(status, False)
    try:
        called("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != job["parent"]:
            raise WallError("whoever wanted it is gone")
        if platform.machine() not in DENIED:
            raise WallError(f"system calls of {platform.machine()} are not known")
        with open(job["program"], "rb") as file:
            program = file.read()
        with open("/proc/self/oom_score_adj", "w") as file:  # where memory runs out, the trainer is not what must go
            file.write("1000")
        if job["is_root"]:
            os.setgroups([])
        enter_namespaces(is_root=job["is_root"])
        init = os.fork()
        if init == 0:
            run_as_init(job, program, status)
        # Killing the launcher kills init, too; asked to end, it waits until nothing is left inside.
        signal.signal(signal.SIGTERM, lambda number, frame: os.kill(init, signal.SIGKILL))
        os.waitpid(init, 0)
    except (WallError, OSError, ValueError) as error:
        report(status, wall=str(error))
    os._exit(0)


if __name__ == "__main__":
    main()
