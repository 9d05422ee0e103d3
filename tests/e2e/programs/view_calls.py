# ruff: noqa: SIM115  # a program, as dense as its table
"""Calls on a read-only view that tests/integration/test_views.py does not make; prints name -> outcome."""

import ctypes
import errno
import fcntl
import json
import mmap
import os
import random
import select
import socket
import stat

libc = ctypes.CDLL(None, use_errno=True)
base, found = "/work/v/", {}


def call(name, *arguments):
    answer = libc.syscall(*arguments) if isinstance(name, int) else getattr(libc, name)(*arguments)
    if answer < 0:
        raise OSError(ctypes.get_errno(), name)
    return answer


def attempt(name, function):
    try:
        answer = function()
    except OSError as exc:
        answer = errno.errorcode[exc.errno]
    found[name] = answer if isinstance(answer, (int, str, list, bool)) else "done"


def flags(value):
    return lambda: os.close(os.open(base + "big", value))


big = open(base + "big", "rb").read()
fd = os.open(base + "big", os.O_RDONLY)
size = len(big)
rng = random.Random(1)
found["size"] = size
parts = [bytearray(n) for n in (1, 4095, 70_000, 3)]
found["preadv"] = os.preadv(fd, parts, 65_535) == 74_099 and b"".join(parts) == big[65_535 : 65_535 + 74_099]
found["readv"] = os.readv(fd, parts) == 74_099 and b"".join(parts) == big[:74_099]


def random_reads(descriptor):
    for _ in range(2000):
        at, n = rng.randrange(size + 10), rng.randrange(200_000)
        if os.pread(descriptor, n, at) != big[at : at + n]:
            return False
    return True


found["random pread"] = random_reads(fd)
with mmap.mmap(fd, 0, access=mmap.ACCESS_READ) as mapped:
    found["random mmap"] = all(
        mapped[a : a + 5000] == big[a : a + 5000] for a in (rng.randrange(size) for _ in range(2000))
    )
direct = os.open(base + "big", os.O_RDONLY | os.O_DIRECT)
page = mmap.mmap(-1, 4096)


def direct_read():
    got = [os.preadv(direct, [page], at) for at in range(0, size, 4096)]
    return sum(got) == size


attempt("direct, whole", direct_read)
attempt("direct, odd offset", lambda: os.preadv(direct, [page], 777) == 4096 and page[:] == big[777 : 777 + 4096])
attempt("seek data", lambda: [os.lseek(fd, at, os.SEEK_DATA) for at in (0, 5000)])
attempt("seek hole", lambda: os.lseek(fd, 0, os.SEEK_HOLE) == size)
attempt("seek data at the end", lambda: os.lseek(fd, size, os.SEEK_DATA))
out = os.open("/work/copy", os.O_RDWR | os.O_CREAT)


def send():
    at = 0
    while at < size:
        at += os.sendfile(out, fd, at, size)
    return os.pread(out, size, 0) == big


attempt("sendfile, whole", send)


def copy():
    os.ftruncate(out, 0)
    at = 0
    while at < size:
        at += os.copy_file_range(fd, out, size, at, at)
    return os.pread(out, size, 0) == big


attempt("copy_file_range, whole", copy)


def spliced():
    r, w = os.pipe()
    return os.splice(fd, w, 4096, offset_src=1234) == 4096 and os.read(r, 4096) == big[1234 : 1234 + 4096]


attempt("splice", spliced)
attempt("fadvise", lambda: os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_WILLNEED))
attempt("readahead", lambda: call("readahead", fd, ctypes.c_long(0), ctypes.c_size_t(size)))
for name, value in {
    "O_RDONLY": 0,
    "O_NOFOLLOW": os.O_NOFOLLOW,
    "O_NOATIME": os.O_NOATIME,
    "O_PATH": os.O_PATH,
    "O_SYNC": os.O_SYNC,
    "O_NONBLOCK": os.O_NONBLOCK,
    "O_DIRECTORY": os.O_DIRECTORY,
    "O_CREAT": os.O_CREAT,
    "O_CREAT|O_EXCL": os.O_CREAT | os.O_EXCL,
    "O_TRUNC": os.O_TRUNC,
    "O_WRONLY": os.O_WRONLY,
    "O_RDWR": os.O_RDWR,
    "O_APPEND": os.O_APPEND,
    "O_RDWR|O_DIRECT": os.O_RDWR | os.O_DIRECT,
}.items():
    attempt("open " + name, flags(value))
