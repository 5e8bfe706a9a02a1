"""What a hostile task tries. The text of this file stands at the top of DAGs: nothing but the standard library.

Each attempt gives the name of the error that stopped it (`PermissionError`), or what it got.
"""

import ctypes
import os
import signal

libc = ctypes.CDLL(None, use_errno=True)
PTRACE_CONT, PTRACE_ATTACH, PTRACE_DETACH, PTRACE_SEIZE, PTRACE_INTERRUPT = 7, 16, 17, 0x4206, 0x4207
WALL = 0x40000000
PIDFD_OPEN, PIDFD_GETFD, PROCESS_VM_READV = 434, 438, 310
PR_GET_DUMPABLE = 3


def attempt(call, *arguments):
    try:
        return f"GOT {call(*arguments)!r:.200}"
    except BaseException as error:
        return type(error).__name__


def syscall(number, *arguments):
    libc.syscall.restype = ctypes.c_long
    done = libc.syscall(ctypes.c_long(number), *(ctypes.c_long(argument) for argument in arguments))
    if done < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return done


def ptrace(request, pid):
    """Attach and let go again. A signal that came to the victim meanwhile is handed on: if it were taken for the stop that was
    asked for, this one would come after the detach, and the victim stay stopped."""
    ask(request, pid)
    if request == PTRACE_SEIZE:
        ask(PTRACE_INTERRUPT, pid)
    while True:
        status = os.waitpid(pid, WALL)[1]
        if status >> 16 or (os.WSTOPSIG(status) == signal.SIGSTOP and request == PTRACE_ATTACH):
            break
        ask(PTRACE_CONT, pid, os.WSTOPSIG(status))
    ask(PTRACE_DETACH, pid)
    return "attached"


def ask(request, pid, number=0):
    libc.ptrace.restype = ctypes.c_long
    if libc.ptrace(ctypes.c_long(request), ctypes.c_long(pid), ctypes.c_long(0), ctypes.c_long(number)) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def read_some(path):
    with open(path, "rb") as file:
        return file.read(64)


def steal_fd(pid, fd):
    pidfd = syscall(PIDFD_OPEN, pid, 0)
    try:
        return syscall(PIDFD_GETFD, pidfd, fd, 0)
    finally:
        os.close(pidfd)


def read_memory(pid):
    """process_vm_readv(2) of one byte of where we have code ourselves: forks of one process are laid out alike."""
    address = ctypes.addressof(ctypes.c_char.in_dll(ctypes.pythonapi, "Py_Version"))
    buffer = ctypes.create_string_buffer(1)
    ours = (ctypes.c_size_t * 2)(ctypes.addressof(buffer), 1)
    theirs = (ctypes.c_size_t * 2)(address, 1)
    return syscall(PROCESS_VM_READV, pid, ctypes.addressof(ours), 1, ctypes.addressof(theirs), 1, 0)


def look_into(pid, fds=(0, 1, 2, 3, 4, 5)):
    """Every way to what another process holds."""
    found = {name: attempt(read_some, f"/proc/{pid}/{name}") for name in ("environ", "mem", "maps", "auxv", "stack")}
    found |= {name: attempt(os.readlink, f"/proc/{pid}/{name}") for name in ("cwd", "root", "exe")}
    found |= {"fd": attempt(os.listdir, f"/proc/{pid}/fd"), "vm_readv": attempt(read_memory, pid)}
    found |= {f"fd/{fd}": attempt(read_some, f"/proc/{pid}/fd/{fd}") for fd in fds}
    found |= {f"getfd {fd}": attempt(steal_fd, pid, fd) for fd in fds}
    found |= {"attach": attempt(ptrace, PTRACE_ATTACH, pid), "seize": attempt(ptrace, PTRACE_SEIZE, pid)}
    return found


def become_somebody(uid, gid):
    """Every way to other ids."""
    return {
        "setuid": attempt(os.setuid, uid),
        "seteuid": attempt(os.seteuid, uid),
        "setreuid": attempt(os.setreuid, uid, uid),
        "setresuid": attempt(os.setresuid, uid, uid, uid),
        "saved": attempt(os.setresuid, -1, -1, uid),
        "setgid": attempt(os.setgid, gid),
        "setegid": attempt(os.setegid, gid),
        "setresgid": attempt(os.setresgid, gid, gid, gid),
        "setgroups": attempt(os.setgroups, [gid]),
        "no groups": attempt(os.setgroups, []),
        "initgroups": attempt(os.initgroups, "root", gid),
    }


def me():
    """What the kernel says of this process."""
    with open("/proc/self/status") as status:
        lines = dict(line.rstrip("\n").split(":\t", 1) for line in status if ":\t" in line)
    fds = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            fds[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            pass  # that of the listing itself
    return {"status": lines, "fds": fds, "dumpable": libc.prctl(PR_GET_DUMPABLE, 0, 0, 0, 0), "cwd": os.getcwd()}


def wait_for(path, seconds=60):
    import time

    for _ in range(seconds * 100):
        if os.path.exists(path):
            return
        time.sleep(0.01)
    raise TimeoutError(path)
