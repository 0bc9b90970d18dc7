"""Keys and the pseudonyms made with them."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from mmrl.preparation import pseudonyms
from mmrl.types import InputError

KEY = bytes(range(32))


def test_pseudonyms_are_keyed_stable_and_separate() -> None:
    first = pseudonyms.pseudonym(KEY, "12345", "patient")
    assert (
        first == hashlib.blake2b(b"12345", digest_size=16, key=KEY, person=b"patient").hexdigest()
    )
    assert first == pseudonyms.pseudonym(KEY, " 12345\0", "patient") and len(first) == 32
    others = [
        pseudonyms.pseudonym(KEY, "12345", "study"),
        pseudonyms.pseudonym(KEY[::-1], "12345", "patient"),
        pseudonyms.pseudonym(KEY, "12346", "patient"),
    ]
    assert len({first, *others}) == 4
    for key, value, kind, message in (
        (KEY[:31], "1", "patient", "a key of 31 bytes; expected 32 to 64"),
        (KEY, "  ", "patient", "blank patient identifier"),
        (KEY, "1", "a" * 17, "expected 1 to 16 small letters"),
    ):
        with pytest.raises(InputError, match=message):
            pseudonyms.pseudonym(key, value, kind)


def test_keys_are_made_private_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "key"
    old = os.umask(0)
    try:
        pseudonyms.new_key(path)
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o777 == 0o600
    key = pseudonyms.load_key(path)
    assert len(key) == 32 and key.hex() == path.read_text().strip()
    with pytest.raises(InputError, match="key: File exists"):
        pseudonyms.new_key(path)
    assert pseudonyms.load_key(path) == key
    path.chmod(0o604)
    with pytest.raises(InputError, match="mode 0604 lets every user in; expected 0600"):
        pseudonyms.load_key(path)
    with pytest.raises(InputError, match="No such file"):
        pseudonyms.load_key(tmp_path / "none")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "0 bytes; expected 32 to 64"),
        (b"ab" * 31, "31 bytes; expected 32 to 64"),
        (b"correct horse", "13 bytes; expected 32"),
        (b"00" * 32, "1 distinct bytes; expected random ones"),
        (bytes(range(65)), "65 bytes"),
    ],
)
def test_weak_keys_are_refused(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(data)
    (tmp_path / "key").chmod(0o600)
    with pytest.raises(InputError, match=message):
        pseudonyms.load_key(tmp_path / "key")
    (tmp_path / "key").write_bytes(np.arange(32, dtype=np.uint8).tobytes())
    assert pseudonyms.load_key(tmp_path / "key") == KEY
