"""From what a person types to volumes: parsing, and paths in arguments."""

from dataclasses import replace
from pathlib import Path

import pytest

from strongroom.client.job_files import parse_column_key, read_job_file
from strongroom.client.petnames import Petnames
from strongroom.client.volumes import VolumeRequest, parse_volume, resolve_volume, with_known_paths
from strongroom.errors import InputError
from strongroom.jobs.spec import JobKey
from strongroom.storage.dataset import DatasetInfo, read_info, write_info
from strongroom.storage.places import Place

ME, BANK = "a" * 64, "b" * 64
INFO = DatasetInfo(dataset="ab" * 16, key="sales", owner=ME)
OWNERS = Petnames(path=Path("owners.json"), own=ME, owners={"me": ME, "bank": BANK})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("in=a", VolumeRequest(name="in", path=Path("a"))),
        ("in=a:rw", VolumeRequest(name="in", path=Path("a"), mode="rw")),
        ("in=a:ro", VolumeRequest(name="in", path=Path("a"))),
        ("in=a/b:sales:rw", VolumeRequest(name="in", path=Path("a/b"), key="sales", mode="rw")),
        ("in=a:sales", VolumeRequest(name="in", path=Path("a"), key="sales")),
        ("in=a:sales@bank", VolumeRequest(name="in", path=Path("a"), key="sales", owner="bank")),
        ("in=a:k@b-1.c:rw", VolumeRequest(name="in", path=Path("a"), key="k", owner="b-1.c", mode="rw")),
        (
            "out=a:sales:rw:names",
            VolumeRequest(name="out", path=Path("a"), key="sales", mode="rw", visible_names=True),
        ),
        ("in=a:names", VolumeRequest(name="in", path=Path("a"), key="names")),
        ("i.n-1=/a=b", VolumeRequest(name="i.n-1", path=Path("/a=b"))),
        ("in=hdfs://nn:9000/a/b/", VolumeRequest(name="in", path="hdfs://nn:9000/a/b")),
        ("in=hdfs://nn:9000/a:sales:rw", VolumeRequest(name="in", path="hdfs://nn:9000/a", key="sales", mode="rw")),
        ("in=s3://bucket/a:sales@bank", VolumeRequest(name="in", path="s3://bucket/a", key="sales", owner="bank")),
        ("in=file:///a", VolumeRequest(name="in", path=Path("/a"))),
    ],
)
def test_volumes_are_parsed(text: str, expected: VolumeRequest) -> None:
    assert parse_volume(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "in",
        "in=",
        "=a",
        "a/b=c",
        "..=c",
        ".x=c",
        "-x=c",
        "a b=c",
        "in=a:b:c",
        "in=a:k:rw:x",
        "in=:rw",
        "in=a:",  # a key's name from a variable that is not set: not any key
        "in=a::rw",
        "n" * 65 + "=a",
    ],
)
def test_other_forms_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="NAME=PATH"):
        parse_volume(text)


def test_column_keys_are_parsed() -> None:
    assert parse_column_key("people-salary") == JobKey(name="people-salary", mode="ro")
    assert parse_column_key("people-salary:ro") == JobKey(name="people-salary", mode="ro")
    assert parse_column_key("people-salary:rw") == JobKey(name="people-salary", mode="rw")
    for text in ("", ":rw", "people:", "people:w", "people:rw:rw", "People", "a b", "n" * 65):
        with pytest.raises(InputError, match=r"column key|key name"):
            parse_column_key(text)


def test_column_keys_of_a_job_file(tmp_path: Path) -> None:
    file = tmp_path / "job.toml"
    job = '[job]\nworkload = "spark"\nprogram = "app.py"\n'
    file.write_text(f'{job}[[key]]\nname = "footer"\n[[key]]\nname = "salary"\nmode = "rw"\n')
    spec, volumes = read_job_file(file)
    assert spec.keys == (JobKey(name="footer"), JobKey(name="salary", mode="rw"))
    assert volumes == ()
    for bad in ('name = "k"\nmode = "wo"', 'mode = "rw"', 'name = "k"\nowner = "x"', 'name = "K"'):
        file.write_text(f"{job}[[key]]\n{bad}\n")
        with pytest.raises(InputError):
            read_job_file(file)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("checkpoint_s = true", "checkpoint_s is a whole number from 0, got True"),
        ("[[volume]]\nname = 'v'\npath = 'v'\nepoch = 3.7", "epoch is a whole number from 0, got 3.7"),
        ("[[volume]]\nname = 'v'\npath = 'v'\nepoch = '3'", "epoch is a whole number from 0, got '3'"),
        ("[[volume]]\nname = 'v'\npath = 'v'\nepoch = true", "epoch is a whole number from 0, got True"),
        ("[[volume]]\nname = 'v'\npath = 'v'\nepoch = -1", "epoch is a whole number from 0, got -1"),
        ("[[volume]]\nname = 7\npath = 'v'", "name is a text, got 7"),
        ("[[volume]]\nname = 'v'\npath = ['v']", "path is a text, got"),
        ("[[key]]\nname = 7", "name is a text, got 7"),
        ("[cvm]\nkernel = 7", "[cvm] kernel is a text, got 7"),
    ],
)
def test_values_of_another_kind_are_refused_not_turned_into_something(tmp_path: Path, line: str, sentence: str) -> None:
    file = tmp_path / "job.toml"
    file.write_text(f"{JOB}{line}\n")
    with pytest.raises(InputError) as caught:
        read_job_file(file)
    assert sentence in str(caught.value)


