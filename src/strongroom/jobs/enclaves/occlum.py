"""Enclave kind `occlum`: a bundle for SGX under Occlum, whose processes share one enclave and start by spawn.

Written here: `Occlum.yaml`, and `bom.yaml` with every file of the image by name and digest. Occlum's own tools copy,
hash and sign on a machine that has them. What the host may say at start is a path and arguments, so the one entry point
is a script that takes none: an interpreter there would run whatever the host hands it, under the job's measurement.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from strongroom.errors import InputError, UnavailableError
from strongroom.jobs.enclaves.libos import (
    GUEST_CODE,
    JOB_FOLDER,
    Needs,
    check_job,
    link_volumes,
    needs,
    place_files,
    select_files,
    write_launch,
)
from strongroom.jobs.plan import Bundle, LaunchPlan
from strongroom.jobs.runtimes import Runtimes

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
    "take {folder} to a machine with Occlum 0.30 (its image occlum/occlum has it)",
    "there: occlum new instance && cp Occlum.yaml instance/ && cd instance",
    "there: rm -rf image && copy_bom -f ../bom.yaml --root image --include-dir /opt/occlum/etc/template",
    "there: occlum build --sign-key ../signer.pem, then `occlum print mrenclave`",
    "no keys yet: the guest has no attester for Occlum, which quotes by ioctl on /dev/sgx (docs/hardware-untested.md)",
)


class OcclumEnclave:
    """Builds bundles for Occlum.

    Args:
        runtimes: Where runtimes come from.
        identity_pem: The trust service's identity certificate; the guest checks it against the measured SPKI id.
    """

    def __init__(self, runtimes: Runtimes, *, identity_pem: str) -> None:
        self._runtimes = runtimes
        self._identity_pem = identity_pem

    def build(self, plan: LaunchPlan, folder: Path) -> Bundle:
        """Write the bundle of `plan` below `folder`.

        Raises:
            InputError: The job needs what Occlum lacks, or does not fit its enclave.
        """
        check_job(plan, "occlum", forks=False)
        if plan.spec.sgx.edmm:
            raise InputError("enclave kind occlum: [sgx] edmm is for gramine", hint="Occlum takes it where it is there")
        files = select_files(plan, self._runtimes)
        size = needs(plan, files)
        target = folder / f"occlum-{plan.job.removeprefix('sha256:')[:16]}"
        target.mkdir(parents=True, exist_ok=True, mode=0o700)
        texts = {f"{JOB_FOLDER}/init-data.toml": plan.init_data, ENTRY: _ENTRY_SCRIPT}
        digests = place_files(target / "root", files, texts)
        (target / "root" / ENTRY[1:]).chmod(0o755)
        settings = render_occlum(plan, size)
        text = json.dumps({"settings": settings.splitlines(), "files": digests}, indent=1, sort_keys=True)
        kept = target / "measured.json"
        if kept.exists() and kept.read_text() != text:
            kept.replace(target / "measured.json.before")  # for `job diff`
        kept.write_text(text)
        (target / "Occlum.yaml").write_text(settings)
        (target / "bom.yaml").write_text(render_bom(digests))
        (target / "job.json").write_text(json.dumps(dict(plan.document), indent=1, ensure_ascii=False))
        write_launch(target, self._identity_pem, plan.spec)
        link_volumes(target, plan.spec)

        def measure() -> str:
            raise UnavailableError("the measurement of this enclave is not known yet: Occlum's own tools make it")

        remaining = tuple(step.format(folder=target) for step in _REMAINING)
        return Bundle(folder=target, job=plan.job, simulated=False, measure=measure, remaining=remaining)


def render_occlum(plan: LaunchPlan, size: Needs) -> str:
    """Return Occlum.yaml: equal for equal jobs."""
    user_mb = size.size_mb - size.parts["LibOS"]
    return f"""\
resource_limits:
  num_of_cpus: {size.threads}
  kernel_space_stack_size: 16MB
  kernel_space_heap_size:
    init: {size.parts["LibOS"]}MB
    max: {max(512, size.parts["scratch"])}MB
  user_space_size:
    init: {user_mb}MB
    max: {user_mb}MB
process:
  default_stack_size: {max(4, size.stack_mb)}MB
  default_heap_size: 32MB
entry_points:
  - {Path(ENTRY).parent}
env:
  default:
{"".join(f"    - {json.dumps(f'{name}={value}')}{chr(10)}" for name, value in _ENVIRONMENT.items())}  untrusted: []
metadata:
  product_id: {plan.spec.sgx.product}
  version_number: {plan.spec.sgx.svn}
  debuggable: false
  enable_kss: true
  ext_prod_id:
    high: '0x0'
    low: '0x0'
  pkru: 0
mount:
  - target: /
    type: unionfs
    options:
      layers:
        - target: /
          type: sefs
          source: ./build/mount/__ROOT
          options:
            MAC: ''
        - target: /
          type: sefs
          source: ./run/mount/__ROOT
          options:
            autokey_policy: 1
  - target: /work
    type: ramfs
  - target: /tmp
    type: ramfs
  - target: /run
    type: ramfs
  - target: /sealed
    type: hostfs
    source: ../sealed
  - target: /launch
    type: hostfs
    source: ../launch
"""


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
