"""Open-i, the chest radiographs of Indiana University (IU X-Ray), in both of its distributions.

Kaggle (`raddar/chest-xrays-indiana-university`): `indiana_reports.csv`, `indiana_projections.csv`
and PNGs below `images/images_normalized/`; 3,851 reports, 7,466 images. NLM: one XML file per
report in a folder `ecgen-radiology/`, and PNG or DICOM files; 3,955 reports, 7,470 images. Archives
may be unpacked anywhere below `path`. Both distributions give the same ids ("openi:1") and texts.

Licence: CC BY-NC-ND 4.0, as stated in the XML files; open access. Unchanged images may be
redistributed, resized ones may not. Paper: Demner-Fushman et al., JAMIA 2016,
doi:10.1093/jamia/ocv080.

There is one record per report with all its images. There is no official split. A report is a
patient (its number is the PatientID of the DICOM headers), so records are divided by a hash of it.
Also handled:
  * Projections are those labelled by hand in `indiana_projections.csv`, frontal images first. The
    headers of the DICOM files say PA of many lateral images and are not used. XML states no
    projection: put the projections file beside it, else projections stay UNKNOWN, in the order of
    the file.
  * XML names the images of report 1 "CXR1_1_IM-...", those of report 10 "CXR10_IM-...".
  * 104 reports of the XML distribution have no image and are kept for their text. 25 reports have
    images and no text and are kept for images and labels. Training refuses both, with the reasons
    missing_image and empty_report.
  * XXXX in place of words and numbered impressions are kept.
  * Labels are the heads of the MeSH codes, compared as a whole: "Granuloma" is not "Calcified
    Granuloma". Coders listed what they found, so all other labels are absent (0). A report with
    the code "No Indexing" was not coded (-2). The codes are in attributes["mesh"].
"""

import dataclasses
import os
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator
from typing import Any

from mmrl.data.reading.drafts import Draft, Facts, ImageFile
from mmrl.data.reading.listing import Listing
from mmrl.data.reading.rows import projection_name
from mmrl.types import InputError, Reject

_TOP = "chest-xrays-indiana-university"
_SECTIONS = ("indication", "comparison", "findings", "impression")
# The folder in the path of an image that is not found.
_EXPECTED = {"kaggle": "images/images_normalized", "nlm": "NLMCXR_{type}"}
_COUNTS = {
    "kaggle": {"records": 3851, "images": 7466},
    "nlm": {"records": 3955, "images": 7470},
}
_NOT_CODED = "No Indexing"
_TWICE = "the image is listed twice for this report"
_MAX_XML = 2**20  # bytes; the reports have a few thousand
_FRONT_TO_BACK = {"FRONTAL": 0, "UNKNOWN": 1, "OTHER": 2, "LATERAL": 3}


