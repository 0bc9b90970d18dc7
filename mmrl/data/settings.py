"""The keys of `config.data` that belong to the pipeline, with their defaults and ranges."""

from collections.abc import Mapping
from typing import Any

from mmrl.data import draws, labels, sampling, views
from mmrl.data.image import channels
from mmrl.data.overlap import leaks
from mmrl.data.text import excerpts
from mmrl.types import InputError
from mmrl.values import setting

_PAPER_KINDS = (
    "shuffle_all_words",
    "swap_adjacent_words",
    "reverse_words",
    "shuffle_within_trigrams",
    "shuffle_trigrams",
    "shuffle_nouns_and_adjectives",
    "shuffle_all_but_nouns_and_adjectives",
    "shuffle_nouns_verbs_adjectives",
    "replace_adjectives_with_antonyms",
)
_PAIR = tuple[float, float]

KEYS: dict[str, Any] = {
    "source": setting("phantom", "The corpus, by name. Its own options stand beside these keys."),
    "sections": setting(
        ("findings", "impression"), "Sections of a report to read, in this order.", tuple[str, ...]
    ),
    "views": setting(
        "first",
        "Images of a study to use: first; frontal (the first PA, AP or FRONTAL image, and no study "
        "without one); random (in training another one each time, in evaluation the first frontal "
        "one); or each (every image is an example).",
    ),
    "load_size": setting(
        0,
        "Side to which training images are scaled before the augmentation crops them to the size "
        "of the tower, in pixels. 0: that size.",
    ),
    "resize": setting(
        "pad",
        "How an image becomes square: pad (black margins, same aspect ratio), stretch, or crop "
        "(the largest square in the centre).",
    ),
    "colour": setting(
        "as_stored",
        "What towers see of colour: as_stored (grey images for a tower of one channel, colour for "
        "one of three; others are refused), grey (the luma), or rgb (grey images are repeated to "
        "three channels).",
    ),
    "text": setting(
        "report",
        "Part of a report that training reads at each step: report (all of it), section, sentence, "
        "or sentences (a run of neighbouring ones). Evaluation always reads all of it.",
    ),
    "perturbations": setting(
        _PAPER_KINDS,
        "Kinds of perturbed copies to draw, as names or as {name: weight}. The default is the nine "
        "kinds of the paper.",
        tuple[str, ...] | Mapping[str, float],
    ),
    "perturbation_curriculum": setting(
        (),
        'Kinds that replace `perturbations` later in training: ({"from_step": 500, '
        '"perturbations": names or weights}, ...).',
        tuple[Mapping[str, Any], ...],
    ),
    "num_perturbed": setting(9, "Perturbed copies of each report and step."),
    "num_sentences": setting(
        6,
        "Sentences of each report and step that the input `sentences` holds. Of a report with more "
        "of them, training draws some.",
    ),
    "sentence_terms": setting(
        0.0,
        "Share of those sentences that training replaces by a finding they name, such as `left "
        "pleural effusion` or `no pneumothorax`, where they name any.",
    ),
    "crop_scale": setting(
        (1.0, 1.0),
        "Least and greatest area of the random resized crop, as a share of the image. (1, 1): no "
        "such crop, but a random window where `load_size` is above the size of the tower.",
        _PAIR,
    ),
    "aspect": setting((0.9, 1.1), "Least and greatest width / height of the crop.", _PAIR),
    "translate": setting(0.0, "Greatest random shift along each axis, as a share of the side."),
    "rotate": setting(0.0, "Greatest random rotation in either direction, in degrees."),
    "brightness": setting(
        0.0, "Grey levels are multiplied by a random factor from 1 - brightness to 1 + brightness."
    ),
    "contrast": setting(
        0.0,
        "Distances of the grey levels from their mean are multiplied by a random factor from "
        "1 - contrast to 1 + contrast.",
    ),
    "gamma": setting(
        0.0,
        "Grey levels in [0, 1] are raised to a random power from 1 / (1 + gamma) to 1 + gamma.",
    ),
    "cache_images": setting(
        False, "Whether decoded images are kept in memory, at their loaded size."
    ),
    "cache_mib": setting(2048, "Greatest size of that cache in each process, in MiB."),
    "label_policy": {
        "preset": setting(
            "",
            f"A published convention for the next three keys: {', '.join(labels.PRESETS)}. Empty: "
            "none.",
        ),
        "uncertain": setting(
            "ignore",
            "What evaluators make of an uncertain label: ignore, zeros (absent), ones (present) or "
            "classes (a class of its own).",
        ),
        "blank": setting(
            "ignore", "What evaluators make of a label that is not stated: ignore or zero (absent)."
        ),
        "labels": setting(
            {},
            'Exceptions to `uncertain` for single labels, such as {"Edema": "ones"}.',
            Mapping[str, str],
        ),
    },
    "label_names": setting(
        (), "Labels that the input `labels` holds, in this order.", tuple[str, ...]
    ),
    "train_fraction": setting(
        1.0,
        "Share of the patients of the training split that training draws from. Below 1 they are "
        "drawn among those with a known label, if the run reads labels, and so that every class of "
        "each label occurs.",
    ),
    "train_draw": setting(0, "Number of that draw; another number draws other patients."),
    "subset": setting(
        "",
        "File with the ids of the examples that training draws from, one a line; empty: all.",
    ),
    "subset_by": setting(
        "example", "What these ids choose: the example, or all examples of its patient (patient)."
    ),
    "sampler": {
        "name": setting(
            "shuffle",
            "How training draws: shuffle (every example once per epoch), classes (every class of "
            "`labels` equally often) or groups (every group of `by` equally often).",
        ),
        "labels": setting(
            (),
            "Classes of the sampler, by label; examples without any of them are one more class, "
            "and of several classes the rarest counts. Empty: all labels of the corpus.",
            tuple[str, ...],
        ),
        "by": setting(
            "patient",
            "Groups of the sampler: patient, duplicates (duplicate groups), or an attribute of the "
            "records such as `sex`.",
        ),
        "members": setting(
            1,
            "Examples of one class or group that stand together in a batch; smaller groups are "
            "left out.",
        ),
    },
    "num_threads": setting(2, "Threads that read and decode, in each process."),
    "num_workers": setting(0, "Processes that make batches, for each process of the run. 0: none."),
    "stall_seconds": setting(
        60.0, "Seconds after which a batch that has not come is reported, with its record."
    ),
    "prefetch": setting(2, "Batches that are copied to the device before their step starts."),
    "max_reject_fraction": setting(
        0.01, "Share of the records of a split that may be rejected; above it the run stops."
    ),
    "waive_leaks": setting(
        "",
        "Overlap of held-out with training records that is accepted and written into the results: "
        "KIND SHARE REASON, such as `report 0.25 normal reports repeat`; several are separated by "
        "a semicolon.",
    ),
}
"""Every key with its default and its meaning. All other keys of `config.data` go to the source."""


