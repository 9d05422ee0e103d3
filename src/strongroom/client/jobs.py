"""From what a person types to a bundle that ran: volumes, plan, build, approve, run."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from strongroom._stores import check_folders, is_url, split_url
from strongroom.client.petnames import Petnames
from strongroom.client.workspace import Workspace
from strongroom.config import Settings
from strongroom.crypto.header import check_key_name
from strongroom.errors import InputError
from strongroom.jobs.plan import Bundle, LaunchPlan, Outcome, plan_job
from strongroom.jobs.registry import WORKLOADS, enclave
from strongroom.jobs.runtimes import Runtimes
from strongroom.jobs.spec import Cvm, JobKey, JobSpec, Limits, Location, Sandbox, Sgx, Volume, load_spec
from strongroom.jobs.targets.local import LocalTarget
from strongroom.jobs.targets.mounts import Mounts

if TYPE_CHECKING:
    from strongroom.storage.dataset import DatasetInfo

__all__ = [
    "Datasets",
    "JobRunner",
    "VolumeRequest",
    "mounts",
    "parse_column_key",
    "parse_venv",
    "parse_volume",
    "read_job_file",
    "with_known_paths",
]

_MANIFEST = re.compile(r"sha256:[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")


NOT_YET = "0" * 32
"""The id of a data set that a dry run does not register."""

Datasets = Callable[[str], "DatasetInfo"]
"""Whoever can register a new data set: takes the key, returns the new data set's description."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeRequest:
    """A volume as asked for: `NAME=PATH[:KEY[@OWNER]][:ro|rw[:names]]`.

    Attributes:
        name: The folder under /work.
        path: The sealed folder, or its URL in a store.
        key: Key name, or "" to take the data set's own.
        owner: What this workspace calls the owner of the key; "" for itself.
        mode: `ro` or `rw`.
        epoch: Pinned epoch, or None.
        visible_names: `rw:names`: folders may be called `column=value`.
        manifest: For a key at a KBS, whose URL is `owner`: the manifest to read.
        certificate: And the PEM to check the KBS by.
    """

    name: str
    path: Location
    key: str = ""
    owner: str = ""
    mode: Literal["ro", "rw"] = "ro"
    epoch: int | None = None
    visible_names: bool = False
    manifest: str = ""
    certificate: str = ""


def parse_volume(text: str) -> VolumeRequest:
    """Return the volume in `NAME=PATH[:KEY[@OWNER]][:ro|rw[:names]]`.

    Raises:
        InputError: Another form.
    """
    name, equals, rest = text.partition("=")
    store, rest = split_url(rest)
    path, *options = rest.split(":")
    visible = options[-2:] == ["rw", "names"]
    options = options[:-1] if visible else options
    mode = options.pop() if options and options[-1] in ("ro", "rw") else "ro"
    if not equals or not path or not _NAME.fullmatch(name) or len(options) > 1:
        raise InputError(
            f"volume {text!r}: expected NAME=PATH[:KEY[@OWNER]][:ro|rw[:names]]", hint="--volume sales=sealed/sales:rw"
        )
    key, owner = _key(name, options[0] if options else "")
    return VolumeRequest(
        name=name,
        path=_location(store + path),
        key=key,
        owner=owner,
        mode=cast(Literal["ro", "rw"], mode),
        visible_names=visible,
    )


def _location(text: str) -> Location:
    return text.rstrip("/") if is_url(text) else Path(text)


def parse_column_key(text: str) -> JobKey:
    """Return the column key in `NAME[:ro|rw]`.

    Raises:
        InputError: Another form.
    """
    name, colon, mode = text.partition(":")
    return _column_key(name, mode if colon else "ro")


def parse_venv(text: str | None) -> Path | None:
    """Return the folder of an environment; None if none is named.

    Raises:
        InputError: Its name is empty, as that of a variable that is not set: not the current folder.
    """
    if text == "":
        raise InputError("the environment's name is empty", hint="--venv FOLDER")
    return None if text is None else Path(text)


def _column_key(name: str, mode: object) -> JobKey:
    if mode not in ("ro", "rw"):
        raise InputError(
            f"column key {name!r} has mode {mode!r}: expected ro or rw", hint="ro reads, rw writes as well"
        )
    return JobKey(name=check_key_name(name), mode=mode)


def _key(volume: str, text: str) -> tuple[str, str]:
    key, at, owner = text.partition("@")
    if at and not (key and owner):
        raise InputError(f"volume {volume}: {text!r} is not KEY@OWNER", hint="`strongroom owner list` shows the names")
    return key, owner


