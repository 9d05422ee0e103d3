"""Planning: JobSpec -> LaunchPlan, pure data that says exactly what will run and what will be measured.

This is the only module that knows workloads, enclaves and targets; they do not know each other.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from strongroom.attest.binding import init_data_digest, job_init_data
from strongroom.errors import InputError
from strongroom.jobs.spec import JobSpec, job_document

__all__ = ["Bundle", "Command", "Enclave", "LaunchPlan", "Outcome", "Target", "Worker", "Workload", "plan_job"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """What each worker of a job on several machines starts; `{job.address}` and `{job.number}` stand for its own.

    Attributes:
        count: How many there may be at one time.
        argv: Its command.
        environment: Whole environment.
        port: Of the driver's program; a worker starts once it is open.
    """

    count: int
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What a workload starts.

    Attributes:
        argv: Before the program's arguments.
        environment: Whole environment.
        runtimes: Which of base, python, guest, env, library, jdk the enclave must show.
        staged: Volumes are opened into enclave memory before the start and sealed after it; otherwise the workload
            reads and writes sealed files itself, through the key agent.
        worker: For a job on several machines.
    """

    argv: tuple[str, ...]
    environment: Mapping[str, str]
    runtimes: tuple[str, ...]
    staged: bool
    worker: Worker | None = None


class Workload(Protocol):
    """The seam for kinds of program."""

    def command(self, spec: JobSpec) -> Command:
        """Return how to start the program; InputError for settings that would weaken the job."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchPlan:
    """A planned job.

    Attributes:
        spec: The job.
        command: Its workload's command.
        document: The job document.
        init_data: The Initdata text that carries it.
        job: `sha256:<hex>`, the job digest.
    """

    spec: JobSpec
    command: Command
    document: Mapping[str, object]
    init_data: str
    job: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """What an enclave kind built: a folder, and the reference values that a policy can name.

    Attributes:
        folder: Holds `bundle.json` and `init-data.toml`.
        job: The job digest.
        simulated: Whether the measurement comes from a simulated platform.
        measure: Computes the measurement; only `measurement` calls it.
        stores: Volume -> (URL, mode), of those that whoever runs the bundle has to mount.
        remaining: What is still to be done before it can run, a step each, on a machine that has the enclave's tools.
    """

    folder: Path
    job: str
    simulated: bool
    measure: Callable[[], str]
    stores: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    remaining: tuple[str, ...] = ()

    @property
    def measurement(self) -> str:
        """The measurement in hex, computed when it is asked for: a run does not need it, a policy does."""
        return self.measure()

    @property
    def values(self) -> dict[str, str]:
        """The measurement by its name in policies: SGX's, or the launch digest that builds compute with the kernel."""
        found = self.measure()
        return {"measurement" if len(found) == 64 else "snp_measurement": found}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a run ended.

    Attributes:
        status: `completed` (the program ran; see `exit_code`), `refused` (no key was released), `failed` (anything
            else that kept the program or its outputs from finishing).
        exit_code: The program's own, or None if it did not run.
        error: For refused and failed: code, message, hint and details.
        details: What the guest reported: run id, verdict, published data sets.
    """

    status: str
    exit_code: int | None
    error: Mapping[str, object] = field(default_factory=dict)
    details: Mapping[str, object] = field(default_factory=dict)


class Enclave(Protocol):
    """The seam for kinds of TEE."""

    def build(self, plan: LaunchPlan, folder: Path) -> Bundle:
        """Write the bundle of a plan below `folder` and return its reference values."""


class Target(Protocol):
    """The seam for places to run."""

    def run(self, bundle: Bundle, plan: LaunchPlan) -> Outcome:
        """Run the bundle to its end."""


def plan_job(spec: JobSpec, workloads: Mapping[str, Workload], identity: tuple[str, ...]) -> LaunchPlan:
    """Return the plan for `spec`.

    Raises:
        InputError: An unknown workload, a volume or column key twice, or settings the workload refuses.
    """
    if spec.workload not in workloads:
        raise InputError(f"unknown workload {spec.workload!r}", hint=f"known: {', '.join(workloads)}")
    if repeated := _repeated(v.name for v in spec.volumes):
        raise InputError(f"volume name {min(repeated)!r} is used twice")
    if repeated := _repeated(k.name for k in spec.keys):
        raise InputError(f"column key {min(repeated)!r} is named twice")
    if repeated := _repeated(path.name for path in spec.code):
        raise InputError(f"two files of the job are called {min(repeated)!r}", hint="rename one: all lie in /app")
    command = workloads[spec.workload].command(spec)
    if spec.enclave == "occlum" and (named := [v.name for v in spec.volumes if v.manifest]):
        raise InputError(
            f"volume {named[0]}: enclave kind occlum has no attester that could fetch a key from a KBS",
            hint="decisions/0025",
        )
    if spec.keys and command.staged:
        raise InputError(f"workload {spec.workload!r} has no column keys: expected spark", hint="take the key out")
    if spec.checkpoint_s and not command.staged:
        raise InputError(
            f"workload {spec.workload!r} writes its outputs itself: no checkpoints are taken of them",
            hint="a streaming query commits with its own checkpoints; take checkpoint_s (--checkpoint-every) out",
        )
    at_kbs = [v for v in spec.volumes if v.manifest]
    for a, b in itertools.combinations(at_kbs, 2):
        if (
            a.dataset == b.dataset and (a.owner, a.key, a.manifest, a.epoch) != (b.owner, b.key, b.manifest, b.epoch)
        ) or (a.owner == b.owner and a.certificate != b.certificate):
            raise InputError(f"volumes {a.name} and {b.name}: expected one pin of a data set and of a KBS key, got two")
    twice = _repeated(v.dataset for v in spec.volumes)
    if spec.checkpoint_s and twice:
        named = sorted(v.name for v in spec.volumes if v.dataset in twice)
        raise InputError(
            f"volumes {' and '.join(named)} are one data set, which would change as it is read",
            hint="take checkpoint_s (--checkpoint-every) out, or read the volume that is written",
        )
    document = job_document(
        spec,
        command=command.argv,
        environment=command.environment,
        identity=identity,
        staged=command.staged,
    )
    if command.worker is not None:
        _check_peers(spec)
        document["workers"] = {
            "count": command.worker.count,
            "command": list(command.worker.argv),
            "environment": dict(command.worker.environment),
            "port": command.worker.port,
        }
    init_data = job_init_data(document)
    digest = "sha256:" + init_data_digest(init_data).hex()
    return LaunchPlan(spec=spec, command=command, document=document, init_data=init_data, job=digest)


def _repeated(values: Iterable[str]) -> set[str]:
    return {value for value, times in Counter(values).items() if times > 1}


def _check_peers(spec: JobSpec) -> None:
    if spec.sandbox.network:
        raise InputError("a job on several machines has a network of its own: take --network out")
    if all(v.manifest for v in spec.volumes) and not spec.keys:
        raise InputError(
            "a job on several machines needs a key: its policy says which enclaves may be peers",
            hint="`strongroom key create peers`, then --column-key peers",
        )


def describe(plan: LaunchPlan) -> dict[str, object]:
    """Return the plan as JSON-ready data, for `--dry-run`."""
    spec = plan.spec
    return {
        "job": plan.job,
        "enclave": spec.enclave,
        "target": spec.target,
        "runtimes": list(plan.command.runtimes),
        "venv": None if spec.venv is None else str(spec.venv),
        "volumes_staged": plan.command.staged,
        "locations": {v.name: str(v.location) for v in spec.volumes},
        "document": json.loads(json.dumps(dict(plan.document))),
    }