INPUT_KEYS: dict[str, Any] = {
    **KEYS,
    "label_policy": setting(
        {},
        "What uncertain and unstated labels count as: a mapping with keys of `data.label_policy`, "
        "which it replaces.",
        Mapping[str, Any],
    ),
    "max_tokens": setting(
        0, "Most tokens of a text, begin and end marks included; 0: as many as the tower reads."
    ),
    "separator": setting(
        " ", "What stands between the sections of a text, such as ' | '; by default a blank."
    ),
    "templates": setting(
        ("{labels}",),
        "Prompts of an input `label_prompts`, each with {labels} where the labels stand; training "
        "draws one for each row.",
        tuple[str, ...],
    ),
    "normal": setting(
        "no finding",
        "What these prompts name where all labels are known and none is present. Empty: no prompt.",
    ),
    "num_absent": setting(0, "Most absent labels that such a prompt names; training draws them."),
    "absent_template": setting(
        "no {label}", "How such a prompt names an absent label, with {label} for its name."
    ),
    "num_crops": setting(2, "Crops of each image that an input `crops` holds."),
    "crop_size": setting(
        0,
        "Side of these crops in pixels, a multiple of the patches of the tower; 0: the size of the "
        "tower.",
    ),
    "max_images": setting(
        8,
        "Images of each study that an input `images` holds. Of a study with more of them, training "
        "draws some and evaluation takes the first ones.",
    ),
    "max_elements": setting(
        256,
        "Rows of each bag of features that an input `bag` holds. Of a bag with more of them, "
        "training draws some and evaluation takes some at equal distances.",
    ),
    "entities": setting(
        (),
        "Names of findings, devices and anatomy to look for in reports, in this order; empty: all.",
        tuple[str, ...],
    ),
    "num_entities": setting(16, "Most entities of a text whose places a batch holds."),
    "unstated": setting(
        "ignore",
        "What an entity counts as that a report does not name: ignore or absent.",
    ),
    "relations": setting(
        "", "File of relations among names, .csv or .obo, whose pairs are read; empty: our own."
    ),
    "kinds": setting((), "Relations of that file to read; empty: all.", tuple[str, ...]),
    "required": setting(
        True, "Whether records without this text are rejected; else training masks their rows."
    ),
}
"""Keys that config.inputs.NAME may set for one input; each kind of input takes some of them."""


def check_ranges(where: str, given: Mapping[str, Any]) -> None:
    """Refuses numbers out of range among those options that are given.

    Args:
      where: config.data, or config.inputs.NAME, which may set some of them anew.

    Raises:
      InputError: names the option in one line.
    """
    least = {
        "load_size": 0,
        "num_perturbed": 1,
        "num_sentences": 1,
        "num_crops": 1,
        "crop_size": 0,
        "max_images": 1,
        "max_elements": 1,
        "num_entities": 1,
        "prefetch": 2,
        "cache_mib": 0,
    }
    for key, low in least.items():
        if key in given and given[key] < low:
            raise InputError(f"{where}.{key}={given[key]} must be at least {low}")
    if not 0 <= given.get("sentence_terms", 0) <= 1:
        raise InputError(
            f"{where}.sentence_terms={given['sentence_terms']}; expected a share from 0 to 1"
        )


def check(data: Mapping[str, Any], batch_size: int) -> None:
    """Refuses values of config.data out of range.

    Args:
      batch_size: config.batch_size.

    Raises:
      InputError: names the option in one line.
    """
    check_ranges("config.data", data)
    if not data["stall_seconds"] > 0:
        raise InputError(f"config.data.stall_seconds={data['stall_seconds']} must be above 0")
    views.check(data["views"])
    channels.check_colour("config.data.colour", data["colour"])
    names = ("config.data.train_fraction", "config.data.train_draw")
    draws.check(data["train_fraction"], data["train_draw"], names=names)
    sampling.check(data, batch_size)
    excerpts.check(data["text"])
    labels.Policy.from_config(data["label_policy"])
    leaks.parse_waivers(data["waive_leaks"])
