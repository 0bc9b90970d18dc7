"""Ways to damage the files of a corpus. Numbers choose the damage, so that a case is reproducible.

A `Damage` names an operation; `file` chooses among the files of the corpus, `first` and `second`
places in it, `value` what is put there. All wrap around: any numbers make a case.
"""

import csv
import gzip
import io
import json
import os
import shutil
import struct
import unicodedata
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

SECRET = "stolen words of another folder"  # text outside the corpus; no record may hold it

HOSTILE = (
    "",
    " ",
    "nan",
    "None",
    " NA ",
    "<NA>",
    "___",
    "FINDINGS:\nIMPRESSION: XXXX.",
    "[**Name**]",
    "images\\0.png",
    "C:\\images\\0.png",
    "file://images/0.png",
    "\\..\\..\\outside\\secret.png",
    "A\u030a.png",
    "1,5",
    "true",
    "0",
    "1",
    "2",
    "-1",
    "-3",
    "0.5",
    "1e999",
    "-1e999",
    "1e-400",
    "9" * 400,
    "9" * 5000,
    "99999999999999999999",
    "-2147483649",
    "../../outside/secret.png",
    "../" * 40 + "etc/passwd",
    "/etc/passwd",
    "{outside}/secret.png",
    "~/x.png",
    "a\0b.png",
    "x" * 300,
    "y" * 5000,
    "a/" * 3000,
    ".",
    "..",
    "images",
    "loop/loop/x.png",
    "\ud800",
    "\ufeff\u202e",
    "a\nb",
    "a\r\nb",
    "a\tb",
    "a\u2028b\x85c",
    '"',
    '"""',
    "'",
    ",,,,",
    "a#b",
    "#",
    "%2e%2e/x.png",
    "[",
    "[" * 3000,
    "['a', ",
    "['\\ud800']",
    "[1, [2, [3]]]",
    "__import__('os')",
    "{}",
    "9999-99-99",
    "00000000",
    "&lt;&#0;",
    "💥" * 50,
    "=cmd|' /C calc'!A0",
)
JSON_HOSTILE = (
    *HOSTILE,
    None,
    True,
    [],
    {},
    [[]],
    {"a": {"b": []}},
    -1,
    0.5,
    10**30,
    float("nan"),
    float("inf"),
    [1e308, -1e308, 0, 0],
)
SIZES = ((0, 0), (0, 5), (1, 2**31 - 1), (2**31 - 1, 2**31 - 1), (65535, 65535), (4096, 4096))


class Damage(NamedTuple):
    """One operation by name, and the numbers that choose where and what."""

    operation: str
    file: int
    first: int
    second: int
    value: int


class Place(NamedTuple):
    """A file to damage, the numbers, and the folder outside the corpus."""

    path: Path
    first: int
    second: int
    value: int
    outside: Path

    def hostile(self) -> str:
        return HOSTILE[self.value % len(HOSTILE)].replace("{outside}", str(self.outside))


Change = Callable[[Place], None]
OPERATIONS: dict[str, tuple[tuple[str, ...], Change]] = {}  # name -> suffixes it is for, change


def operation(*suffixes: str) -> Callable[[Change], Change]:
    """Registers an operation, for files with the given suffixes or for all files."""

    def enter(change: Change) -> Change:
        OPERATIONS[change.__name__] = suffixes, change
        return change

    return enter


def apply(folder: Path, outside: Path, damage: Damage) -> None:
    """Damages one of the files of a corpus, which may already be damaged."""
    suffixes, change = OPERATIONS[damage.operation]
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    files = [path for path in files if not suffixes or path.suffix in suffixes]
    if files:
        change(Place(files[damage.file % len(files)], *damage[2:], outside))


# --- any file ------------------------------------------------------------------------------------


@operation()
def truncate(at: Place) -> None:
    data = at.path.read_bytes()
    at.path.write_bytes(data[: at.first % (len(data) + 1)])


@operation()
def flip(at: Place) -> None:
    data = bytearray(at.path.read_bytes())
    for step in range(1 + at.second % 4):
        if data:
            data[(at.first + 977 * step) % len(data)] ^= 1 + at.value % 255
    at.path.write_bytes(data)


@operation()
def insert(at: Place) -> None:
    junk = (b"\0", b"\xed\xa0\x80", b"\xff\xfe", b"\xef\xbb\xbf", b'"', b"\n", b"\r", b",", b"\t")
    data = at.path.read_bytes()
    place = at.first % (len(data) + 1)
    at.path.write_bytes(data[:place] + junk[at.value % len(junk)] + data[place:])


@operation()
def garbage(at: Place) -> None:
    state = zlib.crc32(str(at.first).encode())
    noise = b"".join(struct.pack("<I", zlib.crc32(b"%d" % n, state)) for n in range(at.second % 99))
    heads = (
        b"",
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff\xe0",
        b"PK\x03\x04",
        b"\x1f\x8b\x08",
        b"DICM",
    )
    at.path.write_bytes(heads[at.value % len(heads)] + noise)


