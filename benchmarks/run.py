"""`make bench`: run every benchmark in one go and write benchmarks/RESULTS.md."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import (
    bench_builds,
    bench_environment,
    bench_jvm,
    bench_launch,
    bench_network,
    bench_service,
    bench_spark,
    bench_storage,
    bench_tables,
    bench_tpch,
    bench_training,
    bench_verification,
    bench_views,
)

RESULTS = Path(__file__).parent / "RESULTS.md"
RAW = Path(__file__).parent / "results.json"
_Figures = dict[str, object]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="Small inputs: a smoke test, writes nothing.")
    parts: dict[str, Callable[[bool], _Figures]] = {
        "storage": bench_storage.run,
        "launch": bench_launch.run,
        "environment": bench_environment.run,
        "views": bench_views.run,
        "training": bench_training.run,
        "service": bench_service.run,
        "verification": bench_verification.run,
        "builds": bench_builds.run,
        "spark": bench_spark.run,
        "jvm": bench_jvm.run,
        "network": bench_network.run,
        "tables": bench_tables.run,
        **bench_tpch.parts(),
    }
    parser.add_argument("--only", nargs="+", choices=list(parts))
    options = parser.parse_args()
    found: dict[str, _Figures] = {}
    for name, part in parts.items():
        if not options.only or name in options.only:
            print(f"running {name} ...", file=sys.stderr, flush=True)
            found[name] = part(options.quick)
            print(json.dumps(found[name]), file=sys.stderr, flush=True)
            if not options.quick:  # after each part: the whole takes an hour
                keep(name, found[name])
    if options.quick:
        print(json.dumps(found, indent=1))
    return 0


def keep(name: str, figures: _Figures) -> None:
    known: dict[str, _Figures] = json.loads(RAW.read_text()) if RAW.exists() else {}
    known[name] = {**figures, "measured": f"{datetime.now(UTC):%Y-%m-%d}, commit {commit()}"}
    RAW.write_text(json.dumps(known, indent=1) + "\n")
    RESULTS.write_text(report(known))


def commit() -> str:
    return subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()


def machine() -> str:
    cpus = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    model = cpus[0].partition(":")[2].strip() if cpus else platform.machine()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{model}, {os.cpu_count()} cores, {memory:.0f} GiB, Linux {platform.release()}"


def report(found: dict[str, _Figures]) -> str:
    lines = ["# Benchmarks", ""]
    lines += [
        f"`make bench` on {machine()}. Each part says when and at which commit it was measured (raw figures).",
        "",
    ]
    lines += ["Every ratio is against a baseline measured side by side in the same run.", ""]
    lines += storage(found["storage"]) + launch(found["launch"])
    lines += environment(found["environment"]) if "environment" in found else []
    lines += views(found["views"]) if "views" in found else []
    lines += training(found["training"]) if "training" in found else []
    lines += (
        service(found["service"])
        + verification(found["verification"])
        + builds(found["builds"])
        + spark(found["spark"])
    )
    lines += tables(found["tables"]) if "tables" in found else []
    lines += jvm(found["jvm"]) if "jvm" in found else []
    lines += network(found["network"]) if "network" in found else []
    lines += tpch({name.removeprefix("tpch "): f for name, f in found.items() if name.startswith("tpch ")})
    lines += ["## Raw figures", "", "```json", json.dumps(found, indent=1), "```", ""]
    return "\n".join(lines)


def launch(f: _Figures) -> list[str]:
    return [
        "## Launch, attestation, release",
        "",
        "`strongroom run -- python -c pass` against `python -c pass`, service running, alternating, medians.",
        "",
        "| | ms | asked |",
        "| --- | --- | --- |",
        f"| plain Python | {f['plain_ms']} | |",
        f"| trusted | {f['trusted_ms']} | |",
        f"| added: launch and attestation | {f['added_ms']} (best {f['added_ms_best']}) | at most 500, target 200 |",
        f"| added, with a key released and an output volume | {f['added_with_key_ms']} | |",
        "",
        f"Memory: trust service {f['service_rss_mb']} MB, guest {f['guest_rss_mb']} MB resident (asked: under 150 each).",
        "",
    ]


def environment(f: Any) -> list[str]:
    s = f["launch_s"]
    how = f"`--venv` with an environment of {f['mb']} MB in {f['files']} files, built in {f['build_s']} s; `{f['program']}`, medians, alternating."
    lines = ["## A job with an environment of its own", "", how, "", "| | s | asked |", "| --- | --- | --- |"]
    lines += [f"| plain Python, the same packages | {s['plain']} | |", f"| trusted | {s['trusted']} | |"]
    lines += [f"| added | {f['added_s']} | at most 1.5 |", f"| trusted, the first time | {s['first']} | |"]
    return [*lines, f"| trusted, without `--venv`, `pass` | {s['usual packages']} | |", ""]


def views(f: Any) -> list[str]:
    how = f"Files of {f['bytes_each'] >> 20} MiB on disk, each read once by a mount that has read nothing yet; writes into a job's scratch "
    how += "memory. Until safe: with fsync, trusted with sealing, flushing and commit. Of a file that was there before and is changed here "
    how += "and there, gocryptfs writes what changed, a job seals all (decision 1); the figure counts what changed. "
    how += f"MB/s, medians; {f['gocryptfs']}. Asked: faster than gocryptfs."
    sides = list(f["mb_per_s"])
    lines = [
        "## Views",
        "",
        how,
        "",
        f"| | {' | '.join(sides)} | trusted / gocryptfs |",
        "| --- |" + " --- |" * (len(sides) + 1),
    ]
    for what, trusted in f["mb_per_s"]["trusted"].items():
        ratio = trusted / other if (other := f["mb_per_s"].get("gocryptfs", {}).get(what)) else 1
        figures = " | ".join(str(f["mb_per_s"][side][what]) for side in sides)
        lines.append(f"| {what} | {figures} | {round(ratio, 2) if other else ''}{' **slower**' if ratio < 1 else ''} |")
    return [*lines, "", "![views](plots/views.svg)", ""]


def training(f: Any) -> list[str]:
    how = f"LeNet on MNIST (examples/mnist-torch), seconds of an epoch after the first; {f['pairs']} alternating pairs of "
    how += f"{f['epochs']} epochs, medians. The product is of 2000 x 2000 doubles, best of all. The model of {f['model']['mb']} MB is saved, "
    how += "sealed as it is saved (`models.save(..., straight=True)`), and loaded by another job with every tensor touched, on tmpfs; plain is safetensors alone."
    how += " Without `straight`, which is the default, it was 1.92 of safetensors on the same machine (2026-11-27)."
    lines = [
        "## Training and models",
        "",
        how,
        "",
        "| | plain s | trusted s | ratio | asked |",
        "| --- | --- | --- | --- | --- |",
    ]
    cases = [
        ("epoch", "an epoch", "at most 1.05"),
        ("dot", "NumPy dot", "at most 1.02"),
        ("two", "an epoch, two processes: torchrun with gloo / two enclaves", ""),
    ]
    lines += [
        f"| {name} | {f[c]['plain_s']} | {f[c]['trusted_s']} | {f[c]['ratio']} | {asked} |" for c, name, asked in cases
    ]
    parts = f["model"]["s"]
    for step in ("save", "seal", "load"):
        lines.append(f"| model: {step} | {parts.get(f'plain {step}', '')} | {parts[f'trusted {step}']} | | |")
    lines.append(f"| model: all | | | {f['model']['ratio']} | at most 1.5, target 1.2 |")
    return [*lines, "", "![accuracy](plots/accuracy.svg)", ""]


def service(f: _Figures) -> list[str]:
    guests = f["guests"]
    assert isinstance(guests, dict)
    lines = ["## Key releases", ""]
    lines += ["Whole RCAR exchange over TLS (auth, attest, release); the guests share the cores.", ""]
    lines += ["| guests | exchanges/s | exchange p50/p99 ms | release p50/p99 ms |", "| --- | --- | --- | --- |"]
    for number, g in guests.items():
        lines.append(
            f"| {number} | {g['exchanges_per_s']} | {g['exchange_p50_ms']} / {g['exchange_p99_ms']} "
            f"| {g['release_p50_ms']} / {g['release_p99_ms']} |"
        )
    if isinstance(per_core := f.get("exchanges_per_s_and_core"), dict) and isinstance(steps := f["breakdown"], dict):
        rates = " and ".join(f"{rate} a second and core ({how})" for how, rate in per_core.items())
        how = f"The service alone, {f['rounds']} exchanges, one guest: {rates}. Where its time goes, mean of an exchange; the steps in one "
        how += "process on one thread, the last two rows what the service's process uses beyond them, over the Unix socket."
        lines += ["", how, "", "| step | ms of CPU | ms |", "| --- | --- | --- |"]
        lines += [f"| {name} | {step['cpu_ms']} | {step['ms']} |" for name, step in steps.items()]
    return [*lines, ""]


def verification(f: _Figures) -> list[str]:
    lines = [
        "## Verification of quotes",
        "",
        "Per second and core; ratios of time to dcap-qvl alone in the same run, of SGX 3, TDX 4 and SNP at most 1.3 asked.",
        "SGX 4 and 5 and SNP, which dcap-qvl does not take, against what it needs for SGX 3; SNP also against what cannot",
        "be saved of it, the signature over the report.",
        "",
    ]
    lines += [
        "| | dcap-qvl alone | ours | ratio | ours, a machine's first quote | ratio |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, v in f.items():
        if isinstance(v, dict):
            lines.append(
                f"| {name} | {v['alone_per_s']} | {v['ours_per_s']} | {v['ratio']} | {v['first_per_s']} | {v['ratio_first']} |"
            )
    return [*lines, ""]


def builds(f: _Figures) -> list[str]:
    lines = [
        "## Building for SGX",
        "",
        "`strongroom job build` for Gramine, start of the command included; hashing is SHA-256 of the same files on one core.",
        "",
        "| program | trusted files | MB | first s | again s | program changed s | asked | hashing alone s | changed / hashing |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, b in f.items():
        if isinstance(b, dict):
            lines.append(
                f"| {name} | {b['files']} | {b['mb']} | {b['first_s']} | {b['again_s']} | {b['changed_s']} | under 2 "
                f"| {b['hashing_s']} | {b['ratio']} |"
            )
    return [*lines, ""]


def spark(f: _Figures) -> list[str]:
    return [
        "## The demo's Spark job",
        "",
        f"TPC-H report, scale {f['scale']}, `local[2]`, csv in and out, start-up excluded, best of {f['rounds_each']} "
        + f"rounds in each of {f['pairs']} alternating pairs.",
        "",
        "| plain s | trusted s | ratio |",
        "| --- | --- | --- |",
        f"| {f['plain_s']} | {f['trusted_s']} | {f['ratio']} |",
        "",
    ]


def tables(f: _Figures) -> list[str]:
    plain, trusted, ratios, arrow, sizes = f["plain"], f["trusted"], f["ratios"], f["pyarrow"], f["bytes"]
    assert isinstance(plain, dict)
    assert isinstance(trusted, dict)
    assert isinstance(ratios, dict)
    assert isinstance(arrow, dict)
    assert isinstance(sizes, dict)
    lines = ["## Scan and write", ""]
    files = ", ".join(f"{name} {size / 1e9:.2f} GB" for name, size in sizes.items())
    how = f"`local[2]`, best of {f['rounds']} rounds, {f['pairs']} alternating pairs, start-up apart."
    lines += [f"TPC-H {files}; {how}", ""]
    lines += ["| | plain s | trusted s | ratio | asked |", "| --- | --- | --- | --- | --- |"]
    lines += [f"| {n} | {plain[n]} | {trusted[n]} | {ratios[n]} | at most 1.10 |" for n in plain]
    lines += [f"| {n} | | {trusted[n]} | | |" for n in trusted if n not in plain]
    lines += [f"| {n} | | | {ratios[n]} | |" for n in ratios if n not in plain]
    lines += [
        f"| PyArrow reads the same, keyed / plain | {arrow['plain_s']} | {arrow['keyed_s']} | {arrow['ratio']} | |",
        "",
    ]
    return lines


def jvm(f: _Figures) -> list[str]:
    speeds, ratios = f["gb_per_s_and_core"], f["ratios"]
    assert isinstance(speeds, dict)
    assert isinstance(ratios, dict)
    lines = ["## The sealed stream in the JVM", ""]
    lines += [f"{f['mib']} MiB, chunks of 16 KiB, one thread, GB a second of CPU time, best of 6 rounds.", ""]
    lines += ["| | GB/s |", "| --- | --- |", *(f"| {name} | {speed} |" for name, speed in speeds.items())]
    return [*lines, *(f"| {name} | {ratio} |" for name, ratio in ratios.items()), ""]


def network(f: _Figures) -> list[str]:
    between, inside, ratio = f["between_gb_per_s"], f["loopback_gb_per_s"], f["ratio"]
    said = (
        f"One TCP connection between two enclaves on this machine: {between} GB/s; loopback inside one: {inside} GB/s "
    )
    said += f"(ratio {ratio}). Both ends, both guests and the TLS share the cores."
    return ["## The network of a job", "", said, ""]


def tpch(f: _Figures) -> list[str]:
    if not f:
        return []
    how = "`local[2]`; sealed tables in and sealed json out, shuffle and spill in enclave memory (SIMULATED enclave) against plain "
    how += "Spark on plain files. Sum of each query's best round; alternating pairs; start-up apart."
    lines = ["## TPC-H, 22 queries", "", how, ""]
    lines += ["| tables, scale | rounds, pairs | plain s | trusted s | ratio | asked | whole run plain / trusted s |"]
    lines += ["| --- | --- | --- | --- | --- | --- | --- |"]
    cases = {name: g for name, g in f.items() if isinstance(g, dict)}
    for name, g in cases.items():
        lines.append(
            f"| {name} | {g['rounds']}, {g['pairs']} | {g['plain_s']} | {g['trusted_s']} | {g['ratio']} | at most 1.10 "
            f"| {g['whole_run_plain_s']} / {g['whole_run_trusted_s']} |"
        )
    plots = [f"tpch-{name.replace(' ', '-')}" for name in cases]
    return [
        *lines,
        "",
        *(f"![{plot}](plots/{plot}.svg)\n" for plot in plots),
        "![by scale](plots/tpch-ratio-by-scale.svg)",
        "",
    ]


def storage(f: Any) -> list[str]:
    memory, disk, tree, rss = f["tmpfs_one_core"], f["disk"], f["tree_tmpfs"], f["peak_rss_mb"]
    how = f"A file of {memory['bytes'] / 2**30:.0f} GiB. `openssl speed` on 16 KiB ran before and after each step; a copy "
    how += "reads and writes the same bytes and is what the file system alone costs (decisions/0007)."
    lines = ["## Sealing and opening", "", how, ""]
    lines += ["| | GB/s | of openssl | of the copy | asked |", "| --- | --- | --- | --- | --- |"]
    lines.append(f"| sealing without a file | {_speed(memory['no_file'])} | | |")
    for name, where, step in (
        ("copy, tmpfs, one core", memory, "copy"),
        ("seal, tmpfs, one core", memory, "seal"),
        ("open, tmpfs, one core", memory, "open"),
        ("copy and fsync, disk", disk, "copy_fsync"),
        ("seal and fsync, disk", disk, "seal_fsync"),
        ("open and fsync, disk", disk, "open_fsync"),
    ):
        asked = "at least 0.30 of openssl, target 0.45" if where is memory and step != "copy" else ""
        lines.append(f"| {name} | {_speed(where[step])} | {where[step].get('of_copy', '')} | {asked} |")
    for name, other in disk["others"].items():
        figure, times = (other["gb_s"], other["ours_is_times"]) if isinstance(other, dict) else (other, "")
        lines.append(f"| {name} and fsync, disk | {figure} | | | sealing is {times} times as fast; asked: faster |")
    how = f"A tree of {tree['files']} files of {tree['bytes_each'] >> 20} MiB on tmpfs, process start and every fsync included; "
    how += "the copy is by as many processes of `cp`."
    lines += ["", how, ""]
    lines += ["| | one worker GB/s | two GB/s | ratio | asked |", "| --- | --- | --- | --- | --- |"]
    for step in ("copy", "seal", "verify", "open"):
        one, two = tree[f"{step}_1_worker_gb_s"], tree[f"{step}_2_worker_gb_s"]
        lines.append(
            f"| {step} | {one} | {two} | {tree[f'{step}_scaling']} | {'at least 1.7' if step == 'seal' else ''} |"
        )
    lines += [
        "",
        f"Memory of a process that seals and opens 1 MiB: {rss['small']} MB; 1 GiB: {rss['large']} MB (asked: under 200).",
    ]
    return [*lines, ""]


def _speed(step: Any) -> str:
    return f"{step['gb_s']} | {step['of_openssl']}"


if __name__ == "__main__":
    sys.exit(main())