class Openi(Listing):
    """Records of Open-i; a Source.

    Args:
      layout: kaggle or nlm; "" detects which one is in the folder.
      image_type: png or dcm, the kind of image files to read.
      others: see `Listing`.

    Attributes:
      rejects: reasons are those of `Listing`, bad_row, bad_xml, and for single images
        ("openi:{report}#{image}") duplicate_image and unknown_report.

    Raises:
      InputError: neither distribution is in the folder, or both are and `layout` is "".
    """

    facts = Facts(
        title="Open-i: Indiana University chest X-rays",
        url="https://openi.nlm.nih.gov/faq#collection",
        license="CC-BY-NC-ND-4.0",
    )
    # Codes of at least 15 reports that are a finding or a device, and not a part of the body.
    label_names = (
        "normal", "Airspace Disease", "Arthritis", "Atherosclerosis", "Bone Diseases, Metabolic",
        "Calcified Granuloma", "Calcinosis", "Cardiomegaly", "Catheters, Indwelling", "Cicatrix",
        "Consolidation", "Deformity", "Density", "Diaphragmatic Eventration", "Emphysema",
        "Foreign Bodies", "Fractures, Bone", "Granuloma", "Granulomatous Disease",
        "Hernia, Hiatal", "Implanted Medical Device", "Infiltrate", "Kyphosis", "Lucency",
        "Lung, Hyperlucent", "Markings", "Mass", "Medical Device", "Nodule", "Opacity",
        "Osteophyte", "Pleural Effusion", "Pneumonia", "Pneumothorax", "Pulmonary Atelectasis",
        "Pulmonary Congestion", "Pulmonary Disease, Chronic Obstructive", "Pulmonary Edema",
        "Pulmonary Emphysema", "Pulmonary Fibrosis", "Scoliosis", "Spinal Fusion", "Spondylosis",
        "Stents", "Surgical Instruments", "Thickening", "Tube, Inserted",
    )  # fmt: skip

    def __init__(self, *, layout: str = "", image_type: str = "png", **others: Any) -> None:
        for option, given, choices in (
            ("layout", layout, ("", "kaggle", "nlm")),
            ("image_type", image_type, ("png", "dcm")),
        ):
            if given not in choices:
                offered = ", ".join(choice or '""' for choice in choices)
                raise InputError(f"openi: {option} is {given!r}; choices: {offered}")
        self.layout, self._type = layout, image_type
        super().__init__(**others)

    def scan(self) -> Iterator[Draft | Reject]:
        """Yields the reports in the order of their numbers."""
        tables = self._existing(
            f"{name}.csv" for name in ("indiana_reports", _TOP + "/indiana_reports")
        )
        folder, names = self._xml_files()
        found = {"kaggle": bool(tables), "nlm": bool(names)}
        if not self.layout:
            if all(found.values()):
                raise InputError(
                    f"openi: both distributions in '{self.path}'; set layout to kaggle or nlm"
                )
            self.layout = next((name for name, there in found.items() if there), "")
        if not found.get(self.layout):
            raise InputError(
                f"openi: no {self.layout or 'known'} distribution in '{self.path}'; expected"
                " indiana_reports.csv (Kaggle) or ecgen-radiology/*.xml (NLM)"
            )
        self.facts = dataclasses.replace(self.facts, expected=_COUNTS[self.layout])
        files = self._image_files()
        if self.layout == "kaggle":
            yield from self._kaggle(tables[0], files)
        else:
            yield from self._nlm(folder, names, files)

    def _kaggle(self, table: str, files: dict[str, str]) -> Iterator[Draft | Reject]:
        projections = os.path.join(os.path.dirname(table), "indiana_projections.csv")
        images: dict[str, list[ImageFile]] = {}
        for row in self.rows(projections, ("uid", "filename", "projection")):
            if isinstance(row, Reject):
                yield row
                continue
            _, cell = row
            image = ImageFile(
                self._path_of(cell["filename"], files), *_projection(cell["projection"])
            )
            mine = images.setdefault(cell["uid"], [])
            if image.path in {other.path for other in mine}:
                yield Reject(f"openi:{cell['uid']}#{cell['filename']}", "duplicate_image", _TWICE)
                continue
            mine.append(image)
        reports = []
        for row in self.rows(table, ("uid", "MeSH", *_SECTIONS), ("image",)):
            if isinstance(row, Reject):
                yield row
            elif not row[1]["uid"].isdecimal():
                detail = f"uid is {row[1]['uid']!r}, expected a number"
                yield Reject(f"openi:indiana_reports.csv row {row[0]}", "bad_row", detail)
            else:
                reports.append(row[1])
        for cell in sorted(reports, key=lambda cell: int(cell["uid"])):
            sections = {"examination": cell["image"]} | {name: cell[name] for name in _SECTIONS}
            yield self._draft(cell["uid"], images.get(cell["uid"], []), sections, cell["MeSH"])
        for uid in sorted(set(images) - {cell["uid"] for cell in reports}):
            for image in images[uid]:
                name = os.path.basename(image.path)
                yield Reject(f"openi:{uid}#{name}", "unknown_report", "no report has this uid")

    def _nlm(
        self, folder: str, names: list[str], files: dict[str, str]
    ) -> Iterator[Draft | Reject]:
        projections: dict[str, str] = {}
        beside = self._existing(["indiana_projections.csv"])
        for row in self.rows(beside[0], ("filename", "projection")) if beside else ():
            if isinstance(row, Reject):
                yield row
            else:
                projections[_plain_stem(row[1]["filename"])] = row[1]["projection"]
        for name in names:
            try:
                tree = _parse(os.path.join(self.path, folder, name))
                identity = tree.find("uId")
                native = "" if identity is None else identity.get("id", "")
                if not re.fullmatch(r"CXR\d+", native):
                    raise ValueError(f"uId is {native!r}, expected CXR and a number")
            except (ET.ParseError, ValueError, LookupError, OSError) as error:
                yield Reject(f"openi:{name}", "bad_xml", str(error))
                continue
            uid = native[3:]
            images: dict[str, ImageFile] = {}
            sections = {"examination": ""}
            for parent in tree.iter("parentImage"):
                stem = parent.get("id", "").strip()
                if stem in images:
                    yield Reject(f"openi:{uid}#{stem}", "duplicate_image", _TWICE)
                path = self._path_of(f"{stem}.png", files)
                images[stem] = ImageFile(path, *_projection(projections.get(_plain_stem(stem), "")))
                sections["examination"] = (
                    sections["examination"] or (parent.findtext("caption") or "").strip()
                )
            for part in tree.iter("AbstractText"):
                key, text = part.get("Label", "full").strip().lower(), "".join(part.itertext())
                earlier = sections.get(key, "")
                sections[key] = f"{earlier}\n{text.strip()}" if earlier else text.strip()
            mesh = ";".join("".join(major.itertext()).strip() for major in tree.iter("major"))
            machine = ";".join("".join(one.itertext()).strip() for one in tree.iter("automatic"))
            yield self._draft(uid, list(images.values()), sections, mesh, machine)

    def _draft(
        self,
        uid: str,
        images: list[ImageFile],
        sections: dict[str, str],
        mesh: str,
        machine: str = "",
    ) -> Draft:
        heads = {code.partition("/")[0].strip() for code in mesh.split(";")} - {""}
        coded = heads and _NOT_CODED not in heads
        attributes = {"mesh": mesh, "mesh_automatic": machine}
        return Draft(
            uid,
            patient=uid,
            study=f"CXR{uid}",
            images=tuple(sorted(images, key=lambda image: _FRONT_TO_BACK.get(image.projection, 1))),
            sections={name: text for name, text in sections.items() if text},
            labels=tuple(int(name in heads) if coded else -2 for name in self.label_names),
            attributes={name: text for name, text in attributes.items() if text},
        )

    def _existing(self, candidates: Iterable[str]) -> list[str]:
        return [name for name in candidates if os.path.isfile(os.path.join(self.path, name))]

    def _xml_files(self) -> tuple[str, list[str]]:
        """The first folder with XML files and their names, by number; "" and [] without any."""
        for folder, inner, files in os.walk(self.path):
            inner.sort()
            names = [name for name in files if re.fullmatch(r"\d+\.xml", name)]
            if names:
                relative = os.path.relpath(folder, self.path)
                return relative, sorted(names, key=lambda name: int(name[:-4]))
        return "", []

    def _image_files(self) -> dict[str, str]:
        """Name -> path of every image file below the folder; of equal names, the first path."""
        found: dict[str, str] = {}
        for folder, inner, names in os.walk(self.path):
            inner.sort()
            for name in sorted(names):
                if name.lower().endswith(f".{self._type}"):
                    relative = os.path.relpath(os.path.join(folder, name), self.path)
                    found.setdefault(_plain_stem(name), relative)
        return found

    def _path_of(self, name: str, files: dict[str, str]) -> str:
        """The path of the image that a table or an XML file names."""
        stem = _plain_stem(name)
        if stem in files:
            return files[stem]
        folder = _EXPECTED[self.layout].format(type=self._type)
        if self._type == "dcm":
            return f"{folder}/{stem}.dcm"
        return f"{folder}/{name}"


def _plain_stem(name: str) -> str:
    """The name of an image without prefix and suffixes, such as "1_IM-0001-3001".

    It is the same for "1_IM-0001-3001.dcm.png" (Kaggle) and "CXR1_1_IM-0001-3001.png" (NLM).
    """
    stem = re.sub(r"(\.dcm)?(\.png)?$", "", name, flags=re.IGNORECASE)
    return re.sub(r"^CXR(?:1_(?=1_))?", "", stem)


def _projection(text: str) -> tuple[str, str]:
    projection = projection_name(text)
    return projection, "" if projection == "UNKNOWN" else "label"


class _NoDoctype(ET.TreeBuilder):
    """Refuses document type declarations, with which a small file can expand without limit."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError("a document type declaration; expected none")


def _parse(path: str) -> ET.Element:
    if not os.path.isfile(path):  # reading a pipe may not end
        raise ValueError("not a file")
    if (size := os.path.getsize(path)) > _MAX_XML:
        raise ValueError(f"{size} bytes; expected at most {_MAX_XML}")
    return ET.parse(path, ET.XMLParser(target=_NoDoctype())).getroot()
