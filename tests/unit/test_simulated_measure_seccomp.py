# ruff: noqa: E501  # programs and tables
"""The system call filter, run by a small BPF interpreter over both architectures."""

import struct

import pytest

from strongroom._seccomp import _DENIED, filter_program, notifying_program
from strongroom.errors import InputError

ALLOW, KILL, EPERM, ENOSYS = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026
MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
CLONE_NEWUSER, CLONE_NEWNS, CLONE_NEWNET, CLONE_NEWPID = 0x10000000, 0x00020000, 0x40000000, 0x20000000
CLONE_THREAD_FLAGS = 0x003D0F00  # what libc's pthread_create passes
# From asm/unistd_64.h and asm-generic/unistd.h, independent of the program's own table.
ALLOWED = {
    "x86_64": {"read": 0, "write": 1, "mmap": 9, "socket": 41, "execve": 59, "futex": 202, "openat": 257, "getrandom": 318},
    "aarch64": {"read": 63, "write": 64, "mmap": 222, "socket": 198, "execve": 221, "futex": 98, "openat": 56, "getrandom": 278},
}  # fmt: skip
REFUSED = {
    "x86_64": {"ptrace": 101, "mount": 165, "umount2": 166, "unshare": 272, "setns": 308, "process_vm_readv": 310,
               "keyctl": 250, "bpf": 321, "io_uring_setup": 425, "kexec_load": 246, "init_module": 175, "pidfd_getfd": 438,
               "open_by_handle_at": 304, "userfaultfd": 323, "perf_event_open": 298, "pivot_root": 155},
    "aarch64": {"ptrace": 117, "mount": 40, "umount2": 39, "unshare": 97, "setns": 268, "process_vm_readv": 270,
                "keyctl": 219, "bpf": 280, "io_uring_setup": 425, "kexec_load": 104, "init_module": 105, "pidfd_getfd": 438,
                "open_by_handle_at": 265, "userfaultfd": 282, "perf_event_open": 241, "pivot_root": 41},
}  # fmt: skip


def run(program: bytes, number: int, arch: int, arguments: tuple[int, ...] = ()) -> int:
    data = struct.pack(
        "<iIQ6Q", number - (1 << 32) if number >> 31 else number, arch, 0, *arguments, *[0] * (6 - len(arguments))
    )
    at = accumulator = 0
    while True:
        code, yes, no, value = struct.unpack_from("<HBBI", program, 8 * at)
        at += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, value)
        elif code == 0x06:
            return int(value)
        else:
            holds = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: bool(accumulator & value)}[code]
            at += yes if holds else no


@pytest.mark.parametrize("machine", MACHINES)
def test_every_listed_call_is_refused_and_common_ones_are_not(machine: str) -> None:
    program, (arch, column) = filter_program(machine), MACHINES[machine]
    for name, number in REFUSED[machine].items():
        assert _DENIED[name][column] == number, name
        assert run(program, number, arch) == EPERM, name
    for name, number in ALLOWED[machine].items():
        assert run(program, number, arch) == ALLOW, name
    denied = {numbers[column] for numbers in _DENIED.values()}
    clone, clone3 = (56, 220)[column], 435
    for number in range(600):
        expected = EPERM if number in denied else ENOSYS if number == clone3 else ALLOW
        assert run(program, number, arch, (CLONE_THREAD_FLAGS,)) == expected, number
    for flag in (CLONE_NEWUSER, CLONE_NEWNS, CLONE_NEWNET, CLONE_NEWPID, 0x02000000, 0x04000000, 0x08000000):
        assert run(program, clone, arch, (flag | 17,)) == EPERM
    assert run(program, clone, arch, (17,)) == ALLOW


@pytest.mark.parametrize("machine", MACHINES)
def test_another_architecture_and_x32_are_killed(machine: str) -> None:
    program, (arch, _) = filter_program(machine), MACHINES[machine]
    for other in (0x40000003, 0x40000028, 0, *(a for a, _ in MACHINES.values() if a != arch)):
        assert run(program, 1, other) == KILL
    for number in (0x40000000, 0x40000000 | 101, 0xFFFFFFFF):
        assert run(program, number, arch) == KILL


@pytest.mark.parametrize(
    ("machine", "numbers", "msync"), [("x86_64", {74, 75, 162, 306}, 26), ("aarch64", {82, 83, 81, 267}, 227)]
)
def test_syncs_and_they_alone_are_asked_about(machine: str, numbers: set[int], msync: int) -> None:
    program, arch = notifying_program(machine), MACHINES[machine][0]
    for number in range(600):
        assert run(program, number, arch) == (0x7FC00000 if number in numbers else ALLOW), number
    assert [run(program, msync, arch, (0, 0, flags)) == ALLOW for flags in (1, 2, 4, 6)] == [True, True, False, False]
    assert run(program, 1, 0x40000003) == run(program, 0x40000000 | 74, arch) == KILL


def test_jumps_stay_inside_and_the_end_returns() -> None:
    for program in [make(machine) for make in (filter_program, notifying_program) for machine in MACHINES]:
        steps = [struct.unpack_from("<HBBI", program, at) for at in range(0, len(program), 8)]
        assert len(program) % 8 == 0
        assert len(steps) <= 4096
        for at, (code, yes, no, _) in enumerate(steps):
            if code not in (0x20, 0x06):
                assert at + 1 + max(yes, no) < len(steps)
        assert steps[-1][0] == 0x06


def test_an_unknown_machine_has_no_filter() -> None:
    with pytest.raises(InputError, match="riscv64"):
        filter_program("riscv64")
