from __future__ import annotations

import hashlib
import time
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strongroom._encoding import canonical_json
from strongroom.attest.binding import (
    config_id,
    init_data_digest,
    job_init_data,
    parse_init_data,
    rcar_report_data,
    render_init_data,
)
from strongroom.errors import InputError

HEAD = 'algorithm = "sha256"\nversion = "0.1.0"\n\n[data]\n'
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


def test_report_data_of_a_known_message() -> None:
    jwk = {"kty": "EC", "crv": "P-256", "x": "AA", "y": "BB", "alg": "ECDH-ES+A256KW"}
    expected = (
        b'{"additional-evidence":"","nonce":"n-1","tee-pubkey":'
        b'{"alg":"ECDH-ES+A256KW","crv":"P-256","kty":"EC","x":"AA","y":"BB"}}'
    )
    assert rcar_report_data("n-1", jwk) == hashlib.sha384(expected).digest() + bytes(16)


def test_every_member_of_the_key_is_bound() -> None:
    base = {"kty": "EC", "x": "AA"}
    seen = {
        rcar_report_data("n", base),
        rcar_report_data("m", base),
        rcar_report_data("n", {**base, "x-tls-spki": "sha256:00"}),
        rcar_report_data("n", base, "{}"),
    }
    assert len(seen) == 4


@given(st.dictionaries(TEXT, TEXT, max_size=5))
def test_init_data_round_trip(files: dict[str, str]) -> None:
    text = render_init_data(files)
    assert parse_init_data(text) == files
    assert tomllib.loads(text)["data"] == files
    assert render_init_data(dict(reversed(list(files.items())))) == text


def test_init_data_bytes_are_fixed() -> None:
    hard = '"quotes" \\ and\nlines\r\n\ttab\b\f \x00\x1f\x7f é 😀 \u2028'
    text = render_init_data({"b": hard, "a": ""})
    assert text == (
        'algorithm = "sha256"\nversion = "0.1.0"\n\n[data]\n"a" = ""\n'
        '"b" = "\\"quotes\\" \\\\ and\\nlines\\r\\n\\ttab\\b\\f \\u0000\\u001f\\u007f é 😀 \u2028"\n'
    )
    assert parse_init_data(text) == {"b": hard, "a": ""}
    assert init_data_digest(text) == hashlib.sha256(text.encode()).digest()


def test_a_job_is_the_one_file() -> None:
    assert parse_init_data(job_init_data({"b": 1, "a": "x"})) == {"job.json": '{"a":"x","b":1}'}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not toml",
        'algorithm = "sha256"\nversion = "0.1.0"\n',
        'algorithm = "sha512"\nversion = "0.1.0"\n[data]\n',
        'algorithm = "sha256"\nversion = "0.2.0"\n[data]\n',
        'algorithm = "sha256"\nversion = "0.1.0"\nmore = 1\n[data]\n',
        'algorithm = "sha256"\nversion = "0.1.0"\n[data]\na = 1\n',
        'algorithm = "sha256"\nversion = "0.1.0"\ndata = "x"\n',
        'algorithm = "sha256"\nversion = "0.1.0"\n[data]\na = "x"\na = "y"\n',
        "#" * ((1 << 20) + 1),
        "a = " + "[" * 100_000,
        HEAD + '"a" = "x"',
        HEAD + '"a" = "x"\n\n',
        HEAD + 'a = "x"\n',
        HEAD + '"b" = "x"\n"a" = "x"\n',
        HEAD + '"a" = "x"\n"a" = "x"\n',
        HEAD + '"a" = "x" \n',
        HEAD + '"a"  = "x"\n',
        HEAD + '"a" = "\\u0041"\n',
        HEAD + '"a" = "\\ud800"\n',
        HEAD + '"a" = "\\/"\n',
        HEAD + "\"a\" = 'x'\n",
        HEAD + '"a" = 1\n',
        HEAD + '"a" = ["x"]\n',
        HEAD + '"a" = ' + "[" * 100_000 + "\n",
        HEAD + ".".join(["a"] * 50_000) + ' = "x"\n',
        HEAD + "".join(f'"{n:03}" = "x"\n' for n in range(65)),
        HEAD.replace("\n", "\r\n") + '"a" = "x"\r\n',
    ],
)
def test_other_init_data_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        parse_init_data(text)


def test_T164_init_data_costs_no_more_than_its_length() -> None:
    started = time.process_time()
    for hard in (
        ".".join(["a"] * 100_000) + ' = "x"\n',
        '"' + "\\" * 200_000 + "\n",
        '"a" = ' + '"x" = ' * 30_000,
        "\n" * 200_000,
    ):
        with pytest.raises(InputError):
            parse_init_data(HEAD + hard)
    assert time.process_time() - started < 2


def test_T164_a_job_document_is_small() -> None:
    job_init_data({"x": "y" * (100 << 10)})
    with pytest.raises(InputError, match="at most"):
        job_init_data({"x": "y" * (128 << 10)})


def test_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(InputError):
        render_init_data({"a": "\ud800"})


def test_config_id_is_padded() -> None:
    assert config_id(b"\1" * 32) == b"\1" * 32 + bytes(32)
    assert config_id(b"\1" * 32, 48) == b"\1" * 32 + bytes(16)
    with pytest.raises(InputError):
        config_id(bytes(65))


@pytest.mark.parametrize("value", ["\ud800", {"\udfff": 1}, [[["\udc80"]]]])
def test_canonical_json_has_only_what_utf8_carries(value: object) -> None:
    with pytest.raises(InputError, match="canonical JSON"):
        canonical_json(value)
