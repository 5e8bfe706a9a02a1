"""What a hostile task tries against its neighbours, its keepers, the host and the kernel. The text of this file stands at the
top of DAGs, behind that of `probes.py`: nothing but the standard library.

`TRIES` has one attempt for each threat; what does not raise got through. `v` names the targets. An error is told by the name of
its number, `EPERM`, where it has one.
"""
# ruff: noqa: F821 - those names are of probes.py

import errno
import fcntl
import os
import resource
import signal
import socket
import struct
import subprocess

NEWUSER, TIOCSTI = 0x10000000, 0x5412


def in_a_child(call, *arguments):
    """For what cannot be undone; raises the error by its number, or what killed the child."""
    pid = os.fork()
    if pid == 0:
        code = 255
        try:
            call(*arguments)
            code = 0
        except OSError as error:
            code = error.errno
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code > 0:
        raise OSError(code, os.strerror(code))
    if code < 0:
        raise LookupError(f"killed by {signal.Signals(-code).name}")


def with_buffer(data, call):
    """`call` with the address of these bytes, to which the kernel may write."""
    buffer = ctypes.create_string_buffer(data, len(data))
    return call(ctypes.addressof(buffer))


def look(pid, fds):
    outcomes = set(look_into(pid, fds=fds).values())
    if not any(outcome.startswith("GOT") for outcome in outcomes):
        raise LookupError(" ".join(sorted(outcomes)))


def signal_by_pidfd(pid):
    pidfd = syscall(PIDFD_OPEN, pid, 0)
    signal.pidfd_send_signal(pidfd, 0)


def type_into(fd):
    try:
        fcntl.ioctl(fd, TIOCSTI, b"x")
    except OSError as error:
        if error.errno == 1:
            raise
        # Not a terminal: the call was let through to say so.


def trace_me():
    if libc.ptrace(0, 0, 0, 0) < 0:
        raise OSError(ctypes.get_errno(), "PTRACE_TRACEME")


def prctl(*numbers):
    if libc.prctl(*(ctypes.c_ulong(number) for number in (*numbers, 0, 0, 0)[:5])) < 0:
        raise OSError(ctypes.get_errno(), "prctl")


def mount(where):
    if libc.mount(b"tmpfs", where.encode(), b"tmpfs", 0, None) < 0:
        raise OSError(ctypes.get_errno(), "mount")


def x32():
    """getpid by the number that it has in the other calling convention: answered, or unknown to the kernel."""
    try:
        syscall(0x40000000 + 39)
    except OSError:
        pass


def join(namespace):
    with open(f"/proc/self/ns/{namespace}") as file:
        if libc.setns(file.fileno(), 0) < 0:
            raise OSError(ctypes.get_errno(), "setns")


def read_file(path):
    with open(path) as file:
        return file.read(100)


def write_file(path):
    with open(path, "w") as file:
        file.write("planted")


def only_open(path):
    os.close(os.open(path, os.O_WRONLY))


def connect(address, kind=socket.SOCK_STREAM, family=socket.AF_UNIX, protocol=0):
    with socket.socket(family, kind, protocol) as sock:
        sock.settimeout(5)
        sock.connect(address)


def listen():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()


def send(port):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"x", ("127.0.0.1", port))


def shared_memory(key, flags=0):
    found = libc.shmget(key, 4096, flags)
    if found < 0:
        raise OSError(ctypes.get_errno(), "shmget")
    return found


def message_queue(name, flags=0):
    """mq_open(2), 240; with O_CREAT it is left there."""
    os.close(with_buffer(name.encode() + b"\0", lambda at: syscall(240, at, flags, 0o666, 0)))


def as_root(program):
    uid = int(subprocess.run([program, "-u"], capture_output=True, text=True, check=True).stdout)
    if uid != 0:
        raise LookupError("still itself")


def raise_core_limit():
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (1 << 20, 1 << 20))
    except ValueError:  # which is how Python says EPERM here
        raise PermissionError(errno.EPERM, "setrlimit") from None


def lower_oom_score():
    with open("/proc/self/oom_score_adj", "r+") as file:
        if int(file.read()) > 0:
            file.seek(0)
            file.write("0")