@pytest.fixture
def sealed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_info(str(tmp_path / "data/orders"), INFO)
    (tmp_path / "plain").mkdir()
    return tmp_path / "data/orders"


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("data/orders", "/work/orders"),
        ("data/orders/", "/work/orders/"),
        ("data/orders/2026/*.csv", "/work/orders/2026/*.csv"),
        ("./data/../data/orders", "/work/orders"),
        ("--in=data/orders", "--in=/work/orders"),
        ("-i=data/orders/x", "-i=/work/orders/x"),
        ("plain", "plain"),
        ("plain/data/orders", "plain/data/orders"),
        ("3", "3"),
        ("", ""),
        ("k=data/orders", "k=data/orders"),
        ("s3://data/orders", "s3://data/orders"),
        ("a\0b", "a\0b"),
    ],
)
def test_paths_of_sealed_data_work_inside(sealed: Path, argument: str, expected: str) -> None:
    (changed,), volumes = with_known_paths([argument], [])
    assert changed == expected
    assert [v.mode for v in volumes] == (["ro"] if changed != argument else [])


@pytest.mark.parametrize("argument", ["SELECT " + "x, " * 300, "--json={" + "a" * 600 + "}", "nul\0", "/" * 5000])
def test_arguments_that_are_no_paths_stay_as_they_are(sealed: Path, argument: str) -> None:
    assert with_known_paths([argument], ())[0] == (argument,)


def test_absolute_and_file_urls(sealed: Path) -> None:
    urls = [f"file:{sealed}/a", f"file://{sealed}", f"sealed://{sealed}", f"sealed::file://{sealed}/a"]
    changed, volumes = with_known_paths([str(sealed), *urls], [])
    inside = ("file:/work/orders/a", "file:///work/orders", "sealed:///work/orders", "sealed::file:///work/orders/a")
    assert changed == ("/work/orders", *inside)
    assert [v.name for v in volumes] == ["orders"]


def test_a_named_volume_keeps_its_name_and_mode(sealed: Path) -> None:
    out = VolumeRequest(name="out", path=Path("data/new"), key="sales", mode="rw")
    mine = VolumeRequest(name="mine", path=sealed, mode="rw")
    changed, volumes = with_known_paths(["data/orders/a", "data/new/b"], [out, mine])
    assert changed == ("/work/mine/a", "/work/out/b")
    assert volumes == (out, mine)


