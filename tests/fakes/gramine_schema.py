"""Which manifests Gramine takes: the keys and values of its own schema (1.9), and what its loader refuses later."""

import re
import tomllib
from collections.abc import Callable
from typing import Any

Check = Callable[[Any], bool]


def text(value: Any) -> bool:
    return isinstance(value, str)


def truth(value: Any) -> bool:
    return isinstance(value, bool)


def number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def one_of(*values: str) -> Check:
    return lambda value: value in values


def texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(text, value))


def size(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"\d+[KMG]?", value) is not None


def variables(value: Any) -> bool:
    return isinstance(value, dict) and all(
        text(v) or (isinstance(v, dict) and (v == {"passthrough": True} or (set(v) == {"value"} and text(v["value"]))))
        for v in value.values()
    )


def mount(value: Any) -> bool:
    shapes = {
        "chroot": ({"path", "uri"}, {"type"}),
        "encrypted": ({"path", "uri", "type"}, {"key_name", "enable_recovery"}),
        "tmpfs": ({"path", "type"}, {"uri"}),
        "untrusted_shm": ({"path", "uri", "type"}, set()),
    }
    need, may = shapes[value.get("type", "chroot")]
    return need <= set(value) <= need | may and str(value["path"]).startswith("/")


def trusted(value: Any) -> bool:
    return text(value) or (
        set(value) == {"uri", "sha256"} and re.fullmatch("[0-9a-f]{64}", value["sha256"]) is not None
    )


SCHEMA: dict[str, dict[str, Check]] = {
    "libos": {"entrypoint": text, "check_invalid_pointers": truth},
    "loader": {
        "entrypoint": lambda v: {"uri"} <= set(v) <= {"uri", "sha256"}, "argv": texts, "argv_src_file": text,
        "env": variables, "env_src_file": text, "uid": number, "gid": number, "log_file": text,
        "log_level": one_of("none", "error", "warning", "debug", "trace", "all"),
        "insecure__use_cmdline_argv": truth, "insecure__use_host_env": truth, "insecure__disable_aslr": truth,
    },
    "fs": {
        "mounts": lambda v: all(map(mount, v)), "root": lambda v: mount({**v, "path": "/"}), "start_dir": text,
        "insecure__keys": lambda v: all(map(text, v.values())),
    },
    "sys": {
        "stack": lambda v: set(v) == {"size"} and size(v["size"]),
        "brk": lambda v: set(v) == {"max_size"} and size(v["max_size"]),
        "fds": lambda v: set(v) == {"limit"} and number(v["limit"]),
        "enable_sigterm_injection": truth, "enable_extra_runtime_domain_names_conf": truth,
        "disallow_subprocesses": truth, "experimental__enable_flock": truth, "insecure__allow_eventfd": truth,
    },
    "sgx": {
        "debug": truth, "edmm_enable": truth, "enclave_size": size, "max_threads": number, "isvprodid": number,
        "isvsvn": number, "remote_attestation": one_of("none", "dcap"), "allowed_files": texts,
        "file_check_policy": one_of("strict", "allow_all_but_log"), "trusted_files": lambda v: all(map(trusted, v)),
        "use_exinfo": truth, "preheat_enclave": truth, "enable_stats": truth, "vtune_profile": truth,
        "insecure__rpc_thread_num": number,
    },
}  # fmt: skip


def refusals(manifest: str) -> list[str]:
    """Return every reason why Gramine would not take a manifest; "" there is none."""
    value, found = tomllib.loads(manifest), []
    for table, fields in value.items():
        for name, field in fields.items() if isinstance(fields, dict) else ():
            check = SCHEMA.get(table, {}).get(name)
            if check is None or not check(field):
                found.append(f"{table}.{name}: {field!r:.80}")
    found += [f"unknown: {table}" for table in set(value) - set(SCHEMA)]
    found += [f"missing: {table}" for table in {"libos", "loader", "fs"} - set(value)]
    sgx, loader = value.get("sgx", {}), value.get("loader", {})
    if isinstance(enclave := sgx.get("enclave_size", "256M"), str) and size(enclave):
        bytes_ = int(enclave.rstrip("KMG")) << {"K": 10, "M": 20, "G": 30}.get(enclave[-1], 0)
        found += [f"size is no power of two: {enclave}"] if bytes_ < 1 or bytes_ & (bytes_ - 1) else []
    found += ["max_threads is not positive"] if sgx.get("max_threads", 4) < 1 else []
    found += [f"{n}: 16 bits" for n in ("isvprodid", "isvsvn") if not 0 <= sgx.get(n, 0) <= 0xFFFF]
    ways = {"argv", "argv_src_file", "insecure__use_cmdline_argv"} & set(loader)
    return found + ([f"exclusive: {sorted(ways)}"] if len(ways) > 1 else [])