TRIES = {
    "signal a neighbour": lambda v: os.kill(v["neighbour"], 0),
    "signal a neighbour by pidfd": lambda v: signal_by_pidfd(v["neighbour"]),
    "signal a spare": lambda v: os.kill(v["spare"], 0),
    "signal the warm process": lambda v: os.kill(v["warm"], 0),
    "signal who waits for it": lambda v: os.kill(v["waiter"], 0),
    "signal everybody": lambda v: os.kill(-1, 0),
    "signal the launcher": lambda v: os.kill(v["launcher"], 0),
    "signal the agent": lambda v: os.kill(v["agent"], 0),
    "read a neighbour's limits": lambda v: resource.prlimit(v["neighbour"], resource.RLIMIT_NOFILE),
    "look into a neighbour": lambda v: look(v["neighbour"], v["fds"]),
    "look into a spare": lambda v: look(v["spare"], v["fds"]),
    "look into the warm process": lambda v: look(v["warm"], v["fds"]),
    "look into who waits for it": lambda v: look(v["waiter"], v["fds"]),
    "look into the launcher": lambda v: look(v["launcher"], v["fds"]),
    "look into the agent": lambda v: look(v["agent"], v["fds"]),
    "read a neighbour's command line": lambda v: read_file(f"/proc/{v['neighbour']}/cmdline"),
    "a neighbour's abstract socket": lambda v: connect("\0" + v["name"]),
    "an abstract socket of the host": lambda v: connect("\0host" + v["name"]),
    "a socket of the host with a path": lambda v: connect(v["folder"] + "/socket"),
    "a neighbour's shared memory": lambda v: shared_memory(v["key"]),
    "a neighbour's message queue": lambda v: message_queue(v["name"]),
    "a neighbour's /tmp": lambda v: read_file("/tmp/" + v["name"]),
    "a neighbour's /dev/shm": lambda v: read_file("/dev/shm/" + v["name"]),
    "the host's /tmp": lambda v: read_file("/tmp/host" + v["name"]),
    "write where the user may": lambda v: write_file(v["folder"] + "/planted"),
    "read where the user may": lambda v: read_file(v["folder"] + "/readable"),
    "write to a listed folder": lambda v: write_file(v["shared"] + "/planted"),
    "run a set-uid program": lambda v: as_root(v["program"]),
    "mount": lambda v: mount(v["folder"]),
    "a user namespace by unshare": lambda v: in_a_child(syscall, 272, NEWUSER),
    "a user namespace by clone": lambda v: in_a_child(clone, NEWUSER),
    "join a namespace": lambda v: in_a_child(join, "uts"),
    "trace a child": lambda v: in_a_child(trace_me),
    "take a descriptor by pidfd": lambda v: steal_fd(os.getpid(), 1),
    "make itself dumpable": lambda v: in_a_child(prctl, 4, 1),
    "io_uring": lambda v: os.close(with_buffer(bytes(120), lambda at: syscall(425, 1, at))),
    "bpf": lambda v: os.close(with_buffer(struct.pack("=IIII56x", 2, 4, 4, 1), lambda at: syscall(321, 0, at, 72))),
    "keyctl": lambda v: syscall(250, 0, -3, 1),
    "userfaultfd": lambda v: os.close(syscall(323, 0)),
    "x32 calls": lambda v: in_a_child(x32),
    "type into a terminal": lambda v: type_into(0),
    "raise its core limit": lambda v: in_a_child(raise_core_limit),
    "be spared when memory ends": lambda v: in_a_child(lower_oom_score),
    "read /proc/sys": lambda v: read_file("/proc/sys/kernel/hostname"),
    "write /proc/sys": lambda v: only_open("/proc/sys/kernel/core_pattern"),
    "read the kernel's log": lambda v: os.close(os.open("/proc/kmsg", os.O_RDONLY | os.O_NONBLOCK)),
    "leave its cgroup": lambda v: [only_open(path) for path in v["cgroups"]],
    "connect to a local TCP port": lambda v: connect(("127.0.0.1", v["tcp"]), family=socket.AF_INET),
    "listen on a TCP port": lambda v: listen(),
    "connect by MPTCP": lambda v: connect(("127.0.0.1", v["tcp"]), family=socket.AF_INET, protocol=262),
    "send to a local UDP port": lambda v: send(v["udp"]),
    "a raw socket": lambda v: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1).close(),
    "a vsock": lambda v: socket.socket(40, socket.SOCK_STREAM).close(),
}  # fmt: skip


def clone(flags):
    if syscall(56, flags | signal.SIGCHLD, 0, 0, 0, 0) == 0:
        os._exit(0)
    os.wait()


def try_all(v):
    """By threat: empty if it got through, else the error."""
    outcomes = {}
    for threat, call in TRIES.items():
        try:
            call(v)
            outcomes[threat] = ""
        except Exception as error:
            outcomes[threat] = errno.errorcode.get(getattr(error, "errno", None)) or str(error)
    return outcomes


def in_a_file(path, make):
    (write_file if make else read_file)(path)


LEFT = {
    "/tmp": lambda v, make: in_a_file("/tmp/left" + v["name"], make),
    "/var/tmp": lambda v, make: in_a_file("/var/tmp/left" + v["name"], make),
    "/dev/shm": lambda v, make: in_a_file("/dev/shm/left" + v["name"], make),
    "shared memory": lambda v, make: shared_memory(v["key"] + 1, 0o1666 * make),
    "a message queue": lambda v, make: message_queue("left" + v["name"], os.O_CREAT * make),
    "a listed folder": lambda v, make: in_a_file(v["shared"] + "/left", make),
}


def leave(v):
    """Something for whoever comes next, where it can be done at all."""
    return {where: attempt(call, v, True) for where, call in LEFT.items()}


def find(v):
    """What is there of it."""
    return [where for where, call in LEFT.items() if attempt(call, v, False).startswith("GOT")]