def resolve_volume(request: VolumeRequest, datasets: Datasets | None, owners: Petnames) -> Volume:
    """Return the volume with its data set; an empty folder for writing becomes a new data set.

    What a folder says of its owner is a claim: of another owner's data set the request has to say whose it is.

    Raises:
        InputError: The folder is no data set, or is under another key or of another owner.
    """
    at_kbs = bool(request.manifest)
    owner = owners.find(request.owner) if request.owner and not at_kbs else owners.own
    from strongroom.storage.info import read_info, write_info  # noqa: PLC0415  # only volumes need it
    from strongroom.storage.places import place  # noqa: PLC0415  # only volumes need it

    if request.mode == "rw" and isinstance(request.path, str):
        check_folders(request.path)
    folder = place(str(request.path), single=False)
    info = read_info(folder)
    if info is None and (at_kbs or owner != owners.own):
        raise InputError(
            f"volume {request.name}: {request.path} is not a sealed data set",
            hint=f"{request.owner} makes it: `strongroom data create {request.path} --key {request.key}`",
        )
    if info is None:
        if request.mode != "rw" or not request.key or datasets is None:
            raise InputError(
                f"volume {request.name}: {request.path} is not a sealed data set",
                hint=f"seal it first, or give {request.name}=PATH:KEY:rw to write a new one",
            )
        if not folder.is_empty():
            raise InputError(f"volume {request.name}: {request.path} is not empty and not a data set")
        info = datasets(request.key)
        if info.dataset != NOT_YET:
            write_info(folder, info)
    if request.key and request.key != info.key:
        raise InputError(f"volume {request.name}: {request.path} is under key {info.key!r}, not {request.key!r}")
    if info.owner != owner and not at_kbs:
        raise InputError(
            f"volume {request.name}: {request.path} belongs to owner {owners.name(info.owner)}, "
            f"not to {owners.name(owner)}",
            hint=f"name the owner: --volume {request.name}={request.path}:{info.key}@OWNER; `strongroom owner list`",
        )
    return Volume(
        name=request.name,
        location=request.path.resolve() if isinstance(request.path, Path) else request.path,
        dataset=info.dataset,
        key=info.key,
        owner=request.owner if at_kbs else info.owner,
        mode=request.mode,
        epoch=request.epoch,
        visible_names=request.visible_names,
        manifest=request.manifest,
        certificate=request.certificate,
    )


def with_known_paths(
    arguments: Sequence[str], volumes: Sequence[VolumeRequest]
) -> tuple[tuple[str, ...], tuple[VolumeRequest, ...]]:
    """Return arguments and volumes such that paths of sealed data in the arguments work inside the enclave.

    An argument (or the part after its `=`) that names a path in a volume's folder becomes the path under /work. One
    that names a sealed data set which is no volume yet makes it one, read-only, unless it is relative and begins with a
    given volume's name: programs start in /work. URLs of stores are treated alike, but only `hdfs:` is asked for data
    sets that are no volumes: a job with network may have its own use for others.
    """
    known = list(volumes)
    given = {v.name for v in volumes}
    changed = [_known_path(argument, known, given) for argument in arguments]
    return tuple(changed), tuple(known)


def _known_path(argument: str, known: list[VolumeRequest], given: set[str]) -> str:
    head, equals, tail = argument.partition("=")
    option = head + equals if argument.startswith("-") and equals else ""
    text = tail if option else argument
    scheme = next((s for s in ("file://", "sealed://", "file:") if text.startswith(f"{s}/")), "")
    plain = text.removeprefix(scheme)
    if not plain or "\0" in plain or ("://" in plain and not is_url(plain)) or len(plain) > 4096:
        return argument
    store, plain = split_url(plain)
    path = Path(os.path.abspath(plain or "/" if store else plain))
    for candidate in (path, *path.parents):
        location: Location = f"{store}{candidate}".rstrip("/") if store else candidate
        volume = next((v for v in known if _absolute(v.path) == location), None)
        if volume is None and plain.split("/", 1)[0] not in given and _is_dataset(location):
            names = {v.name for v in known}
            base = re.sub(r"[^A-Za-z0-9_.-]", "_", candidate.name).lstrip(".-")[:60] or "data"
            name = next(n for n in (base, *(f"{base}-{i}" for i in range(2, 1000))) if n not in names)
            volume = VolumeRequest(name=name, path=location)
            known.append(volume)
        if volume is not None:
            rest = path.relative_to(candidate).as_posix()
            inside = f"/work/{volume.name}" + ("" if rest == "." else f"/{rest}")
            return option + scheme + inside + ("/" if text.endswith("/") else "")
    return argument


def _absolute(location: Location) -> Location:
    return Path(os.path.abspath(location)) if isinstance(location, Path) else location


