# ruff: noqa: E501  # programs
"""Parquet column keys with real Spark in the enclave and PyArrow outside. T171, T172, T174 of docs/threat-model.md."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import stop_service
from tests.fakes.enclave_shell import APPROVE, Enclave, make_enclave

from strongroom.client.owner import OwnerClient
from strongroom.storage.parquet import crypto_factory

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
pe = pytest.importorskip("pyarrow.parquet.encryption")

KEYS = ("people-footer", "people-salary")
PEOPLE = pa.table({"name": [f"person-{n}" for n in range(100)], "salary": [1000 * n for n in range(100)]})

# Both keys, rw: reads what PyArrow wrote, writes the same three ways and once with the key options forgotten.
WRITER = """
from pyspark.sql import SparkSession
spark = SparkSession.builder.getOrCreate()
people = spark.read.parquet('/work/arrow/people.parquet').coalesce(1)
print('TOTAL', people.selectExpr('sum(salary)').first()[0], people.count())
keys = {'parquet.encryption.footer.key': 'people-footer', 'parquet.encryption.column.keys': 'people-salary:salary', 'parquet.encryption.complete.columns': 'true'}
for algorithm in ('AES_GCM_V1', 'AES_GCM_CTR_V1'):
    people.write.options(**keys).option('parquet.encryption.algorithm', algorithm).parquet('/work/out/' + algorithm)
people.createOrReplaceTempView('people')
options = ', '.join(f"`{name}` '{value}'" for name, value in keys.items())
spark.sql(f"CREATE TABLE staff USING parquet OPTIONS ({options}) LOCATION '/work/out/table' AS SELECT * FROM people")
people.write.parquet('/work/out/forgotten')
"""

# The footer's key alone, ro.
READER = """
from pyspark.sql import SparkSession
spark = SparkSession.builder.getOrCreate()

def tried(what, act):
    try:
        print(what, 'GOT', act())
    except Exception as exc:
        print(what, 'REFUSED', str(exc).replace(chr(10), ' '))

def total(path, column):
    return spark.read.parquet(path).selectExpr(f'count(distinct {column})').first()[0]

# First: Parquet remembers a key that it unwrapped, and this one is the same as in the other files.
tried('key.name', lambda: total('/work/arrow/key.parquet', 'name'))
for kind in ('AES_GCM_V1', 'AES_GCM_CTR_V1', 'table'):
    tried(kind + '.name', lambda: total('/work/out/' + kind, 'name'))
    tried(kind + '.salary', lambda: total('/work/out/' + kind, 'salary'))
tried('arrow.name', lambda: total('/work/arrow/people.parquet', 'name'))
tried('arrow.salary', lambda: total('/work/arrow/people.parquet', 'salary'))
tried('page.name', lambda: total('/work/arrow/page.parquet', 'name'))
footer = {'parquet.encryption.uniform.key': 'people-footer'}
tried('write', lambda: spark.range(3).write.options(**footer).parquet('/tmp/written'))
spark.conf.set('spark.sql.files.ignoreCorruptFiles', 'true')
tried('ignored.salary', lambda: total('/work/out/AES_GCM_V1', 'salary'))
"""


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Enclave]:
    made = make_enclave(tmp_path_factory.mktemp("columns"))
    for key in KEYS:
        made.run("key", "create", key)
    yield made
    stop_service(made.workspace)


def read(owner: OwnerClient, path: Path) -> Any:
    properties = crypto_factory(owner.key_ring).file_decryption_properties(pe.KmsConnectionConfig())
    return pq.ParquetFile(path, decryption_properties=properties).read()


def write_people(owner: OwnerClient, folder: Path) -> None:
    """`people.parquet`, and copies with another byte in a page and another base64 character in a wrapped key."""
    columns = {"people-salary": ["salary"], "people-footer": ["name"]}
    properties = crypto_factory(owner.key_ring).file_encryption_properties(
        pe.KmsConnectionConfig(), pe.EncryptionConfiguration("people-footer", column_keys=columns)
    )
    folder.mkdir()
    with pq.ParquetWriter(folder / "people.parquet", PEOPLE.schema, encryption_properties=properties) as writer:
        writer.write_table(PEOPLE)
    raw = (folder / "people.parquet").read_bytes()
    key = raw.index(b'"wrappedKEK":"') + 40
    for name, at, other in (("page", 100, raw[100] ^ 1), ("key", key, ord("B" if raw[key] == ord("A") else "A"))):
        (folder / f"{name}.parquet").write_bytes(raw[:at] + bytes([other]) + raw[at + 1 :])


def spark(shell: Enclave, program: str, *words: str) -> str:
    (shell.folder / "app.py").write_text(program)
    done = shell.run("spark-submit", *APPROVE, "--master", "local[1]", "--volume", "arrow=arrow", *words, "app.py")
    return done.stdout


@pytest.mark.e2e
def test_T171_T172_T174_columns_of_one_file_by_different_keys(shell: Enclave) -> None:
    owner = OwnerClient(shell.workspace)
    write_people(owner, shell.folder / "arrow.plain")
    shell.run("data", "seal", "arrow.plain", "arrow", "--key", "sales")

    keys = [word for key in KEYS for word in ("--column-key", f"{key}:rw")]
    said = spark(shell, WRITER, *keys, "--volume", "out=out:sales:rw")
    assert "TOTAL 4950000 100" in said

    shell.run("data", "open", "out", "opened")
    for kind in ("AES_GCM_V1", "AES_GCM_CTR_V1", "table"):
        (file,) = (shell.folder / "opened" / kind).glob("*.parquet")
        raw = file.read_bytes()
        assert raw.startswith(b"PARE")
        assert b"person-" not in raw
        assert read(owner, file).equals(PEOPLE), kind
    # The pitfall: without the option Parquet does not encrypt, and the seal of the volume is all there is.
    (file,) = (shell.folder / "opened/forgotten").glob("*.parquet")
    assert file.read_bytes().startswith(b"PAR1")
    assert not any(b"person-" in f.read_bytes() for f in (shell.folder / "out").rglob("*.parquet"))

    said = spark(shell, READER, "--column-key", "people-footer", "--volume", "out=out")
    results = dict(line.split(" ", 1) for line in said.splitlines() if " GOT " in line or " REFUSED " in line)
    for kind in ("AES_GCM_V1", "AES_GCM_CTR_V1", "table", "arrow"):
        assert results[f"{kind}.name"] == "GOT 100"
        assert "REFUSED" in results[f"{kind}.salary"]
        assert "the job has no column key 'people-salary'" in results[f"{kind}.salary"]
    assert "TagVerificationException" in results["page.name"]
    assert "a column key does not open under 'people-footer' version 1" in results["key.name"]
    assert "key 'people-footer' is given to this job for reading only" in results["write"]
    # Spark skips a file that it holds for corrupt; one that is refused is not, or its rows would be gone without a word.
    assert "people-salary" in results["ignored.salary"]