def test_a_named_volume_goes_before_a_data_set_of_the_same_name_here(
    sealed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The program's folder is /work: there this path is the volume.
    monkeypatch.chdir("data")
    model = VolumeRequest(name="orders", path=Path("elsewhere"), key="sales", mode="rw")
    assert with_known_paths(["orders", "--to=orders/a"], [model]) == (("orders", "--to=orders/a"), (model,))


def test_urls_of_stores(sealed: Path) -> None:
    store = f"local://{sealed}/store"
    out = VolumeRequest(name="out", path=f"{store}/out", key="sales", mode="rw")
    arguments = [f"{store}/out/a", f"--to={store}/out/", f"{store}/other", "http://nn/out", "hdfs:/x"]
    changed, volumes = with_known_paths(arguments, [out])
    assert changed == ("/work/out/a", "--to=/work/out/", f"{store}/other", "http://nn/out", "hdfs:/x")
    assert volumes == (out,)
    assert resolve_volume(out, registered, OWNERS).location == f"{store}/out"
    assert read_info(f"{store}/out") == INFO
    again = resolve_volume(VolumeRequest(name="in", path=f"{store}/out"), None, OWNERS)
    assert (again.dataset, again.location) == (INFO.dataset, f"{store}/out")
    job = sealed / "job.toml"
    job.write_text(JOB + "[[volume]]\nname = 'in'\npath = 'hdfs://nn:9000/a'\n[[volume]]\nname = 'b'\npath = 'b'")
    assert [v.path for v in read_job_file(job)[1]] == ["hdfs://nn:9000/a", sealed / "b"]
    with pytest.raises(InputError, match="has no folders"):
        resolve_volume(replace(out, path="memory://store/out"), registered, OWNERS)
    assert read_info("memory://store/out") is None


@pytest.mark.parametrize(
    "folder", ["data/orders/..", "data/.hidden", "data/-x", "data/..x", "data/" + "n" * 200, "data/ü"]
)
def test_every_derived_name_is_a_plain_name(sealed: Path, folder: str) -> None:
    target = Path(folder)
    write_info(str(target), INFO)
    (changed,), (volume,) = with_known_paths([folder], [])
    assert parse_volume(f"{volume.name}=x").name == volume.name
    assert changed == f"/work/{volume.name}"


def test_two_folders_of_one_name_get_two_names(sealed: Path) -> None:
    write_info("more/orders", INFO)
    changed, volumes = with_known_paths(["data/orders", "more/orders"], [])
    assert changed == ("/work/orders", "/work/orders-2")
    assert len(volumes) == 2


def registered(_key: str, at: Place) -> DatasetInfo:
    write_info(at, INFO)
    return INFO


def test_resolving(sealed: Path, tmp_path: Path) -> None:
    assert resolve_volume(VolumeRequest(name="in", path=sealed), None, OWNERS).dataset == INFO.dataset
    with pytest.raises(InputError, match="under key 'sales', not 'other'"):
        resolve_volume(VolumeRequest(name="in", path=sealed, key="other"), None, OWNERS)
    for request in (
        VolumeRequest(name="in", path=Path("plain")),
        VolumeRequest(name="in", path=Path("nowhere")),
        VolumeRequest(name="in", path=Path("new"), mode="rw"),
        VolumeRequest(name="in", path=Path("new"), key="sales"),
    ):
        with pytest.raises(InputError, match="not a sealed data set"):
            resolve_volume(request, registered, OWNERS)
    (tmp_path / "plain/x").touch()
    with pytest.raises(InputError, match="not empty"):
        resolve_volume(VolumeRequest(name="in", path=Path("plain"), key="sales", mode="rw"), registered, OWNERS)
    assert (
        resolve_volume(
            VolumeRequest(name="in", path=Path("new"), key="sales", mode="rw"), registered, OWNERS
        ).mode
        == "rw"
    )
    assert (tmp_path / "new/.dataset/id.json").exists()


JOB = "[job]\nworkload = 'python'\nprogram = 'app.py'\n"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("[job]\nworkload = 'python'", "program"),
        ("[job]\nprogram = 'a'", "workload"),
        (JOB + "[[volume]]\nname = 'a'", "path"),
        (JOB + "[[volume]]\npath = 'a'", "name"),
        (JOB + "[[volume]]\nname = '../a'\npath = 'a'", "plain name"),
        (JOB + "[[volume]]\nname = 'a'\npath = 'a'\nmode = 'x'", "mode"),
        (JOB + "[[volume]]\nname = 'a'\npath = 'a'\nepoch = []", "whole number"),
        (JOB + "[sandbox]\nnetwork = 'false'", "network"),
        (JOB + "[limits]\nmax_runtime_s = '1'", "max_runtime_s"),
    ],
)
def test_job_files_that_are_refused(tmp_path: Path, text: str, word: str) -> None:
    (tmp_path / "job.toml").write_text(text)
    with pytest.raises(InputError, match=word):
        read_job_file(tmp_path / "job.toml")


def test_a_volume_of_another_owner_is_named_with_its_owner(sealed: Path) -> None:
    write_info("theirs", DatasetInfo(dataset="cd" * 16, key="people", owner=BANK))
    at = Path("theirs")
    named = resolve_volume(VolumeRequest(name="in", path=at, key="people", owner="bank"), None, OWNERS)
    assert (named.owner, named.dataset) == (BANK, "cd" * 16)
    assert resolve_volume(VolumeRequest(name="in", path=sealed, key="sales", owner="me"), None, OWNERS).owner == ME
    for request, words in (
        (VolumeRequest(name="in", path=at), "belongs to owner bank"),
        (VolumeRequest(name="in", path=at, key="people", owner="me"), "not to me"),
        (VolumeRequest(name="in", path=sealed, key="sales", owner="bank"), "not to bank"),
        (VolumeRequest(name="in", path=at, key="people", owner="guild"), "no owner is called 'guild'"),
        (VolumeRequest(name="in", path=Path("new"), key="people", owner="bank", mode="rw"), "not a sealed data set"),
    ):
        with pytest.raises(InputError, match=words):
            resolve_volume(request, registered, OWNERS)
    assert not Path("new").exists()


@pytest.mark.parametrize("text", ["in=a:@bank", "in=a:sales@", "in=a:@"])
def test_half_an_owner_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="is not KEY@OWNER"):
        parse_volume(text)
