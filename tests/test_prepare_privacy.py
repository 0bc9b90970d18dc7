"""Nothing that names a patient leaves a preparation: every byte it writes is searched."""

import json
import os
import stat

import pytest

from mmrl import prepare as command
from mmrl.data.reading import shards
from mmrl.data.sources.prepared import Prepared
from mmrl.preparation import job, pseudonyms
from mmrl.preparation.storage import Storage
from mmrl.types import InputError
from tests import test_dicom_header as header
from tests.corpus_files import write_csv
from tests.dicoms import image, ramp

MRN = "MRN-7731905"
SECRETS = [secret.encode() for secret in (*header.SECRETS, MRN.lower())]
KEY = bytes(range(1, 33))


@pytest.fixture
def hospital(tmp_path):
    """DICOM files named by medical record number, full of secrets; some damaged, one burned in."""
    folder = tmp_path / "export"
    (folder / "images").mkdir(parents=True)
    burned = image(ramp(12), 12, BurnedInAnnotation="YES", PatientName=header.SECRET)
    files = {
        "a": header.PLANTED,
        "b": header.PLANTED + b"\0",
        "cut": header.PLANTED[:-900],
        "none": header.SECRET.encode() * 100,
        "burned": burned,
    }
    rows = []
    for number, (name, data) in enumerate(files.items()):
        path = f"images/{MRN}-{name}.dcm"
        (folder / path).write_bytes(data)
        rows.append([path, f"Report {number}. No pleural effusion.", f"{MRN}-{number // 2}"])
    rows.append([f"images/{MRN}-gone.dcm", "Report. Nothing.", MRN])
    write_csv(folder / "pairs.csv", ["image", "report", "mrn"], rows)
    return folder


def prepared(folder, output, key):
    given = {"path": str(folder / "pairs.csv"), "patient_column": "mrn", "id_column": "image"}
    settings = job.Settings(Storage(32, "png", 95), max_reject_fraction=0.9)
    return job.prepare("table", {**given, "verify": "exists"}, output, settings, key=key)


def everything(folder):
    """Names and bytes of all files below a folder."""
    for path in sorted(folder.rglob("*")):
        yield path.name.encode()
        if path.is_file():
            yield path.read_bytes()


def test_no_planted_secret_is_in_any_file_that_is_written(hospital, tmp_path, capfd):
    output = tmp_path / "corpus"
    manifest = prepared(hospital, output, KEY)
    said = capfd.readouterr()
    found = [*everything(output), said.out.encode(), said.err.encode()]
    for secret in SECRETS:
        assert not [part for part in found if secret in part.lower()], secret
    reasons = [json.loads(line) for line in (output / shards.REJECTS).read_text().splitlines()]
    assert sorted(reject["reason"] for reject in reasons) == [
        "burned_in_annotation",
        "missing_image",
        "unreadable_image",
        "unreadable_image",
    ]
    assert manifest["options"]["pseudonymised"] is True


def test_pseudonyms_join_what_belongs_together_and_depend_on_the_key(hospital, tmp_path):
    records = {}
    for name, key in (("one", KEY), ("again", KEY), ("other", bytes(reversed(KEY)))):
        prepared(hospital, tmp_path / name, key)
        parts = [Prepared(split=s, path=str(tmp_path / name)) for s in ("train", "val", "test")]
        records[name] = [part[index] for part in parts for index in range(len(part))]
    a, b = records["one"]
    assert (a.patient_id, a.leakage_unit) == (b.patient_id, b.leakage_unit)
    assert (a.id != b.id) and a.id.startswith("table:") and len(a.id) == len("table:") + 32
    assert [record.id for record in records["again"]] == [a.id, b.id]
    assert not {r.patient_id for r in records["other"]} & {r.patient_id for r in records["one"]}
    assert (a.images[0].load() == b.images[0].load()).all()


def test_without_a_key_ids_stay(hospital, tmp_path):
    prepared(hospital, tmp_path / "open", None)
    assert MRN.encode() in (tmp_path / "open" / shards.INDEX).read_bytes()


def test_the_command_makes_a_key_once_and_refuses_a_careless_one(tmp_path, monkeypatch, capsys):
    path = tmp_path / "key"
    monkeypatch.setattr(command, "_KEY_FILE", type("Flag", (), {"value": str(path)}))
    key = command._key()
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert "keep it apart from the corpus" in capsys.readouterr().out
    assert command._key() == key == pseudonyms.load_key(path)
    path.chmod(0o644)
    with pytest.raises(InputError):
        command._key()
