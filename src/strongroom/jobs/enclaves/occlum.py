"""Enclave kind `occlum`: a bundle for SGX under Occlum, whose processes share one enclave and start by spawn.

Written here: `Occlum.json`, and `bom.yaml` with every file of the image by name and digest. Occlum's own tools copy,
hash and sign on a machine that has them. What the host may say at start is a path and arguments, so the one entry point
is a script that takes none: an interpreter there would run whatever the host hands it, under the job's measurement.

The measurement does not hold against the host (docs/decisions/0018-guests-under-a-libos.md): what Occlum puts into
MRENCLAVE for its settings and the image is a GMAC under a key of zeros, for which anybody makes other files.

Source: Occlum 0.31, tools/gen_internal_conf (0.30 reads the same; 1.0, of which there are previews, has a file of
another form, and MRENCLAVE does not cover it at all).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from strongroom.errors import InputError, UnavailableError
from strongroom.jobs.differences import keep_build
from strongroom.jobs.enclaves.libos import GUEST_CODE, HardwareEnclave, Needs, begin_bundle
from strongroom.jobs.plan import Bundle, LaunchPlan

__all__ = ["OcclumEnclave", "render_bom", "render_occlum"]

ENTRY = "/strongroom/bin/guest"
# Occlum reads no options of an interpreter from a script's first line: they are in the environment.
_ENTRY_SCRIPT = f"#!/opt/python/bin/python3\n{GUEST_CODE}\n"
_ENVIRONMENT = {
    "HOME": "/work",
    "LANG": "C.UTF-8",
    "LD_LIBRARY_PATH": "/opt/occlum/glibc/lib:/usr/lib/x86_64-linux-gnu:/opt/env/lib",
    "PATH": "/opt/python/bin:/usr/bin",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONNOUSERSITE": "1",
    "PYTHONSAFEPATH": "1",
    "TMPDIR": "/tmp",  # noqa: S108  # enclave memory
    "TZ": "UTC",
}
_REMAINING = (
    "take {folder} to a machine with SGX, DCAP and Occlum 0.30.1 or 0.31 (its images occlum/occlum have it)",
    "there: occlum new instance && cp Occlum.json instance/ && cd instance",
    "there: rm -rf image && copy_bom -f ../bom.yaml --root image --include-dir /opt/occlum/etc/template",
    "there: openssl genrsa -3 -out ../key.pem 3072 && occlum build --sign-key ../key.pem && occlum print mrenclave",
    "to run: in instance, occlum run {entry}; then launch/report.json says how it went",
)


class OcclumEnclave(HardwareEnclave):
    """Builds bundles for Occlum."""

    def build(self, plan: LaunchPlan, folder: Path) -> Bundle:
        """Write the bundle of `plan` below `folder`.

        Raises:
            InputError: The job needs what Occlum lacks, or does not fit its enclave.
        """
        if plan.spec.sgx.edmm:
            raise InputError("enclave kind occlum: [sgx] edmm is for gramine", hint="Occlum takes it where it is there")
        texts = {ENTRY: _ENTRY_SCRIPT}
        target, size, digests = begin_bundle(
            plan, folder, "occlum", self.runtimes, self.identity_pem, forks=False, texts=texts
        )
        (target / "root" / ENTRY[1:]).chmod(0o755)
        settings = render_occlum(plan, size)
        text = json.dumps({"settings": settings.splitlines(), "files": digests}, indent=1, sort_keys=True)
        keep_build(target / "measured.json", text)
        (target / "Occlum.json").write_text(settings)
        (target / "bom.yaml").write_text(render_bom(digests))

        def measure() -> str:
            raise UnavailableError(
                "the measurement of this enclave is not known to a build: Occlum's own tools make it",
                hint="take what `occlum print mrenclave` says, and repeat with --measurement HEX",
            )

        remaining = tuple(step.format(folder=target, entry=ENTRY) for step in _REMAINING)
        return Bundle(folder=target, job=plan.job, simulated=False, measure=measure, remaining=remaining)


def render_occlum(plan: LaunchPlan, size: Needs) -> str:
    """Return Occlum.json: equal for equal jobs."""
    kernel_mb = size.parts["LibOS"] + size.parts["scratch"]  # memory file systems are in the LibOS' own heap
    user, kernel = f"{size.size_mb - kernel_mb}MB", f"{kernel_mb}MB"
    nothing = {"high": "0x0", "low": "0x0"}
    layers = [
        {"target": "/", "type": "sefs", "source": "./build/mount/__ROOT", "options": {"MAC": ""}},
        # Made anew at each start: what lies there was written by whoever has the signer's key, and covers the image.
        {"target": "/", "type": "sefs", "source": "./run/mount/__ROOT", "options": {"temporary": True}},
    ]
    settings = {
        "resource_limits": {
            "kernel_space_heap_size": kernel,
            "kernel_space_heap_max_size": kernel,
            "kernel_space_stack_size": "1MB",
            "user_space_size": user,
            "user_space_max_size": user,
            "max_num_of_threads": size.threads,
        },
        "process": {
            "default_stack_size": f"{max(4, size.stack_mb)}MB",
            "default_heap_size": "32MB",
            "default_mmap_size": "32MB",
        },
        "entry_points": [str(Path(ENTRY).parent)],
        "env": {"default": [f"{name}={value}" for name, value in _ENVIRONMENT.items()], "untrusted": []},
        "metadata": {
            "product_id": plan.spec.sgx.product,
            "version_number": plan.spec.sgx.svn,
            "debuggable": False,
            "disable_log": True,  # it may print data
            "enable_kss": False,  # with it, the host would choose the config id
            "family_id": nothing,
            "ext_prod_id": nothing,
        },
        "feature": {"amx": 0, "pkru": 0, "io_uring": 0, "enable_edmm": False, "enable_posix_shm": False},
        "mount": [
            {"target": "/", "type": "unionfs", "options": {"layers": layers}},
            *({"target": path, "type": "ramfs"} for path in ("/work", "/tmp", "/run")),  # noqa: S108
            *({"target": f"/{name}", "type": "hostfs", "source": f"../{name}"} for name in ("sealed", "launch")),
        ],  # Occlum adds /proc, and /dev with its device for quotes
    }
    return json.dumps(settings, indent=1) + "\n"


def render_bom(digests: Mapping[str, str]) -> str:
    """Return bom.yaml: Occlum's own C library, and every file by name and digest.

    Raises:
        InputError: A name that Occlum would expand.
    """
    folders: dict[str, list[str]] = {}
    for name in sorted(digests):
        if "$" in name:
            raise InputError(f"{name} cannot be in an image of Occlum, which expands variables in names")
        folders.setdefault(name.rpartition("/")[0], []).append(name)
    lines = ["includes:", "  - base.yaml", "targets:"]
    lines += ["  - target: /", "    mkdirs: [work, tmp, run, sealed, launch]"]
    for folder, names in folders.items():
        source = json.dumps(f"../root/{folder}", ensure_ascii=False)
        lines += [f"  - target: {json.dumps('/' + folder, ensure_ascii=False)}", "    copy:", f"      - from: {source}"]
        lines.append("        files:")
        for name in names:
            base = json.dumps(name.rpartition("/")[2], ensure_ascii=False)
            # Occlum looks for what a program links to, which brings its own C library in; the rest is listed.
            starts = str(name in ("opt/python/bin/python3", "opt/jdk/bin/java")).lower()
            digest = json.dumps(digests[name].upper())  # in quotes: some digests would be numbers
            lines.append(f"          - {{ name: {base}, hash: {digest}, autodep: {starts} }}")
    return "\n".join(lines) + "\n"