@operation()
def recode(at: Place) -> None:
    """The same text in another encoding, with or without a byte-order mark."""
    encodings = ("utf-16", "utf-32", "utf-8-sig", "utf-7", "utf-16-le", "utf-16-be", "gb18030")
    encoding = (*encodings, "cp1252", "cp037")[at.value % 9]
    data = at.path.read_bytes()
    text = data.decode("utf-8" if at.first % 2 else "latin-1", "replace")
    at.path.write_bytes(text.encode(encoding, "replace"))


@operation()
def remove(at: Place) -> None:
    at.path.unlink()


@operation()
def make_folder(at: Place) -> None:
    at.path.unlink()
    at.path.mkdir()


@operation()
def make_pipe(at: Place) -> None:
    at.path.unlink()
    os.mkfifo(at.path)


@operation()
def link(at: Place) -> None:
    at.path.unlink()
    targets = ("secret" + at.path.suffix, "nothing", "/dev/zero", at.path.name, ".", "secret.png")
    targets += ("../blobs/open.png", "../blobs/to_secret.png", "../blobs/nothing")
    target = targets[at.value % len(targets)]
    if target == at.path.name:
        at.path.symlink_to(at.path)
    else:
        at.path.symlink_to(at.outside / target)


@operation()
def link_folder(at: Place) -> None:
    if at.path.parent.parent == at.outside.parent:
        return  # the folder of the corpus itself is the user's own choice
    shutil.rmtree(at.path.parent)
    at.path.parent.symlink_to((at.outside, at.outside / "nothing", at.path.parent)[at.value % 3])


@operation()
def rename(at: Place) -> None:
    """Another name for the same file: other case, other normal form, backslashes, a suffix."""
    name = at.path.name
    names = (
        name.swapcase(),
        unicodedata.normalize("NFD", f"ä{name}"),
        unicodedata.normalize("NFC", f"ä{name}"),
        f"images\\{name}",
        f"{name}.png",
        at.path.stem or "x",
    )
    at.path.rename(at.path.with_name(names[at.value % len(names)]))


@operation()
def link_inside(at: Place) -> None:
    """A link to the file, which moves to another place in the corpus or to the blobs."""
    folders = (at.path.parent, at.outside.parent / "blobs", at.outside)
    target = folders[at.value % 3] / f"blob{at.first % 3}"
    if not target.exists():
        shutil.move(at.path, target)
        at.path.symlink_to(os.path.relpath(target, at.path.parent) if at.second % 2 else target)


@operation()
def swap_files(at: Place) -> None:
    files = (path for path in at.path.parent.iterdir() if not path.is_symlink())
    others = sorted(path for path in files if path.is_file())
    other = others[at.first % len(others)]
    data = at.path.read_bytes()
    at.path.write_bytes(other.read_bytes())
    other.write_bytes(data)


@operation()
def odd_name(at: Place) -> None:
    names = (b"\xff\xfe", b"a\nb", b"..x", b"a#b", b" ", "é".encode(), b"x" * 200)
    name = names[at.value % len(names)] + os.fsencode(at.path.suffix)
    data = at.path.read_bytes()
    with open(os.path.join(os.fsencode(at.path.parent), name), "wb") as file:
        file.write(data)


