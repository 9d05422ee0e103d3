"""The kinds of workload, enclave and target by name: a new one is one file and one line here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from strongroom.errors import InputError
from strongroom.jobs.enclaves.sim import SimulatedEnclave
from strongroom.jobs.plan import Enclave, Workload
from strongroom.jobs.runtimes import Runtimes
from strongroom.jobs.workloads.python import PythonWorkload
from strongroom.jobs.workloads.spark import SparkWorkload
from strongroom.jobs.workloads.torch import TorchWorkload

__all__ = ["ENCLAVES", "SIMULATED", "WORKLOADS", "enclave"]

WORKLOADS: Mapping[str, Workload] = {"python": PythonWorkload(), "spark": SparkWorkload(), "torchrun": TorchWorkload()}
ENCLAVES = ("sim", "gramine", "occlum", "cvm")
SIMULATED = ("sim",)
"""Those that this machine's platform starts, measures and quotes; hardware alone does it for the others."""


def enclave(kind: str, runtimes: Runtimes, *, cache: Path, service: Path, identity_pem: str) -> Enclave:
    """Return what builds enclaves of a kind.

    Args:
        kind: One of `ENCLAVES`.
        runtimes: Where runtimes come from.
        cache: Digest cache.
        service: Folder with the trust service's guest socket, for those that run on its machine.
        identity_pem: The trust service's identity certificate.

    Raises:
        InputError: There is no such kind.
    """
    match kind:
        case "sim":
            return SimulatedEnclave(runtimes, cache=cache, service=service, identity_pem=identity_pem)
        case "gramine":  # those for hardware are imported when one is built
            from strongroom.jobs.enclaves.gramine import GramineEnclave  # noqa: PLC0415

            return GramineEnclave(runtimes, identity_pem=identity_pem)
        case "occlum":
            from strongroom.jobs.enclaves.occlum import OcclumEnclave  # noqa: PLC0415

            return OcclumEnclave(runtimes, identity_pem=identity_pem)
        case "cvm":
            from strongroom.jobs.enclaves.cvm import ConfidentialVM  # noqa: PLC0415

            return ConfidentialVM(runtimes, identity_pem=identity_pem)
    raise InputError(f"enclave kind {kind!r} is not available: expected {' or '.join(ENCLAVES)}")
