"""The inside of the sandbox: run as a script of its own, it walls itself in and then becomes the model's program.

  python -I -S _inside.py JSON      (settings, see `sandbox.py`; says "ready PID" or "cannot REASON" on file descriptor 3)

Namespaces of its own for mounts, processes, network, messages and host name; a new root with Python's own files and
nothing else, read only; a small disk in memory at /tmp; a user of its own without any capability; limits on the rest.
Nothing of jaxgpt is imported here.
"""

import ctypes
import json
import os
import resource
import signal
import sys

NEW_MOUNTS, NEW_HOST, NEW_MESSAGES, NEW_USER, NEW_PROCESSES, NEW_NETWORK = (
    0x00020000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000)
READ_ONLY, NO_SUID, NO_DEVICES, REMOUNT, BIND, RECURSIVE, PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
NO_NEW_PRIVILEGES, DIE_WITH_PARENT = 38, 1
SYSTEM = ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/usr/local/lib", "/etc/ld.so.cache")  # of the loader, libraries
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")

libc = ctypes.CDLL(None, use_errno=True)


def call(name, *arguments):
    """A function of the C library; raises OSError where it fails."""
    if getattr(libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def mount(source, target, kind, flags, options=None):
    """mount(2)."""
    call("mount", *(None if text is None else text.encode() for text in (source, target, kind)),
         ctypes.c_ulong(flags), None if options is None else options.encode())


def separate():
    """Enters namespaces of its own. Root keeps its rights until `drop`; anyone else has them in a user namespace."""
    flags = NEW_MOUNTS | NEW_PROCESSES | NEW_NETWORK | NEW_MESSAGES | NEW_HOST
    if os.geteuid() == 0:
        return call("unshare", flags)
    user, group = os.getuid(), os.getgid()
    call("unshare", flags | NEW_USER)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def build_root(root, settings):
    """A new root in memory: what Python needs, read only, and a disk at /tmp."""
    mount(None, "/", None, RECURSIVE | PRIVATE)
    mount("none", root, "tmpfs", NO_SUID | NO_DEVICES, "size=1m,nr_inodes=2000,mode=755")
    for path in dict.fromkeys((*SYSTEM, *settings["python"], *DEVICES)):
        target = root + path
        if not os.path.exists(path) or os.path.exists(target):  # the executable may lie in its library's folder
            continue
        if os.path.islink(path):
            os.makedirs(os.path.dirname(target), mode=0o755, exist_ok=True)
            if not os.path.lexists(target):
                os.symlink(os.readlink(path), target)
            continue
        if os.path.isdir(path):
            os.makedirs(target, mode=0o755, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(target), mode=0o755, exist_ok=True)
            open(target, "w").close()
        mount(path, target, None, BIND)
        if path not in DEVICES:
            mount(None, target, None, BIND | REMOUNT | READ_ONLY | NO_SUID | NO_DEVICES)
    os.mkdir(f"{root}/tmp")
    mount("none", f"{root}/tmp", "tmpfs", NO_SUID | NO_DEVICES, f"size={settings['disk']},nr_inodes=1000,mode=777")
    with open(f"{root}/tmp/main.py", "w", encoding="utf-8", errors="surrogatepass") as file:
        file.write(settings["code"])
    mount(None, root, None, REMOUNT | READ_ONLY | NO_SUID | NO_DEVICES)
    os.chroot(root)
    os.chdir("/tmp")


def drop(settings):
    """Limits, and the rights of nobody."""
    if settings["walled"] and os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(settings["user"], settings["user"], settings["user"])
        os.setresuid(settings["user"], settings["user"], settings["user"])
    call("prctl", NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    call("prctl", DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)
    for name, value in settings["limits"].items():
        kind = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def main():
    """Reads the settings, builds the walls, and becomes the program; its parent waits outside for its end."""
    settings = json.loads(sys.stdin.buffer.read())
    try:
        if settings["walled"]:
            separate()
        child = os.fork()  # the first process of the new namespace: when it ends, all others in it are killed
        if child == 0:
            if settings["walled"]:
                build_root(settings["root"], settings)
            drop(settings)
    except Exception as error:  # whatever the system refuses is the answer
        os.write(3, f"cannot {error}\n".encode())
        os._exit(1)
    if child:
        os.write(3, f"child {child}\n".encode())
        os.close(3)
        _, status = os.waitpid(child, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    os.write(3, b"ready\n")
    os.close(3)
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    os.execve(settings["executable"], [settings["executable"], "-I", "-S", "-B", "-u", settings["script"]], {})


if __name__ == "__main__":
    main()
