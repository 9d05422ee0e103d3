# ruff: noqa: SIM115  # a program
"""Calls on a volume that a job writes to, by two processes at once where that matters; prints name -> outcome."""

import errno
import json
import mmap
import os

base, found = "/work/out/", {}


def both(name, function):
    """Call function(0) and function(1) in processes of their own."""
    children = []
    for who in (0, 1):
        pid = os.fork()
        if pid == 0:
            try:
                function(who)
            except BaseException as exc:
                print(name, repr(exc))
                os._exit(1)
            os._exit(0)
        children.append(pid)
    found[name] = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]


def appends(who):
    with open(base + "log", "ab", buffering=0) as file:
        for number in range(2000):
            file.write(f"{who} {number:06}".encode().ljust(63, b".") + b"\n")


def halves(who):
    file = os.open(base + "halves", os.O_RDWR | os.O_CREAT)
    for at in range(who * 65_536, who * 65_536 + 65_536, 512):  # neighbours of one page too
        os.pwrite(file, bytes([65 + who]) * 512, at)
    with mmap.mmap(file, 131_080) as mapped:
        mapped[131_072 + who * 4 : 131_076 + who * 4] = bytes([97 + who]) * 4


def renames(who):
    for number in range(300):
        with open(f"{base}.new{who}", "wb") as file:
            file.write(f"{who}".encode() * (10_000 + number))
        os.replace(f"{base}.new{who}", base + "renamed")


def truncates(who):
    file = os.open(base + "cut", os.O_RDWR | os.O_CREAT)
    for _ in range(500):
        if who:
            os.ftruncate(file, 1000)
        else:
            os.pwrite(file, b"W" * 3000, 0)


os.truncate(os.open(base + "halves", os.O_RDWR | os.O_CREAT), 131_080)
both("append", appends)
both("halves", halves)
both("rename", renames)
both("truncate", truncates)
lines = open(base + "log").read().splitlines()
found["lines"] = len(lines) == 4000 and all(
    [line for line in lines if line[0] == who] == [f"{who} {n:06}".ljust(63, ".") for n in range(2000)] for who in "01"
)
found["cut"] = sorted(set(open(base + "cut", "rb").read())) in ([87], [0, 87], [])
try:
    direct = os.open(base + "direct", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    page = mmap.mmap(-1, 8192)
    page[:] = b"D" * 8192
    found["direct"] = os.pwritev(direct, [page], 4096)
except OSError as exc:
    found["direct"] = errno.errorcode[exc.errno]
with open(base + "sparse", "wb") as file:  # more than enclave memory, the most of it holes
    file.seek((24 << 20) - 3)
    file.write(b"end")
os.mkdir(base + "ckpt")
open(base + "ckpt-3", "w").write("three")
os.symlink("ckpt-3", base + "latest")
os.link(base + "ckpt-3", base + "same")
os.symlink("ckpt", base + "folder")
os.symlink("/work/in/a.csv", base + "input")
print(json.dumps(found))
