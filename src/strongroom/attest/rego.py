"""Rego modules, evaluated in a process of their own by regopy (extra `rego`): the parent's side, and the child's.

A module is its owner's text, and regopy is C++ that reads it: neither may come near the keys of several owners. So the
child is a new program without environment or descriptors of the parent's, under limits of time and memory, whose only
system calls after reading are those of `_seccomp.computing_program`: it can compute and write its answer, but open no
file, make no socket, start nothing. The parent reads at most 4 KiB and kills it after `WALL_S`.

The question is `data.policy.allow`, as for Trustee's resource policies. Whatever is not `true` is a refusal: undefined,
another value, an error, no regopy.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import resource
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import ParamSpec, TypeVar

from strongroom._encoding import canonical_json, sha256_id
from strongroom._seccomp import computing_program
from strongroom.errors import UnavailableError

__all__ = ["ALLOWED", "Unasked", "ask", "asking_apart", "evaluate"]

ALLOWED = "true"
QUERY = "data.policy.allow"
CPU_S, WALL_S, MEMORY_BYTES = 2, 10.0, 512 << 20

_KEPT_S = 60.0
_NO_ANSWER = "no answer"
_MAX_ANSWER = 4096
_MAX_WAIT_S = 20.0
_MAX_QUESTIONS = 32
_CHILD = "from strongroom.attest.rego import answer; answer()"
_kept: dict[str, tuple[float, str]] = {}
_lock = threading.Lock()  # for what is kept, never for long
_turn = threading.Lock()  # one evaluation at a time
_here = threading.local()
_P = ParamSpec("_P")
_R = TypeVar("_R")


class Unasked(BaseException):
    """A question without an answer, met where nobody may wait for one. Not an error: nothing is refused by it."""

    def __init__(self, module: str, given: Mapping[str, object]) -> None:
        super().__init__()
        self.question = module, given


def asking_apart(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Return `function` such that it is given up at a question, and begun again with the answer.

    For functions that hold what others wait for, such as the database, and leave nothing behind when they are given up.
    """

    @functools.wraps(function)
    def again(*arguments: _P.args, **named: _P.kwargs) -> _R:
        for _ in range(_MAX_QUESTIONS):
            _here.apart = True
            try:
                return function(*arguments, **named)
            except Unasked as unasked:
                question = unasked.question
            finally:
                _here.apart = False
            ask(*question)
        raise UnavailableError(f"the policies of the job's keys ask more than {_MAX_QUESTIONS} questions")

    return again


def ask(module: str, given: Mapping[str, object]) -> str:
    """Return what the module says of `given`: `true`, or in words why not. An answer stands for a minute.

    A module that did not answer is not asked anything for that minute.

    Raises:
        Unasked: Inside a function that is `asking_apart`.
    """
    slow, key = sha256_id(module.encode()), sha256_id(canonical_json({"module": module, "input": given}))
    if (known := _known(slow, key)) is not None:
        return known
    if getattr(_here, "apart", False):
        raise Unasked(module, given)
    if not _turn.acquire(timeout=_MAX_WAIT_S):  # others' modules must not hold every thread of the service
        return f"{_NO_ANSWER} within {_MAX_WAIT_S:g} s: other modules are being asked"
    try:
        if (known := _known(slow, key)) is not None:  # somebody else asked meanwhile
            return known
        found = evaluate(module, given)
        with _lock:
            _kept[slow if found.startswith(_NO_ANSWER) else key] = (time.monotonic() + _KEPT_S, found)
    finally:
        _turn.release()
    return found


def _known(*names: str) -> str | None:
    with _lock:
        now = time.monotonic()
        for name in [name for name, (until, _) in _kept.items() if until <= now]:
            del _kept[name]
        return next((_kept[name][1] for name in names if name in _kept), None)


def evaluate(module: str, given: Mapping[str, object]) -> str:
    """Return what the module says of `given`: `true`, or in words why not."""
    with os.fdopen(os.memfd_create("rego"), "wb") as question:
        question.write(json.dumps({"module": module, "input": given}).encode())
        question.flush()
        question.seek(0)
        child = subprocess.Popen(
            [sys.executable, "-I", "-c", _CHILD],
            stdin=question,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={},
            cwd="/",
            start_new_session=True,
        )
    assert child.stdout is not None
    with child.stdout:
        raw, in_time = _read(child.stdout.fileno(), time.monotonic() + WALL_S)
    child.kill()
    status = child.wait()
    if not in_time:
        return f"{_NO_ANSWER} within {WALL_S:g} s"
    if not raw:
        return f"{_NO_ANSWER}: the evaluation ended with {status} (limits: {CPU_S} s, {MEMORY_BYTES >> 20} MiB)"
    return ascii(raw.decode("utf-8", "replace"))[1:-1][:300]


def _read(fd: int, until: float) -> tuple[bytes, bool]:
    found = b""
    while len(found) < _MAX_ANSWER:
        if not select.select([fd], [], [], max(0.0, until - time.monotonic()))[0]:
            return found, False
        part = os.read(fd, _MAX_ANSWER)
        if not part:
            break
        found += part
    return found, True


def answer() -> None:
    """Be the child: read a question, become unable to do anything but compute, write the answer, and end."""
    out, void = os.dup(1), os.open("/dev/null", os.O_WRONLY)
    os.dup2(void, 1)  # the interpreter prints what it does not like
    with open(0, "rb") as given:
        question = json.load(given)
    try:
        import regopy  # noqa: PLC0415  # here alone
    except ImportError:
        os.write(out, b"regopy is not installed beside the trust service: pip install 'strongroom[rego]'")
        os._exit(0)

    def query(module: str, given: object) -> str:
        interpreter = regopy.Interpreter()
        interpreter.add_module("policy", module)
        # As text: what regopy makes of Python's strings loses quotes around them, and ends at a zero.
        interpreter.set_input_term(json.dumps(given, ensure_ascii=False))
        return str(interpreter.query(QUERY))

    query(_FIRST, {})
    _confine()
    try:
        found = _said(query(question["module"], question["input"]))
    except Exception as exc:  # a library's own errors, of any kind
        found = f"an error: {' '.join(str(exc).split())}"
    os.write(out, found.encode("utf-8", "replace")[:_MAX_ANSWER])
    os._exit(0)


def _said(text: str) -> str:
    with contextlib.suppress(ValueError, AttributeError):
        match json.loads(text):
            case {"expressions": [True]}:
                return ALLOWED
            case {"expressions": [value]}:
                return f"{json.dumps(value)}, which is not true" if value is not False else "false"
    return text if text == "undefined" else f"an error: {text}"


# What the libraries open and reserve at their first use, they do before the limits.
_FIRST = 'package policy\nallow { crypto.sha256("") != "" }\n'


class _Filter(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("program", ctypes.c_char_p)]


def _confine() -> None:
    with open("/proc/self/statm") as statm:  # regopy's allocator reserves addresses that it does not use
        reserved = int(statm.read().split()[0]) * resource.getpagesize()
    for kind, limit in (
        (resource.RLIMIT_CPU, CPU_S),
        (resource.RLIMIT_AS, reserved + MEMORY_BYTES),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (limit, limit))
    libc, program = ctypes.CDLL(None, use_errno=True), computing_program()
    loaded = _Filter(length=len(program) // 8, program=program)
    no_new_privileges, seccomp, mode_filter = 38, 22, 2
    if libc.prctl(no_new_privileges, 1, 0, 0, 0) or libc.prctl(seccomp, mode_filter, ctypes.byref(loaded), 0, 0):
        raise OSError(ctypes.get_errno(), "the system call filter cannot be set")
