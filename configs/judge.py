"""Real sets on which trained encoders are judged; one command each.

    python -m mmrl.evaluate --workdir=runs/pretrain --config=configs/judge.py:busi --out=judged/busi

One of `VARIANTS` is given after the colon; the default is nih. The sets lie in the folder that
MMRL_REAL_DATA names (default ../shared/data) and are read as tables, as a table of your own is. The
notes of a set say what its figures cannot show; every result repeats them. Only the data and the
evaluators of this preset matter: the encoders are those of the run.
"""

import os
from typing import Any

import ml_collections

from configs import pretrain, real
from mmrl import config as defaults
from mmrl.types import InputError

VARIANTS = {
    "nih": "chest radiographs: findings, boxes, RSNA classes (Wang et al. 2017)",
    "busi": "breast ultrasound: 3 classes, masks (Al-Dhabyani et al. 2020)",
    "ham10000": "dermoscopic images: 7 classes, masks, boxes (Tschandl et al. 2018)",
    "lungs": "radiographs of covid: masks of the lungs, boxes of each",
    "roco": "radiology figures with captions (Pelka et al. 2018)",
    "covid": "chest radiographs with clinical notes (Cohen et al. 2020)",
}

_FOLDER = os.environ.get("MMRL_REAL_DATA", "../shared/data")
_GREY = "Colour images are read as grey."
_SHARED = "The sets covid and lungs share radiographs; the leak check compares their patients."

# All prompts were written before the first run on these sets, none was changed after.
_LUNGS = {side: f"{side.capitalize()}." for side in ("left lung", "right lung")}
_OPACITIES = {"Pneumonia": "Pneumonia.", "Lung Opacity": "Lung opacity."}

_FINDINGS = (
    *("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Emphysema", "Fibrosis"),
    *("Hernia", "Infiltration", "Mass", "Nodule", "Pleural_Thickening", "Pneumonia"),
    "Pneumothorax",
)
_RSNA = ("Normal", "No Lung Opacity / Not Normal", "Lung Opacity")

_PROBE = {"name": "probe", "methods": ("linear", "knn", "simple_shot"), "shots": (1, 4, 16)}
_CLASSES = {**_PROBE, "kind": "classes"}
# The size is fixed, because masks compare only at equal size. Small sets need no more.
_SEGMENTATION = {"size": 64, "width": 32, "epochs": 20, "max_train": 200}
_SIDES = {"name": "grounding", "sentences": False}

EVALUATORS: dict[str, dict[str, Any]] = {
    "nih": {
        "findings": {**_PROBE, "labels": _FINDINGS, "min_positives": 5},
        "rsna": {**_CLASSES, "labels": _RSNA},
        "grounding": {"prompts": _OPACITIES},
    },
    "busi": {"classes": _CLASSES, "segmentation": _SEGMENTATION},
    "ham10000": {"classes": _CLASSES, "segmentation": _SEGMENTATION},
    "lungs": {
        "segmentation": _SEGMENTATION,
        "sides": {**_SIDES, "prompts": _LUNGS},
        # Each box with the words of the other side: an encoder that knows sides does worse.
        "sides_exchanged": {
            **_SIDES,
            "prompts": {
                "left lung": _LUNGS["right lung"],
                "right lung": _LUNGS["left lung"],
            },
        },
    },
    "roco": {
        "retrieval": {},
        "modality": {"name": "zero_shot", "tasks": real.modality_tasks()},
        "modality_probe": {**_CLASSES, "labels": tuple(real.MODALITIES)},
    },
    "covid": {"retrieval": {}},
}
"""Set -> its evaluators by name."""

DATA: dict[str, dict[str, Any]] = {
    "nih": {
        "name": "nih14",
        "path": f"{_FOLDER}/nih_cxr/index.csv",
        "patient_column": "patient_id",
        "projection_column": "view",
        "labels_column": "labels",
        "class_column": "rsna_class",
        "attribute_columns": ("sex", "age"),
        "boxes": (f"{_FOLDER}/nih_cxr/boxes.csv", f"{_FOLDER}/nih_cxr/rsna_boxes.csv"),
        # "No Finding" and "Pneumonia" come from other ranges of patient numbers, so the scanner
        # tells them apart.
        "leave_out": {"labels": ("No Finding",)},
        "notes": (
            "Every record has the label Pneumonia, so that label cannot be judged; the others tell "
            "abnormal radiographs apart.",
            "Findings were mined from reports, and only a part of the records has a class of RSNA.",
        ),
    },
    "busi": {
        "name": "busi",
        "path": f"{_FOLDER}/busi/index.csv",
        "patient_column": "",
        "class_column": "label",
        "mask_column": "mask",
        "mask_label": "lesion",
        "notes": (
            "Patients are not known. Images of one patient may be in training and test, so figures "
            "are optimistic and intervals too narrow.",
        ),
    },
    "ham10000": {
        "name": "ham10000",
        "path": f"{_FOLDER}/ham10000_small/index.csv",
        "patient_column": "lesion_id",
        "class_column": "label_name",
        "attribute_columns": {"sex": "sex", "age": "age", "site": "localization"},
        "mask_column": "mask",
        "mask_label": "lesion",
        "boxes": f"{_FOLDER}/ham10000_small/index.csv",
        "box_columns": {
            "label": "label_name",
            **{side: f"box_{side}" for side in ("x", "y", "w", "h")},
        },
        "notes": (
            "Divided by lesion: patients are not known, so one may have lesions in training and "
            "test.",
            _GREY,
        ),
    },
    "lungs": {
        "name": "covid",
        "path": f"{_FOLDER}/covid_cxr_masks/index.csv",
        "root": _FOLDER,
        "patient_column": "patient_id",
        "projection_column": "view",
        "mask_column": "mask",
        "mask_root": f"{_FOLDER}/covid_cxr_masks",
        "mask_label": "lungs",
        "boxes": f"{_FOLDER}/covid_cxr_masks/boxes.csv",
        "notes": ("Left and right are the patient's.", _SHARED),
    },
    "roco": {
        "name": "roco",
        "path": f"{_FOLDER}/roco_pairs/index.csv",
        "report_columns": ("report",),
        "patient_column": "article_id",
        "class_rule": "modality@1",
        # What configs/real.py:roco holds out.
        "fractions": (0.8, 0.0, 0.2),
        "notes": (_GREY,),
    },
    "covid": {
        "name": "covid",
        "path": f"{_FOLDER}/covid_cxr/pairs.csv",
        "report_columns": ("report",),
        "patient_column": "patient_id",
        "projection_column": "view",
        "attribute_columns": ("sex", "age"),
        "notes": ("Notes tell the course of the patient more than the image.", _SHARED),
    },
}
"""Set -> the options of its data."""


def get_config(variant: str = "nih") -> ml_collections.ConfigDict:
    """The preset of one set."""
    given = defaults.variants(variant, VARIANTS)
    if len(given) != 1:
        raise InputError(
            f"config variants {', '.join(sorted(given)) or 'none'}; expected one of: "
            f"{', '.join(VARIANTS)}"
        )
    (chosen,) = given
    config = pretrain.get_config("table")
    config.data.report_columns = ()
    config.data.license_column = "license"
    config.data.fractions = (0.6, 0.15, 0.25)
    config.data.update(DATA[chosen])
    config.evaluators = EVALUATORS[chosen]
    return config
