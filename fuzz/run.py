"""Run the fuzzers: `python -m fuzz.run`, or one of them: `python -m fuzz.run quote [FILE...]`.

Without a name: every target for FUZZ_SECONDS (60), FUZZ_JOBS (2) at a time, from the seeds in `corpus/TARGET` and what
earlier runs found in `.fuzz/TARGET`. A finding is written to `.fuzz/crashes/TARGET-…`, and its command is printed.
With files: those inputs only, which is how a finding is looked at.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
CORPUS = HERE / "corpus"
FOUND = HERE.parent / ".fuzz"
MAX_BYTES = 20_000
SLOW_S, TIMEOUT_S = 10, 60  # of CPU time for one input; of wall time, as others may have the processors meanwhile
_STRANGE = [None, True, -1, 0, 1, 2**31, 2**53, 2**64, 1.5, "", "a", "\ud800", "\0", "é" * 40, [], {}, [[]], "0" * 64]


def _inside() -> None:
    """Fuzz one target in this process, as libFuzzer's arguments say."""
    import atheris

    with atheris.instrument_imports(include=["strongroom"]):
        from fuzz.targets import TARGETS
    target = TARGETS[sys.argv.pop(1)]

    def once(raw: bytes) -> None:
        started = time.process_time()
        with contextlib.suppress(*target.refusals):
            target.run(raw)
        assert time.process_time() - started < SLOW_S, f"one input took {SLOW_S} s of CPU time or more"

    def mutate(raw: bytes, max_bytes: int, seed: int) -> bytes:
        chance = random.Random(seed)
        if chance.random() < 0.5:
            return bytes(atheris.Mutate(raw, max_bytes))
        try:
            value = json.loads(raw)
        except (ValueError, RecursionError):
            return bytes(atheris.Mutate(raw, max_bytes))
        for _ in range(chance.randint(1, 3)):
            value = _altered(value, chance)
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))  # most formats are canonical
        return text.encode("utf-8", "surrogatepass")[:max_bytes]

    atheris.Setup(sys.argv, once, custom_mutator=mutate if target.json else None)
    atheris.Fuzz()


def _altered(value: object, chance: random.Random) -> object:
    """Return `value` with one thing changed somewhere: removed, doubled, swapped or made strange."""
    if isinstance(value, dict) and value and chance.random() < 0.85:
        name = chance.choice(list(value))
        what = chance.random()
        if what < 0.1:
            return {k: v for k, v in value.items() if k != name}
        if what < 0.2:
            return {**value, chance.choice([name + "x", "", "kind", "é"]): value[name]}
        return {**value, name: _altered(value[name], chance)}
    if isinstance(value, list) and value and chance.random() < 0.85:
        at = chance.randrange(len(value))
        middle = chance.choice([[], [value[at]] * 2, [_altered(value[at], chance)], [_altered(value[at], chance)]])
        return value[:at] + middle + value[at + 1 :]
    if isinstance(value, str) and value and chance.random() < 0.7:
        at = chance.randrange(len(value))
        return value[:at] + chance.choice(["", chr(chance.randrange(0x250)), value[at] * 2, "0", "A"]) + value[at + 1 :]
    if isinstance(value, int) and chance.random() < 0.5:
        return value + chance.choice([-1, 1, 256, -(2**40)])
    return chance.choice(_STRANGE)


def _run(name: str, seconds: int) -> tuple[str, bool, str]:
    """Fuzz `name` in a process of its own; return whether it found nothing, and what to say."""
    grown, crashes = FOUND / name, FOUND / "crashes"
    grown.mkdir(parents=True, exist_ok=True)
    crashes.mkdir(exist_ok=True)
    command = [
        sys.executable, "-m", "fuzz.run", "--inside", name, str(grown), str(CORPUS / name),
        f"-max_total_time={seconds}", f"-max_len={MAX_BYTES}", f"-timeout={TIMEOUT_S}", "-rss_limit_mb=3000",
        f"-artifact_prefix={crashes}/{name}-", "-print_final_stats=1", "-verbosity=1",
    ]  # fmt: skip
    done = subprocess.run(command, check=False, cwd=HERE.parent, capture_output=True, text=True, errors="replace")
    runs = re.search(r"number_of_executed_units: (\d+)", done.stderr)
    covered = re.findall(r"cov: (\d+)", done.stderr)
    said = f"{int(runs[1]) if runs else 0:>9,} inputs, {covered[-1] if covered else '?':>5} branches"
    if done.returncode == 0 and runs and int(runs[1]):
        return name, True, said
    kept = re.search(r"Test unit written to (\S+)", done.stderr)
    again = f"{sys.executable} -m fuzz.run {name} {kept[1]}" if kept else "no input was kept"
    return name, False, f"{said}\n{(done.stdout.strip() or done.stderr)[-3000:]}\nagain: {again}"


def main() -> int:
    """Run what the command line says; return 1 if there is a finding."""
    from fuzz.targets import TARGETS

    if len(sys.argv) > 2:
        for file in sys.argv[2:]:
            target = TARGETS[sys.argv[1]]
            try:
                target.run(Path(file).read_bytes())
                print(f"{file}: accepted")
            except target.refusals as exc:
                print(f"{file}: refused, as it should be: {type(exc).__name__}: {ascii(str(exc))[:200]}")
        return 0
    seconds, jobs = int(os.environ.get("FUZZ_SECONDS", "60")), int(os.environ.get("FUZZ_JOBS", "2"))
    names = sys.argv[1:] or list(TARGETS)
    print(f"{len(names)} fuzzers for {seconds} s, {jobs} at a time", flush=True)
    started, findings = time.monotonic(), 0
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        for done in concurrent.futures.as_completed([pool.submit(_run, name, seconds) for name in names]):
            name, clean, said = done.result()
            findings += not clean
            print(f"{name:<18} {'no finding' if clean else 'FINDING   '} {said}", flush=True)
    print(f"{findings} findings in {len(names)} fuzzers, {time.monotonic() - started:.0f} s")
    return 1 if findings else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        del sys.argv[1]
        _inside()
    else:
        sys.exit(main())
