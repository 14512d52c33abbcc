"""The allocator's setting, in processes of their own: it cannot be taken back."""

import os
import platform
import subprocess
import sys

import pytest

FAULTS = """
import ctypes, resource, sys, threading
from jaxgpt.core.memory import keep_freed_memory
if sys.argv[1] == "keep":
    print(keep_freed_memory())
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
def touch():
    block = libc.malloc(ctypes.c_size_t(256 << 20))
    ctypes.memset(block, 1, 256 << 20)
    libc.free(block)
def work():
    touch()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        touch()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
if sys.argv[2] == "first":
    work()
else:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
"""


def lines(mode, thread="first", **environment):
    environment = {**{key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}, **environment}
    done = subprocess.run([sys.executable, "-c", FAULTS, mode, thread], capture_output=True, text=True, check=True, env=environment)
    return done.stdout.split()


@pytest.mark.parametrize("thread", ["first", "another"])
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_large_blocks_are_faulted_in_once(thread):
    (without,), (asked, kept) = lines("leave", thread), lines("keep", thread)
    assert asked == "True"
    assert int(without) > 5 * 100 and int(kept) < int(without) / 10


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_a_person_who_has_set_it_is_left_alone():
    assert lines("keep", MALLOC_MMAP_THRESHOLD_="65536")[0] == "False"