@operation()
def pack(at: Place) -> None:
    """The file gzipped instead of plain, or the other way round; whole, cut, altered or a bomb."""
    data = at.path.read_bytes()
    if at.path.suffix == ".gz":
        packed, other = data, at.path
    else:
        packed, other = gzip.compress(data, mtime=0), at.path.with_name(at.path.name + ".gz")
        at.path.unlink()
    kinds = (packed, packed[:-5], packed[: len(packed) // 2], data, _bomb(data), packed + b"\0\1")
    other.write_bytes(kinds[at.value % len(kinds)])


def _bomb(data: bytes) -> bytes:
    """The table, then 2 GiB of the same line in 2 MiB: members of a gzip file follow each other."""
    if not _BOMB:
        _BOMB.append(gzip.compress(b"a,b\n" * 2**22, mtime=0))
    return gzip.compress(data, mtime=0) + _BOMB[0] * 128


_BOMB: list[bytes] = []

# --- tables --------------------------------------------------------------------------------------


def _edit(at: Place, change: Callable[[list[list[str]]], None]) -> None:
    """Changes the cells of a delimited text. Bytes that are not text are preserved."""
    text = at.path.read_bytes().decode("utf-8", "surrogateescape")
    delimiter = "\t" if text.count("\t") > text.count(",") else ","
    try:
        cells = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
    except csv.Error:
        return
    cells = [row for row in cells if row]
    if cells:
        change(cells)
        out = io.StringIO(newline="")
        csv.writer(out, delimiter=delimiter, lineterminator="\n").writerows(cells)
        at.path.write_bytes(out.getvalue().encode("utf-8", "surrogatepass"))


@operation(".csv", ".tsv", ".txt", ".jsonl")
def cell(at: Place) -> None:
    if at.path.suffix == ".jsonl":
        return json_value(at)

    def change(rows: list[list[str]]) -> None:
        row = rows[at.first % len(rows)]
        row[at.second % len(row)] = at.hostile()

    return _edit(at, change)


@operation(".csv", ".tsv", ".txt", ".jsonl")
def column(at: Place) -> None:
    """Fills a column with hostile values, or removes, swaps, duplicates or renames it."""

    def change(rows: list[list[str]]) -> None:
        width = len(rows[0])
        one, other = at.first % width, at.second % width
        for row in rows:
            if len(row) != width:
                continue
            match at.value % 4:
                case 0:
                    row[one] = at.hostile() if row is not rows[0] else row[one]
                case 1:
                    del row[one]
                case 2:
                    row[one], row[other] = row[other], row[one]
                case 3:
                    row.append(row[one])

    _edit(at, change)


@operation(".csv", ".tsv", ".txt")
def delimiter(at: Place) -> None:
    """Another delimiter in all lines or in one, stated or not, blanks or empty columns after it."""
    lines = at.path.read_bytes().split(b"\n")
    other = (b";", b"\t", b"|", b", ", b",,", b"^", b"\\", b"")[at.value % 8]
    chosen = range(len(lines)) if at.second % 3 else (at.first % len(lines),)
    for place in chosen:
        lines[place] = lines[place].replace(b",", other)
    if at.second % 4 == 1:
        lines.insert(0, b"sep=" + other)
    if at.second % 5 == 1:
        lines = [line.rstrip(b"\r") + b",,;"[: 1 + at.first % 3] for line in lines]
    at.path.write_bytes(b"\n".join(lines))


@operation(".csv", ".tsv", ".txt", ".jsonl")
def path_form(at: Place) -> None:
    """Paths as other systems write them, in the whole text."""
    text = at.path.read_bytes().decode("utf-8", "surrogateescape")
    match at.value % 6:
        case 0:
            text = text.replace("/", "\\\\" if at.path.suffix == ".jsonl" else "\\")
        case 1:
            text = unicodedata.normalize("NFD", text.replace("images", "ímages"))
        case 2:
            text = text.replace(".png", ".PNG").replace(".jpg", ".JPG")
        case 3:
            text = text.replace("images/", f"{at.path.parent}/images/")
        case 4:
            text = text.replace("images/", f"{at.outside.parent}/blobs/")
        case 5:
            text = text.replace("images/", "../../images/")
    at.path.write_bytes(text.encode("utf-8", "surrogateescape"))


@operation(".jsonl", ".csv")
def other_kind(at: Place) -> None:
    """A JSON array in place of lines, lines in place of CSV, a page in place of either."""
    data = at.path.read_bytes()
    lines = [line for line in data.split(b"\n") if line.strip()]
    kinds = (
        b"[" + b",\n".join(lines) + b"]",
        b"\n".join(b'{"image": "images/0.png", "report": "a"}' for _ in lines),
        b"<!DOCTYPE html><html>" + data,
        b"PK\x03\x04" + data,
        b"PAR1" + data + b"PAR1",
        b"{\n" + data + b"\n}",
        b"\x1f\x8b" + data,
    )
    at.path.write_bytes(kinds[at.value % len(kinds)])


@operation(".csv", ".tsv", ".txt", ".jsonl")
def row(at: Place) -> None:
    """Duplicates, moves, shortens or extends a row, or repeats it a few hundred times."""

    def change(rows: list[list[str]]) -> None:
        chosen = rows[at.first % len(rows)]
        match at.value % 5:
            case 0:
                rows.append(list(chosen))
            case 1:
                rows.insert(0, rows.pop(at.first % len(rows)))
            case 2:
                del chosen[-1]
            case 3:
                chosen += [at.hostile()]
            case 4:
                rows += [list(chosen) for _ in range(300)]

    _edit(at, change)


@operation(".json", ".jsonl")
def json_value(at: Place) -> None:
    """Replaces one value of a JSON text, or of one line of JSON."""
    text = at.path.read_bytes().decode("utf-8", "replace")
    whole = at.path.suffix == ".json"
    pieces = [text] if whole else text.splitlines()
    chosen = at.first % max(len(pieces), 1)
    try:
        value = json.loads(pieces[chosen])
    except (ValueError, IndexError, RecursionError):
        return
    spots = list(_spots(value))
    if not spots:
        return
    holder, key = spots[at.second % len(spots)]
    holder[key] = JSON_HOSTILE[at.value % len(JSON_HOSTILE)]
    pieces[chosen] = json.dumps(value)
    at.path.write_text("\n".join(pieces), "utf-8")


def _spots(value: Any) -> Any:
    """Yields every (list or dictionary, index or key) of a JSON value."""
    entries = value.items() if isinstance(value, dict) else enumerate(value)
    if isinstance(value, dict | list):
        for key, below in list(entries):
            yield value, key
            if isinstance(below, dict | list):
                yield from _spots(below)
