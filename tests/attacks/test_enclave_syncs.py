"""fsync in a running job: a machine that dies when the call has returned, a program that goes around it. T330, T334."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.attacks.test_enclave_checkpoints import kill_all
from tests.conftest import stop_service
from tests.fakes.enclave_shell import APPROVE, Enclave, make_enclave

# Each writes what it must find, and more that it never synced.
SYNC = """
import os, sqlite3, time
os.chdir('/work/m')
db = sqlite3.connect('t.db', isolation_level=None)
db.execute('pragma synchronous=extra')
db.execute('create table if not exists t (n)')
print('BEGIN', {p: open(p).read() for p in sorted(os.listdir()) if p[0] == 'f'},
      [n for n, in db.execute('select n from t')], flush=True)
for n in range(3):
    db.execute('insert into t values (?)', (n,))
with open('f.new', 'w') as new:
    new.write('whole')
    new.flush()
    os.fsync(new.fileno())
    os.rename('f.new', 'f.done')
os.fsync(os.open('.', os.O_RDONLY))
kept = open('f.kept', 'w')
kept.write('synced')
kept.flush()
os.fsync(kept.fileno())
kept.write(' and not')
kept.flush()
open('f.late', 'w').write('closed, but not synced')
os.fsync(os.open('/tmp', os.O_RDONLY))
db.execute('begin')
db.execute('insert into t values (99)')
print('READY', flush=True)
time.sleep(60)
"""
ESCAPE = """
import ctypes, errno, os, struct, sys, time
libc = ctypes.CDLL(None, use_errno=True)
f = open('/work/m/a', 'w')
began = time.monotonic()
other = os.open('/tmp', os.O_RDONLY)
for _ in range(200):
    os.fsync(other)
os.close(other)
print('OUTSIDE', (time.monotonic() - began) / 200 < 0.01)
# No second listener, no filter that lets the calls by, no system call that the guest's own filter refuses.
class Filter(ctypes.Structure):
    _fields_ = [('length', ctypes.c_ushort), ('program', ctypes.c_char_p)]
allow = struct.pack('<HBBI', 6, 0, 0, 0x7fff0000)
number = {'x86_64': 317, 'aarch64': 277}[os.uname().machine]
for flags in (8, 0):
    done = libc.syscall(number, 1, flags, ctypes.byref(Filter(1, allow)))
    print('FILTER', flags, done, errno.errorcode.get(ctypes.get_errno(), 0) if done < 0 else 'OK')
print('INHERITED', [n for n in range(3, 100) if os.path.lexists(f'/proc/self/fd/{n}') and n != f.fileno()])
f.write('synced'); f.flush(); os.fsync(f.fileno())
libc.prctl(4, 0, 0, 0, 0)  # nobody may look into this process any more
f.write(' twice'); f.flush(); os.fsync(f.fileno())
print('UNSHARE', libc.unshare(0x10000000), errno.errorcode[ctypes.get_errno()])
sys.stdout.flush()
os._exit(3)
"""
OPTIONS = ("--checkpoint-every", "3600", "--volume")


@pytest.fixture(scope="module")
def enclave(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Enclave]:
    made = make_enclave(tmp_path_factory.mktemp("syncs") / "ws")
    yield made
    stop_service(made.workspace)


def test_T330_a_machine_killed_after_fsync_returned_has_what_was_synced(enclave: Enclave) -> None:
    (enclave.folder / "sync.py").write_text(SYNC)
    found = []
    for again in (False, True):
        run = enclave.start(*OPTIONS, "m=m:sales:rw", "--", "python", "sync.py")
        assert run.stdout is not None
        found.append(run.stdout.readline())
        assert again or run.stdout.readline() == "READY\n", run.communicate()
        kill_all(run)
    assert found == ["BEGIN {} []\n", "BEGIN {'f.done': 'whole', 'f.kept': 'synced'} [0, 1, 2]\n"]


def test_T334_a_program_cannot_rid_itself_of_the_guest_nor_get_past_its_filter(enclave: Enclave) -> None:
    (enclave.folder / "escape.py").write_text(ESCAPE)
    run = enclave.run("run", *APPROVE, *OPTIONS, "m=n:sales:rw", "--", "python", "escape.py", check=False)
    assert run.returncode == 3, run
    said = run.stdout.splitlines()
    assert "OUTSIDE True" in said
    assert "FILTER 8 -1 EBUSY" in said  # one listener only
    assert "FILTER 0 0 OK" in said  # its own filter changes nothing
    assert "INHERITED []" in said
    assert "UNSHARE -1 EPERM" in said
    assert enclave.open("n") == {"a": "synced twice"}


def test_without_checkpoints_fsync_is_what_it_was(enclave: Enclave) -> None:
    program = (
        "import os, time; f = open('/work/m/a', 'w'); f.write('x'); f.flush(); t = time.monotonic(); "
        "[os.fsync(f.fileno()) for _ in range(1000)]; print(time.monotonic() - t < 0.1, flush=True); "
        "print(open('/proc/self/status').read().split('Seccomp_filters:')[1].split()[0], flush=True); os._exit(4)"
    )
    run = enclave.run("run", *APPROVE, "--volume", "m=o:sales:rw", "--", "python", "-c", program, check=False)
    assert (run.returncode, run.stdout.split()) == (4, ["True", "1"]), run
    assert enclave.open("o") == {}