def _is_dataset(location: Location) -> bool:
    if isinstance(location, Path):
        return os.path.exists(location / ".dataset" / "id.json")
    if not location.startswith("hdfs://"):
        return False
    from strongroom.storage.info import INFO_PATH  # noqa: PLC0415  # only volumes need it
    from strongroom.storage.places import place  # noqa: PLC0415  # only volumes need it

    return place(location, single=False).stat(INFO_PATH) is not None


def read_job_file(path: Path) -> tuple[JobSpec, tuple[VolumeRequest, ...]]:
    """Return the job in a TOML file, its volumes still to be resolved; paths are relative to the file.

    Raises:
        InputError: See `jobs.spec.load_spec`.
    """
    job, tables, keys = load_spec(path)
    base = path.resolve().parent
    try:
        spec = JobSpec(
            name=str(job.get("name", path.stem)),
            workload=str(job["workload"]),
            program=base / str(job["program"]),
            arguments=tuple(str(a) for a in cast(list[object], job.get("arguments", []))),
            environment={str(k): str(v) for k, v in cast(Mapping[str, object], job.get("environment", {})).items()},
            engine={str(k): _setting(v) for k, v in cast(Mapping[str, object], job.get("engine", {})).items()},
            main_class=str(job.get("main_class", "")),
            files=tuple(base / str(f) for f in cast(list[object], job.get("files", []))),
            sandbox=Sandbox(**cast(dict[str, bool], job["sandbox"])),
            sgx=Sgx(**cast(dict[str, bool], job["sgx"])),
            cvm=_cvm_table(base, cast(dict[str, Any], job["cvm"])),
            limits=Limits(**cast(dict[str, int], job["limits"])),
            keys=tuple(_key_table(table) for table in keys),
            venv=None if (venv := parse_venv(cast(str | None, job.get("venv")))) is None else base / venv,
            publish_on_failure=bool(job.get("publish_on_failure", False)),
            checkpoint_s=int(cast(int, job.get("checkpoint_s", 0))),
            enclave=str(job.get("enclave", "sim")),
            target=str(job.get("target", "local")),
        )
        volumes = tuple(_volume_table(base, table) for table in tables)
    except KeyError as exc:
        raise InputError(f"{path}: {exc.args[0]} is missing") from exc
    except (TypeError, AttributeError, ValueError) as exc:
        raise InputError(f"{path}: a field has the wrong type: {exc}") from exc
    return spec, volumes


def _cvm_table(base: Path, table: dict[str, Any]) -> Cvm:
    paths = {n: str(base / str(table[n])) for n in ("kernel", "modules", "firmware") if table.get(n)}
    return Cvm(**{**table, **paths})


