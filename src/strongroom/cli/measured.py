"""What a job measures, as its owner says it where no build can: Occlum's and a maker's own tools, a TDX machine."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from strongroom.errors import InputError

if TYPE_CHECKING:
    from strongroom.jobs.plan import Bundle

__all__ = ["measured_options", "measured_values"]


def measured_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command what its caller says that the job measures, as its argument `named`: name -> hex."""

    @click.option("--measurement", metavar="HEX", help="SGX: the MRENCLAVE that you built or computed.")
    @click.option(
        "--snp-measurement",
        metavar="HEX",
        help="SEV-SNP: the launch digest that you computed, with kernel, first file system and command line in it.",
    )
    @click.option(
        "--tdx",
        "registers",
        multiple=True,
        metavar="REGISTER=HEX",
        help="TDX: mrtd and rtmr0 to rtmr3, each once, from a launch on a machine that you trust.",
    )
    @functools.wraps(function)
    def command(
        *given: Any, measurement: str | None, snp_measurement: str | None, registers: tuple[str, ...], **rest: Any
    ) -> Any:
        named = {"measurement": measurement, "snp_measurement": snp_measurement} | _registers(registers)
        return function(*given, named={name: value.lower() for name, value in named.items() if value}, **rest)

    return command


def measured_values(bundle: Bundle, kind: str, named: Mapping[str, str]) -> dict[str, str]:
    """Return what a job measures, by name: what its build computes, or else what its owner says.

    Args:
        bundle: Of the job.
        kind: Its kind of enclave.
        named: By `measured_options`; empty to take the build's.

    Raises:
        InputError: Not the values of that kind of enclave, or others than those that the build computes.
        UnavailableError: Nobody says.
    """
    if not named:
        return bundle.values
    from strongroom.attest.reference import check_values
    from strongroom.jobs.registry import SIMULATED

    if kind in SIMULATED:
        raise InputError(f"enclave kind {kind}: its build computes what it measures", hint="leave the value out")
    expected, got = "measurement" if kind != "cvm" else "snp_measurement or TDX registers", ", ".join(named)
    if ("measurement" in named) is (kind == "cvm"):
        raise InputError(f"enclave kind {kind}: expected {expected}, got {got}")
    check_values(named)
    built = {} if bundle.remaining else bundle.values
    for name in built.keys() & named:
        if built[name] != named[name]:
            raise InputError(f"{name}: expected {built[name]}, as the build computes it, got {named[name]}")
    return dict(named)


def _registers(given: Sequence[str]) -> dict[str, str]:
    from strongroom.attest.policies import TDX_REGISTERS

    found: dict[str, str] = {}
    for text in given:
        name, _, value = text.partition("=")
        if name.lower() not in TDX_REGISTERS or not value or name.lower() in found:
            raise InputError(f"--tdx {text!r}: expected {', '.join(TDX_REGISTERS)}, each once, as REGISTER=HEX")
        found[name.lower()] = value
    return found
