"""One test per threat to the trust service's state from whoever can write its disk (T310 to T318, T350 to T354)."""

from __future__ import annotations

import contextlib
import re
import shutil
import sqlite3
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.fakes.attest_parts import FakeAttester, Platform, make_pki
from tests.fakes.service_parts import Answer, Client, House, document, make_house

from strongroom.errors import DeniedError, InputError, IntegrityError, StrongroomError
from strongroom.kms.audit import AuditLog
from strongroom.kms.audit_chain import AuditHead, verify_records
from strongroom.kms.stores import sql
from strongroom.kms.stores.sql import SQLStore, get_meta
from strongroom.service.state import TrustService

TABLES = ("meta", "owners", "keys", "key_versions", "policies", "datasets", "held", "requests", "audit_head")


@dataclass
class Disk:
    """A stopped service's folder in the hand of its host; `before` is the state of an earlier day."""

    folder: Path

    def run(self, script: str) -> None:
        with contextlib.closing(sqlite3.connect(self.folder / "service" / "state.db")) as db, db:
            if (self.folder / "before").exists():
                db.execute("ATTACH DATABASE ? AS before", (str(self.folder / "before" / "state.db"),))
            db.execute("PRAGMA defer_foreign_keys=ON")
            for statement in script.split(";"):
                db.execute(statement)

    def whole(self, statement: str) -> None:
        with contextlib.closing(sqlite3.connect(self.folder / "service" / "state.db")) as db, db:
            db.execute(statement)

    def schema(self, table: str, text: str) -> None:
        """Write another text for `table` into the schema, and have everybody read it again."""
        with contextlib.closing(sqlite3.connect(self.folder / "service" / "state.db", isolation_level=None)) as db:
            version = db.execute("PRAGMA schema_version").fetchone()[0]
            db.execute("PRAGMA writable_schema=ON")
            db.execute("UPDATE sqlite_master SET sql = ? WHERE name = ? AND type = 'table'", (text, table))
            db.execute(f"PRAGMA schema_version={version + 1}")

    def rows(self, statement: str) -> list[tuple[object, ...]]:
        with sqlite3.connect(self.folder / "service" / "state.db") as db:
            found = db.execute(statement).fetchall()
        db.close()
        return found

    def unlock(self) -> TrustService:
        service = TrustService(self.folder / "service", self.folder / "root")
        try:
            service.unlock([], now=datetime.now(UTC))
        except BaseException:
            assert service.locked
            service.store.close()
            raise
        return service

    def refused(self, words: str) -> None:
        with pytest.raises(IntegrityError, match=re.escape(words)):
            self.unlock()

    def back(self) -> None:
        """Put the whole earlier state in place of the newest."""
        shutil.copytree(self.folder / "before", self.folder / "service", dirs_exist_ok=True)


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A service that trusted, allowed and held back on an earlier day what it does not any more."""
    house = make_house(tmp_path_factory.mktemp("house"))
    client, second = house.as_owner(), house.add_owner("second")
    job, head = house.ready()
    client("POST", "/v1/keys", {"name": "other"})
    house.allow(job, key="other")
    _put(house, {"outputs": {"max_bytes": 1000, "approval": True}})
    assert house.guest(job).attested().commit(head).status == 200
    refused = house.guest(document(house.owner, head["dataset"], arguments=["another.py"])).attested()
    assert refused.resource(house.owner).code == "appraisal"
    assert client("PUT", "/v1/lease", {"lease_s": 600}).status == 200
    house.service.store.close()
    shutil.copytree(house.folder / "service", house.folder / "before")
    house = house.reopened()
    client = house.as_owner()
    _put(house, {"read": None, "write": None})
    assert client("DELETE", f"/v1/owners/{second}").status == 200
    assert client("POST", "/v1/keys/other/versions/1/disable").status == 200
    manifest = client("GET", "/v1/outputs").json["outputs"][0]["manifest"]
    decided = client("POST", f"/v1/outputs/{head['dataset']}", {"manifest": manifest, "state": "rejected"})
    assert decided.status == 200, decided.raw
    root = house.service.trusted().anchors[0]["fingerprint"]
    assert client("DELETE", f"/v1/anchors/{root}").status == 200
    house.service.store.close()
    return house.folder


def _put(house: House, changes: dict[str, object]) -> None:
    client, path = house.as_owner(), "/v1/keys/sales/policy"
    found = client("GET", path).json
    answer = client("PUT", path, {"policy": {**found["policy"], **changes}, "revision": found["revision"]})
    assert answer.status == 200, answer.raw


@pytest.fixture
def disk(left: Path, tmp_path: Path) -> Disk:
    shutil.copytree(left, tmp_path, dirs_exist_ok=True)
    return Disk(tmp_path)


def test_T310_what_the_service_left_is_believed(disk: Disk) -> None:
    for held in (0, 1):  # else nothing below would prove anything
        service = disk.unlock()
        with service.store.transaction() as tx:
            assert tx.exec_driver_sql("SELECT count(*) FROM held").scalar() == held
        assert len(service.trusted().anchors) == held
        service.store.close()
        disk.back()


EDITS = {
    "policy": ("policies", "UPDATE policies SET document = replace(document, 'null', '{}')"),
    "output limit": ("policies", "UPDATE policies SET document = replace(document, '1000', '9999')"),
    "approval of outputs": ("policies", "UPDATE policies SET document = replace(document, 'true', 'false')"),
    "owner's certificate": ("owners", "UPDATE owners SET certificate = 'x' WHERE name = 'first'"),
    "revocation": ("owners", "UPDATE owners SET certificate = 'x' WHERE certificate = ''"),
    "administrator": ("meta", "UPDATE meta SET value = x'00' WHERE name = 'admin'"),
    "root that is believed": ("meta", "UPDATE meta SET value = CAST('[{}]' AS BLOB) WHERE name = 'anchors'"),
    "count of distrusts": ("meta", "UPDATE meta SET value = CAST('{}' AS BLOB) WHERE name = 'trust-changes'"),
    "lease": ("meta", "UPDATE meta SET value = CAST('3600' AS BLOB) WHERE name = 'lease-s'"),
    "endorsements seen": ("meta", "UPDATE meta SET value = CAST('{}' AS BLOB) WHERE name = 'endorsements-seen'"),
    "permission to export": ("keys", "UPDATE keys SET exportable = 1"),
    "disabled version": ("key_versions", "UPDATE key_versions SET state = 'enabled' WHERE name = 'other'"),
    "key bytes": ("key_versions", "UPDATE key_versions SET wrapped = zeroblob(60)"),
    "data-set head": ("datasets", "UPDATE datasets SET epoch = epoch + 1"),
    "refused job": ("requests", "UPDATE requests SET state = 'approved'"),
    "refused job's program": ("requests", "UPDATE requests SET document = replace(document, 'app.py', 'my.py')"),
    "newest record": ("audit_head", "UPDATE audit_head SET seq = seq + 1"),
}


@pytest.mark.parametrize("what", EDITS)
def test_T310_altered_row(disk: Disk, what: str) -> None:
    table, statement = EDITS[what]
    before = disk.rows(f"SELECT * FROM {table}")
    disk.run(statement)
    changed = set(disk.rows(f"SELECT * FROM {table}")) - set(before)
    assert changed or what == "refused job's program", "the statement found nothing to alter"
    if not changed:
        disk.run("UPDATE requests SET document = document || ' '")
    with pytest.raises(IntegrityError, match=rf"row \[.+\] of table {table} was altered") as caught:
        disk.unlock()
    assert "backup" in caught.value.hint


def test_T310_every_column_of_every_row(disk: Disk) -> None:
    disk.back()
    tables = {str(t) for (t,) in disk.rows("SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert tables == {*TABLES, "audit", "tags", "seal"}, "a new table is authentic or has a reason not to be"
    path, tried, service = disk.folder / "service" / "state.db", 0, disk.unlock()
    with service.store.transaction() as tx:
        key = service.parts.root.unwrap(get_meta(tx, "state-key") or b"", b"strongroom-state-key-v1")
    service.store.close()
    whole = path.read_bytes()
    for table in TABLES:
        for column in [str(name) for (name,) in disk.rows(f"SELECT name FROM pragma_table_info('{table}')")]:
            for other in ("CAST(x'ff' AS TEXT)", f"coalesce({column}, '') || 'x'"):
                with contextlib.suppress(sqlite3.IntegrityError):  # SQLite itself wants a number here
                    disk.run(f"UPDATE {table} SET {column} = {other} WHERE rowid = (SELECT max(rowid) FROM {table})")
                    assert path.read_bytes() != whole
                    store = SQLStore(path)
                    with pytest.raises(IntegrityError, match=f"of table {table} was altered"):
                        store.unseal(key)
                    store.close()
                    tried += 1
                path.write_bytes(whole)
    assert tried > 90


ADDED = {
    "owners": "INSERT INTO owners VALUES ('ff', 'evil', 'x', '')",
    "policies": "INSERT INTO policies SELECT owner, 'new', revision, document, updated FROM policies LIMIT 1",
    "meta": "INSERT INTO meta VALUES ('more', x'00')",
}


@pytest.mark.parametrize("table", ADDED)
def test_T311_added_row(disk: Disk, table: str) -> None:
    disk.run(ADDED[table])
    disk.refused(f"of table {table} was altered, added or moved there")


def test_T311_added_row_with_the_tag_of_another(disk: Disk) -> None:
    tag = "(SELECT tag FROM tags WHERE tbl = 'policies')"
    disk.run(
        "INSERT INTO policies SELECT owner, 'new', revision, document, updated FROM policies LIMIT 1;"
        f"INSERT INTO tags SELECT 'policies', json_array(owner, 'new'), {tag} FROM policies LIMIT 1"
    )
    disk.refused("was altered, added or moved there")


@pytest.mark.parametrize("with_tags", [False, True])
def test_T312_swapped_rows(disk: Disk, with_tags: bool) -> None:
    swap = (
        "key = CASE key WHEN 'sales' THEN 'other ' WHEN 'other' THEN 'sales ' END; UPDATE policies SET key = trim(key)"
    )
    disk.run(f"UPDATE policies SET {swap}")
    if with_tags:
        disk.run("UPDATE tags SET tag = (SELECT tag FROM tags t WHERE t.tbl = 'policies' AND t.row != tags.row) "
                 "WHERE tbl = 'policies'")  # fmt: skip
    disk.refused("of table policies was altered, added or moved there")


@pytest.mark.parametrize("table", TABLES)
def test_T313_removed_row(disk: Disk, table: str) -> None:
    disk.back()
    disk.run(f"DELETE FROM {table} WHERE rowid = (SELECT max(rowid) FROM {table})")
    disk.refused(f"of table {table} is missing")


def test_T313_removed_row_and_its_tag(disk: Disk) -> None:
    disk.back()
    disk.run("DELETE FROM held; DELETE FROM tags WHERE tbl = 'held'")
    disk.refused("rows of table held were removed or added, or are older ones")


@pytest.mark.parametrize("table", ["policies", "owners", "key_versions", "meta", "held"])
def test_T314_old_rows_brought_back_with_their_tags(disk: Disk, table: str) -> None:
    disk.run(
        f"INSERT OR REPLACE INTO {table} SELECT * FROM before.{table};"
        f"INSERT OR REPLACE INTO tags SELECT * FROM before.tags WHERE tbl = '{table}'"
    )
    disk.refused(f"rows of table {table} were removed or added, or are older ones")


def test_T314_one_old_row_among_the_new(disk: Disk) -> None:
    one = "name = 'trust-changes' OR name = 'anchors'"
    disk.run(
        f"INSERT OR REPLACE INTO meta SELECT * FROM before.meta WHERE {one};"
        "INSERT OR REPLACE INTO tags SELECT * FROM before.tags WHERE row IN ('[\"anchors\"]', '[\"trust-changes\"]')"
    )
    disk.refused("rows of table meta were removed or added, or are older ones")


def _older_tables(disk: Disk) -> None:
    for table in (*TABLES, "tags", "seal"):
        disk.run(f"DELETE FROM {table}; INSERT INTO {table} SELECT * FROM before.{table}")


def test_T315_old_state_beside_the_newest_log(disk: Disk) -> None:
    _older_tables(disk)
    disk.refused("the audit log does not end with record")


def test_T315_old_state_with_the_newest_head(disk: Disk) -> None:
    """The signed head that owners saw last is in the log: an old state must not be able to show it."""
    heads = disk.rows("SELECT seq, chain, head FROM audit_head")
    _older_tables(disk)
    for column, value in zip(("seq", "chain", "head"), heads[0], strict=True):
        disk.run(f"UPDATE audit_head SET {column} = '{value}'")
    disk.refused("row [1] of table audit_head was altered")


@pytest.mark.parametrize(
    "cut", ["DELETE FROM audit WHERE seq > 5", "UPDATE audit SET chain = chain || 'x'", "DELETE FROM audit"]
)
def test_T315_log_without_its_end(disk: Disk, cut: str) -> None:
    disk.run(cut)
    disk.refused("the audit log does not end with record")


@pytest.mark.parametrize(
    ("strip", "words"),
    [
        ("DELETE FROM seal", "it has no seal"),
        ("UPDATE seal SET counter = counter + 1", "its seal was altered, or is of another state"),
        ("UPDATE seal SET counter = 'x'", "its seal is none"),
        ("UPDATE seal SET tags = x''", "its seal was altered, or is of another state"),
        ("UPDATE seal SET tags = tags || x'ff'", "its seal is none"),
        ("UPDATE seal SET tags = CAST(tags || x'ff' AS BLOB)", "its seal was altered, or is of another state"),
        ("UPDATE seal SET tags = (SELECT tags FROM before.seal)", "its seal was altered, or is of another state"),
        ("DELETE FROM tags", "was altered, added or moved there"),
        ("UPDATE tags SET tag = 'text'", "was altered, added or moved there"),
        ("DROP TABLE tags", "it has no table tags"),
        ("DROP TABLE seal; DROP TABLE tags", "it has no table"),
        ("UPDATE meta SET value = CAST('2' AS BLOB) WHERE name = 'schema'", "has schema b'2', expected 3"),
    ],
)
def test_T316_stripped_of_what_makes_it_authentic(disk: Disk, strip: str, words: str) -> None:
    """As if it were of a version that had none of it: there is no way up from there."""
    disk.run(strip)
    disk.refused(words)


def test_T316_state_of_another_service(disk: Disk, tmp_path: Path) -> None:
    other = make_house(tmp_path / "other")
    other.service.store.close()
    mine = dict(disk.rows("SELECT name, hex(value) FROM meta"))
    shutil.copy(tmp_path / "other" / "service" / "state.db", disk.folder / "service" / "state.db")
    disk.refused("root descriptor")  # the root key of another
    disk.run(f"UPDATE meta SET value = x'{mine['root']}' WHERE name = 'root'")
    disk.refused("does not open under this root key")
    disk.run(f"UPDATE meta SET value = x'{mine['state-key']}' WHERE name = 'state-key'")
    disk.refused("was altered, added or moved there")


def test_T316_state_written_by_who_had_the_root_key_before_a_rotation(disk: Disk) -> None:
    service = disk.unlock()
    service.rotate_root("keyfile", {}, actor="owner", now=datetime.now(UTC))
    tags = set(disk.rows("SELECT tag FROM tags"))
    service.store.close()
    disk.unlock().store.close()
    disk.back()
    assert not tags & set(disk.rows("SELECT tag FROM tags")), "every row has a tag under the new key"


def test_T317_altered_while_the_service_runs(disk: Disk) -> None:
    service = disk.unlock()
    house = House(service, service.admin, None, disk.folder, [])  # type: ignore[arg-type]
    client = house.as_owner()
    before = client("GET", "/v1/keys/sales/policy").json
    disk.run(
        "INSERT OR REPLACE INTO policies SELECT * FROM before.policies;"
        "UPDATE owners SET certificate = '' WHERE name = 'first'; DELETE FROM keys; DELETE FROM audit WHERE seq > 3"
    )
    assert client("GET", "/v1/keys/sales/policy").json == before, "it decides on what it has in memory"
    assert client("POST", "/v1/keys", {"name": "third"}).status == 200
    service.store.close()
    disk.refused("of table owners was altered")


def test_T317_older_disk_under_a_running_service(disk: Disk) -> None:
    service = disk.unlock()
    house = House(service, service.admin, None, disk.folder, [])  # type: ignore[arg-type]
    _older_tables(disk)
    disk.run("DELETE FROM audit WHERE seq > (SELECT max(seq) FROM before.audit)")
    for method, path, body in (("GET", "/v1/keys", None), ("POST", "/v1/keys", {"name": "third"})):
        answer = house.as_owner()(method, path, body)
        assert (answer.code, "its seal is not the one that this process left" in answer.raw.decode()) == (
            "integrity",
            True,
        )
    service.store.close()


# What a host puts into the schema of its disk, to be run with the service's own statements.
SCHEMAS = {
    "trigger": "CREATE TRIGGER evil AFTER INSERT ON audit BEGIN UPDATE owners SET certificate = ''; END",
    "view": "CREATE VIEW evil AS SELECT * FROM policies",
    "index": "CREATE INDEX evil ON audit (record)",
    "index on an expression": "CREATE INDEX evil ON tags (length(tag))",
}


@pytest.mark.parametrize("what", SCHEMAS)
def test_T350_another_schema_on_the_disk(disk: Disk, what: str) -> None:
    service = disk.unlock()
    client = House(service, service.admin, None, disk.folder, []).as_owner()  # type: ignore[arg-type]
    disk.whole(SCHEMAS[what])
    for method, path, body in (("GET", "/v1/keys", None), ("POST", "/v1/keys", {"name": "third"})):
        answer = client(method, path, body)
        assert (answer.code, "evil of its schema is not as the service" in answer.raw.decode()) == ("integrity", True)
    service.store.close()
    disk.refused("evil of its schema is not as the service made it")
    assert not disk.rows("SELECT * FROM owners WHERE certificate = 'x'")
    disk.whole(f"DROP {what.partition(' ')[0]} evil")
    disk.unlock().store.close()


@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize("table", ["audit", "tags", "policies", "seal"])
def test_T350_a_constraint_of_the_disks_calls_what_notes_changes(
    disk: Disk, monkeypatch: pytest.MonkeyPatch, table: str, checked: bool
) -> None:
    """SQLite lets a CHECK call any function, be the schema trusted or not: none of ours may be there."""
    if not checked:  # as if the host had put its schema there between our look and SQLite's own
        monkeypatch.setattr(sql, "_check_schema", lambda _tx: None)
    service = disk.unlock()
    client = House(service, service.admin, None, disk.folder, []).as_owner()  # type: ignore[arg-type]
    (row,) = disk.rows("SELECT owner, key, revision, document, updated FROM policies WHERE key = 'sales'")
    (older,) = disk.rows("SELECT document FROM policies WHERE key = 'other'")
    args = ", ".join(f"'{v}'" if isinstance(v, str) else str(v) for v in (*row, *row[:3], *older, row[4]))
    (made,) = disk.rows(f"SELECT sql FROM sqlite_master WHERE name = '{table}' AND type = 'table'")
    start, _, end = str(made[0]).rpartition(")")
    disk.schema(table, f"{start}, CHECK (strongroom_changed('policies', 'UPDATE', {args}))){end}")
    answers = [
        client("POST", "/v1/keys", {"name": "third"}).status,
        client("PUT", "/v1/keys/other/policy", {"policy": {"read": None, "write": None}, "revision": 1}).status,
    ]
    assert any(status != 200 for status in answers)
    disk.schema(table, str(made[0]))
    service.store.close()
    disk.unlock().store.close()
    assert disk.rows("SELECT document FROM policies WHERE key = 'sales'") == [(row[3],)]


def test_T318_older_state_unlocked_by_an_owner_who_saw_more(tmp_path: Path) -> None:
    house, folder, seen = make_house(tmp_path), tmp_path / "service", {}
    house.service.store.close()
    shutil.copytree(folder, tmp_path / "before")
    for way in ("newest", "another"):
        shutil.copytree(tmp_path / "before", folder, dirs_exist_ok=True)
        house = house.reopened()
        for number in range(3):
            assert house.as_owner()("POST", "/v1/keys", {"name": f"{way}{number}"}).status == 200
        seen[way] = house.records()[2]
        house.service.store.close()
        shutil.copytree(folder, tmp_path / way)
    last = AuditHead(seq=3, chain=seen["newest"]["chain"])
    for way, words in {"before": "of 1 records", "another": "of 4 records", "newest": ""}.items():
        shutil.copytree(tmp_path / way, folder, dirs_exist_ok=True)
        if way == "another":  # its host gives that log the record that the owner saw
            Disk(tmp_path).run(f"UPDATE audit SET chain = '{last.chain}' WHERE seq = 3")
        house = House(TrustService(folder, tmp_path / "root"), house.owner, house.platform, tmp_path, [])
        with pytest.raises(IntegrityError, match=words) if words else contextlib.nullcontext():
            house.service.unlock([], now=datetime.now(UTC), seen=last)
        assert house.service.locked == bool(words)
        assert house.as_owner()("GET", "/v1/keys").code == ("unavailable" if words else "ok")
        house.service.store.close()


def test_T351_what_another_process_on_the_same_file_changed(tmp_path: Path) -> None:
    """The host runs two, and hands what the owner takes back to the one that no guest asks."""
    asked, job, _, told = _two(tmp_path)
    guest, root = asked.guest(job).attested(), asked.service.trusted().anchors[0]["fingerprint"]
    assert guest.resource(asked.owner).status == 200
    assert told.as_owner()("PUT", "/v1/lease", {"lease_s": 120}).status == 200
    later = asked.guest(job).attested()
    assert later.open(later.resource(asked.owner))["lease_s"] == 120
    assert asked.as_owner()("GET", "/v1/status").json["lease_s"] == 120
    assert told.as_owner()("DELETE", f"/v1/anchors/{root}").status == 200
    for one in (guest, later):
        assert one.resource(asked.owner).code == "denied"
    assert asked.guest(job).attest().code == "endorsement"
    assert asked.as_owner()("GET", "/v1/status").json["anchors"] == []
    for house in (asked, told):
        house.service.store.close()


def test_T352_a_fork_of_the_state_under_a_running_service(tmp_path: Path) -> None:
    """A second service went on from an older state, and has the later seal."""
    house = make_house(tmp_path)
    job, _ = house.ready()
    house.service.store.close()
    shutil.copytree(tmp_path / "service", tmp_path / "fork")
    house = house.reopened()
    _put(house, {"read": None, "write": None})
    guest = house.guest(job).attested()
    assert guest.resource(house.owner).code == "appraisal"
    fork = TrustService(tmp_path / "fork", tmp_path / "root")
    fork.unlock([], now=datetime.now(UTC))
    other = House(fork, house.owner, house.platform, tmp_path, [])
    for _ in range(6):
        assert other.guest(job).attested().resource(house.owner).status == 200
    fork.store.close()
    with (
        contextlib.closing(sqlite3.connect(tmp_path / "fork" / "state.db")) as source,
        contextlib.closing(sqlite3.connect(tmp_path / "service" / "state.db")) as target,
    ):
        source.backup(target)
    for _ in range(2):
        answer = guest.resource(house.owner)
        assert (answer.code, "does not go on from record" in answer.raw.decode()) == ("integrity", True)
    house.service.store.close()


TEE = {"threshold": "2", "shares": "3"}


@pytest.mark.parametrize("kind", ["keyfile", "passphrase", "tee"])
def test_T353_the_host_calls_the_root_key_another_kind(tmp_path: Path, kind: str) -> None:
    """The shares that an owner brings must not be sealed to a TEE for whoever runs the machine."""
    attester = FakeAttester()
    house = make_house(tmp_path, kind="shares", options=TEE, attester=attester)
    (path,) = (tmp_path / "root").glob("root-*.json")
    text = path.read_text()
    path.write_text(text.replace('"kind": "shares"', f'"kind": "{kind}"'))
    words = "root kind: expected shares, which the state says, got tee" if kind == "tee" else "."
    with pytest.raises(StrongroomError, match=words):
        house.reopened(house.handout[:2], attester)
    assert list((tmp_path / "root").iterdir()) == [path], "nothing was sealed"
    path.write_text(text)
    house = house.reopened(house.handout[:2], attester)
    # A rotation says the new kind.
    shares = house.service.rotate_root("tee", TEE, actor="x", now=datetime.now(UTC))
    assert not house.reopened([], attester).service.locked
    path = tmp_path / "root" / f"root-{house.service.root_name}.json"
    path.write_text(path.read_text().replace('"kind": "tee"', '"kind": "shares"'))
    with pytest.raises(IntegrityError, match="root kind: expected tee, which the state says, got shares"):
        house.reopened(shares[:2], attester)


def test_T353_an_unlock_that_is_refused_seals_nothing(tmp_path: Path) -> None:
    house = make_house(tmp_path, kind="tee", options=TEE, attester=FakeAttester())
    house.as_owner()("POST", "/v1/keys", {"name": "sales"})
    (seen,) = house.records()[1:]
    house.service.store.close()
    moved = FakeAttester(Platform(make_pki("two")))
    (sealed,) = (tmp_path / "root").glob("*.key")
    before = sealed.read_bytes()
    service = TrustService(tmp_path / "service", tmp_path / "root", moved)
    for last in (AuditHead(seq=2, chain="0" * 64), AuditHead(seq=9, chain=seen["chain"])):
        with pytest.raises(IntegrityError, match="does not go on from record"):
            service.unlock(house.handout[:2], now=datetime.now(UTC), seen=last)
        assert (service.locked, sealed.read_bytes()) == (True, before)
        with pytest.raises(DeniedError, match="other code or another machine"):
            service.unlock([], now=datetime.now(UTC))
    service.unlock(house.handout[:2], now=datetime.now(UTC), seen=AuditHead(seq=2, chain=seen["chain"]))
    assert sealed.read_bytes() != before
    service.store.close()


def _two(folder: Path) -> tuple[House, dict[str, object], dict[str, object], House]:
    house = make_house(folder)
    job, head = house.ready()
    second = TrustService(folder / "service", folder / "root")
    second.unlock([], now=datetime.now(UTC))
    return house, job, head, House(second, house.owner, house.platform, folder, [])


def test_T354_a_locked_service_names_no_key_for_results(tmp_path: Path) -> None:
    house = make_house(tmp_path, kind="passphrase", options={"passphrase": "a long enough one"})
    with house.service.store.transaction() as tx:
        assert get_meta(tx, "identity-certificate"), "it is there, and the disk's word"
    asked = Client(house.guests)
    assert asked("GET", "/.well-known/jwks.json").code == "unavailable"
    house.service.unlock(["a long enough one"], now=datetime.now(UTC))
    assert asked("GET", "/.well-known/jwks.json").status == 200
    house.service.store.close()


@pytest.mark.parametrize("value", ["NULL", "x'ff'", "5"])
def test_T354_junk_in_the_log(tmp_path: Path, value: str) -> None:
    """The log is no authentic table: its readers take whatever is there for a wrong record."""
    house = make_house(tmp_path)
    house.as_owner()("POST", "/v1/keys", {"name": "sales"})
    first, disk = house.records()[0]["chain"], Disk(tmp_path)
    (made,) = disk.rows("SELECT sql FROM sqlite_master WHERE name = 'audit'")
    disk.schema("audit", str(made[0]).replace("owner TEXT NOT NULL", "owner TEXT"))
    for column in ("owner", "record", "record_hash", "head") if value != "NULL" else ("owner",):
        disk.run(f"UPDATE audit SET {column} = {value} WHERE seq = 2")
    disk.schema("audit", str(made[0]))
    with (
        house.service.store.transaction() as tx,
        pytest.raises(IntegrityError, match="does not go on from record 1"),
    ):
        AuditLog.check_extends(tx, AuditHead(seq=1, chain=first))
    with pytest.raises(IntegrityError, match="record 2 "):
        verify_records(house.records(), [house.service.parts.identity.public_key()], owner=house.owner, newest=None)
    house.service.store.close()


@pytest.mark.parametrize("where", ["unseal", "close"])
def test_T354_a_crash_while_a_service_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    def crash(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(SQLStore, where, crash)
        with pytest.raises(KeyboardInterrupt):
            make_house(tmp_path)
    with pytest.raises(InputError, match="there is no trust service"):
        TrustService(tmp_path / "service", tmp_path / "root")
    house = make_house(tmp_path)
    assert house.as_owner()("POST", "/v1/keys", {"name": "sales"}).status == 200
    house.service.store.close()
    assert [p.name for p in (tmp_path / "service").glob("*.db*")] == ["state.db"]


def test_T360_an_owner_who_stores_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state has to fit into an enclave, and no other owner could make it small again."""
    house = make_house(tmp_path)
    second = house.add_owner("second")
    client, path = house.as_owner(second), "/v1/keys/k/policy"
    assert client("POST", "/v1/keys", {"name": "k"}).status == 200

    def approve(number: int, **more: object) -> Answer:
        job = {"job": f"sha256:{number:064x}", "measurement": "0" * 64, "document": {"number": number, **more}}
        body = {"policy": {"read": None, "write": None}, "revision": client("GET", path).json["revision"]}
        return client("PUT", path, {**body, "approved": [job]})

    assert "at most 262144 are allowed" in approve(0, more="x" * (1 << 20)).raw.decode()
    monkeypatch.setattr("strongroom.kms.policies._MAX_CLOSED", 3)
    for number in range(5):
        assert approve(number).status == 200
    kept = client("GET", "/v1/requests").json["requests"]
    assert [one["job_document"]["number"] for one in kept] == [4, 3, 2], "the newest, of which refusals speak"
    monkeypatch.setattr("strongroom.kms.owners._MAX_POLICY_CHARS", 10)
    assert "release policies have at most 10 characters" in approve(9).raw.decode()
    monkeypatch.setattr("strongroom.kms.owners._MAX_POLICY_CHARS", 1000)
    monkeypatch.setattr("strongroom.kms.owners._MAX_ROWS", 2)
    assert client("POST", "/v1/datasets", {"key": "k"}).status == 200
    for request in (("/v1/keys", {"name": "l"}), ("/v1/keys/k/rotate", {}), ("/v1/datasets", {"key": "k"})):
        assert "at most 2 versions of keys and data sets" in client("POST", *request).raw.decode()
    assert house.as_owner()("POST", "/v1/keys", {"name": "sales"}).status == 200, "it does not concern others"
    assert house.as_owner()("DELETE", f"/v1/owners/{second}").status == 200
    for table in ("policies", "requests"):
        assert Disk(tmp_path).rows(f"SELECT * FROM {table}") == [], "nobody may read them again"
    house.service.store.close()