def _setting(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _volume_table(base: Path, table: Mapping[str, object]) -> VolumeRequest:
    mode = table.get("mode", "ro")
    if mode not in ("ro", "rw") or not _NAME.fullmatch(str(table["name"])):
        raise InputError(f"volume {table['name']!r}: expected a plain name and mode ro or rw")
    epoch, visible = table.get("epoch"), table.get("visible_names", False)
    if not isinstance(visible, bool):
        raise InputError(f"volume {table['name']!r}: visible_names is true or false, got {visible!r}")
    at_kbs = str(table.get("key", "")).startswith("kbs+")
    manifest, file = str(table.get("manifest", "")), str(table.get("certificate", ""))
    pinned = mode == "ro" and type(epoch) is int and _MANIFEST.fullmatch(manifest) and file
    if not pinned if at_kbs else manifest or file:
        raise InputError(
            f"volume {table['name']!r}: expected with a key at a KBS (kbs+https://...), and with no other: mode ro, "
            "epoch, manifest (sha256:...) and certificate (a file in PEM)",
            hint="`strongroom data show FOLDER` prints epoch and manifest",
        )
    key, owner = ("", str(table["key"])) if at_kbs else _key(str(table["name"]), str(table.get("key", "")))
    return VolumeRequest(
        name=str(table["name"]),
        path=table_path if isinstance(table_path := _location(str(table["path"])), str) else base / table_path,
        key=key,
        owner=owner,
        mode=mode,
        epoch=None if epoch is None else int(cast(int, epoch)),
        visible_names=visible,
        manifest=manifest,
        certificate=_kbs_certificate(owner, base / file) if at_kbs else "",
    )


def _kbs_certificate(url: str, path: Path) -> str:
    from strongroom.attest.kbs import KBSKey  # noqa: PLC0415  # few jobs have such a key
    from strongroom.crypto import x509  # noqa: PLC0415

    KBSKey.parse(url)
    try:
        return x509.certificate_pem(x509.certificate_from_pem(path.read_text()))
    except (OSError, UnicodeDecodeError) as exc:
        raise InputError(f"{path} is not readable: {exc}", hint="the KBS' certificate, in PEM") from exc


def _key_table(table: Mapping[str, object]) -> JobKey:
    return _column_key(str(table["name"]), table.get("mode", "ro"))


def mounts(workspace: Workspace, settings: Settings) -> Mounts:
    """Return what mounts folders of stores for a workspace."""
    return Mounts(folder=workspace.folder / "mounts", locks=settings.cache / "stores")


class JobRunner:
    """Plans, builds and runs jobs of a workspace.

    Args:
        workspace: The workspace.
        settings: Program settings.
        progress: Told about slow first-time steps.
    """

    def __init__(
        self, workspace: Workspace, settings: Settings, progress: Callable[[str], None] = lambda _line: None
    ) -> None:
        self._workspace = workspace
        self._settings = settings
        self._progress = progress

    def plan(self, spec: JobSpec, volumes: Sequence[VolumeRequest], datasets: Datasets | None = None) -> LaunchPlan:
        """Return the plan of a job; one with `--master spark://...` is for the workspace's cluster."""
        if spec.target == "cluster" or spec.engine.get("spark.master", "").startswith("spark://"):
            from strongroom.client.cluster import Cluster  # noqa: PLC0415  # 15 ms that most jobs do not need

            cluster = Cluster.load(self._workspace)
            if spec.venv is not None and spec.venv.resolve() != cluster.environment:
                raise InputError(
                    "a job on the cluster runs with the packages that were deployed: take the environment out",
                    hint=f"or deploy it first: `strongroom cluster deploy --venv {spec.venv}`",
                )
            spec = replace(spec, target="cluster", venv=cluster.environment, workers=len(cluster.hosts))
        owners = Petnames.load(self._workspace)
        resolved = tuple(resolve_volume(v, datasets, owners) for v in volumes)
        keys = tuple(replace(k, owner=self._workspace.owner) for k in spec.keys)
        return plan_job(replace(spec, volumes=resolved, keys=keys), WORKLOADS, (self._workspace.identity,))

    def build(self, plan: LaunchPlan) -> Bundle:
        """Build the plan's bundle."""
        cache = self._settings.cache
        kind = enclave(
            plan.spec.enclave,
            Runtimes(cache / "runtimes", self._progress),
            cache=cache / "digests",
            service=self._workspace.guest_socket_folder,
            identity_pem=self._workspace.identity_pem,
        )
        return kind.build(plan, self._workspace.folder / "bundles")

    def run(self, plan: LaunchPlan, bundle: Bundle, *, output_to_stderr: bool = False) -> Outcome:
        """Run a built job to its end; starts an embedded service that is not running."""
        if plan.spec.enclave != "sim":
            raise InputError(
                f"enclave kind {plan.spec.enclave} does not run on this machine's targets",
                hint=f"its bundle {bundle.folder} runs on a machine that has it: docs/guides/hardware.md",
            )
        if plan.spec.target not in ("local", "cluster"):
            raise InputError(f"target {plan.spec.target!r} is not available: expected local or cluster")
        if self._workspace.embedded:
            self._refresh_endorsements()
        self._workspace.ensure_running()
        seed, cache = self._workspace.seed, self._settings.cache / "digests"
        local = LocalTarget(
            seed=seed, cache=cache, mounts=mounts(self._workspace, self._settings), output_to_stderr=output_to_stderr
        )
        if plan.command.worker is None:
            return local.run(bundle, plan)
        from strongroom.jobs.targets.cluster import ClusterTarget, LocalHost, WorkerHost  # noqa: PLC0415  # see `plan`

        hosts: Sequence[WorkerHost] = [LocalHost(seed=seed, cache=cache)]
        if plan.spec.workers:
            from strongroom.client.cluster import Cluster  # noqa: PLC0415

            cluster = Cluster.load(self._workspace)
            if not cluster.started:
                raise InputError("this workspace's cluster is not started", hint="`strongroom cluster start`")
            if bundle.stores:
                raise InputError(
                    f"volume {min(bundle.stores)} lies in a store, which other machines do not mount yet",
                    hint="use a folder that all machines have, or local-cluster[N,cores,MiB]",
                )
            hosts = cluster.machines(self._workspace, self._settings, self._progress)
        return ClusterTarget(driver=local, hosts=hosts, say=self._progress).run(bundle, plan)

    def _refresh_endorsements(self) -> None:
        # The simulated platform's maker has no web service: its endorsements are renewed here once a day.
        found = self._workspace.service_folder / "endorsements" / "simulated.json"
        now = datetime.now(UTC)
        if not found.exists() or now.timestamp() - found.stat().st_mtime > 86_400:
            from strongroom.client.endorsements import refresh_endorsements  # noqa: PLC0415  # 60 ms, once a day

            refresh_endorsements(self._workspace.folder, now=now)