attempt("open O_TMPFILE", lambda: os.open(base, os.O_TMPFILE | os.O_RDWR))
attempt("write", lambda: os.write(fd, b"x"))
attempt("pwrite", lambda: os.pwrite(fd, b"x", 0))
attempt("ftruncate", lambda: os.ftruncate(fd, 0))
attempt("fallocate", lambda: os.posix_fallocate(fd, 0, 10))
attempt(
    "mmap shared for writing", lambda: mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE) and "done"
)
attempt("fchmod", lambda: os.fchmod(fd, 0o600))
attempt("fchown", lambda: os.fchown(fd, os.getuid(), -1))
attempt("futimens", lambda: os.utime(fd, (1, 1)))
attempt("lutime", lambda: os.utime(base + "big", (1, 1), follow_symlinks=False))
attempt("link in", lambda: os.link("/work/copy", base + "x"))
attempt("link out", lambda: os.link(base + "big", "/work/x"))
attempt("symlink", lambda: os.symlink("big", base + "x"))
attempt("mkdir over a file", lambda: os.mkdir(base + "big"))
attempt("rename over", lambda: os.replace(base + "big", base + "small"))
attempt("exchange", lambda: call("renameat2", -100, (base + "big").encode(), -100, (base + "small").encode(), 2))
attempt("rename the view", lambda: os.rename(base[:-1], "/work/w"))
attempt("rmdir the view", lambda: os.rmdir(base[:-1]))
attempt("mknod", lambda: os.mknod(base + "x", 0o600 | stat.S_IFREG))
attempt("mknod of a device", lambda: os.mknod(base + "x", 0o600 | stat.S_IFCHR, os.makedev(1, 3)))
attempt("bind", lambda: socket.socket(socket.AF_UNIX).bind(base + "s"))
attempt("setxattr", lambda: os.setxattr(base + "big", "user.a", b"1"))
attempt("removexattr", lambda: os.removexattr(base + "big", "user.a"))
attempt("listxattr", lambda: os.listxattr(base + "big"))
attempt("syncfs", lambda: call("syncfs", fd))
attempt("flock ex", lambda: fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB))
other = os.open(base + "big", os.O_RDONLY)
attempt("flock of another", lambda: fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB))
attempt("lockf shared", lambda: fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB))
attempt("lockf exclusive", lambda: fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB))
attempt("lease", lambda: fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK))
attempt("ioctl FIONREAD", lambda: fcntl.ioctl(fd, 0x541B, bytes(4)) and "done")
attempt("ioctl FICLONE", lambda: fcntl.ioctl(out, 0x40049409, fd))


def watch():
    inotify = call("inotify_init1", 0o4000)
    call("inotify_add_watch", inotify, (base + "big").encode(), 0x20)
    os.close(os.open(base + "big", os.O_RDONLY))
    return bool(select.select([inotify], [], [], 5)[0])


attempt("inotify sees an open", watch)


def locate():
    with open(base + "big", "rb") as file:
        return os.stat(file.fileno()).st_ino == os.stat(base + "big").st_ino


attempt("inode is steady", locate)
attempt("open by number of the process", lambda: open(f"/proc/self/fd/{fd}", "rb").read() == big)


def entries():
    here = os.open(base, os.O_RDONLY | os.O_DIRECTORY)
    return sorted(os.listdir(here)) == sorted(os.listdir(base))


attempt("list by descriptor", entries)
print(json.dumps(found))
