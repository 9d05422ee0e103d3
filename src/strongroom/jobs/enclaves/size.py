"""How large an SGX enclave is, by what a job's settings and files need: it is fixed when it is built."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from strongroom.errors import InputError
from strongroom.jobs.plan import LaunchPlan

__all__ = ["Needs", "loaded_mb", "needs"]

_MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """How large an enclave is.

    Attributes:
        size_mb: A power of two.
        threads: At one time.
        stack_mb: Of each thread.
        parts: What the size is made of, in MiB.
    """

    size_mb: int
    threads: int
    stack_mb: int
    parts: Mapping[str, int]


def needs(plan: LaunchPlan, files: Mapping[str, Path]) -> Needs:
    """Return how large the job's enclave is.

    Raises:
        InputError: What the job names does not fit into the size or the threads that it asks for.
    """
    spec, argv = plan.spec, plan.command.argv
    # Once, not for each memory file system: neither LibOS gives one of them a size, all take what they hold from the
    # enclave's own memory, most of a job's files lie in /work, and memory that nobody needs costs every start. Gramine
    # doubles a file's memory as it grows (libos_fs_mem.c); a volume that does not fit is refused, with a hint to raise
    # this.
    parts = {"guest": 256, "LibOS": 64, "scratch": spec.sandbox.scratch_mb}
    parts["libraries"] = loaded_mb(files)
    if "jdk" in plan.command.runtimes:
        cores, stack = _option(argv, "-XX:ActiveProcessorCount=", 1), _option(argv, "-Xss", _MIB) // _MIB or 1
        threads = 96 + 8 * cores
        heap = _option(argv, "(?:-Xmx|-XX:MaxHeapSize=)", 1 << 30)
        parts |= {
            "heap": heap // _MIB,
            "collector": heap // 8 // _MIB,
            "direct memory": _option(argv, "-XX:MaxDirectMemorySize=", heap) // _MIB,
            "metaspace": _option(argv, "-XX:MaxMetaspaceSize=", 256 * _MIB) // _MIB,
            "class space": _option(argv, "-XX:CompressedClassSpaceSize=", 1024 * _MIB) // _MIB,
            "code cache": _option(argv, "-XX:ReservedCodeCacheSize=", 240 * _MIB) // _MIB,
        }
    else:
        omp = plan.command.environment.get("OMP_NUM_THREADS", "")
        threads, stack = 16 + 4 * int(omp if re.fullmatch(r"[1-9]\d{0,3}", omp) else 4), 2
        parts["program"] = 1024
    chosen = spec.sgx.max_threads or threads
    if chosen < threads:
        raise InputError(f"[sgx] max_threads: expected at least {threads} for this job, got {chosen}")
    parts["stacks"] = chosen * stack
    total = sum(parts.values())
    size = spec.sgx.size_mb or 1 << (total - 1).bit_length()
    if size < total:
        listed = " + ".join(f"{name} {mb}" for name, mb in parts.items())
        raise InputError(f"[sgx] size_mb: expected at least {total}, got {size}: {listed}")
    return Needs(size_mb=size, threads=chosen, stack_mb=stack, parts=parts)


def loaded_mb(files: Mapping[str, Path]) -> int:
    """Return the size of all libraries among `files`, in MiB."""
    loaded = {f for name, f in files.items() if re.search(r"\.so(\.[\d.]+)?$|/lib/modules$", name)}
    return -(-sum(f.stat().st_size for f in loaded) // _MIB)


def _option(argv: Iterable[str], name: str, default: int) -> int:
    # `name` is a pattern. The JVM takes the last one; a value that it would refuse is not ours to judge.
    found = default
    for word in argv:
        if match := re.fullmatch(name + r"(\d+)([kKmMgGtT]?)", word):
            found = int(match[1]) << {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}[match[2].lower()]
    return found
