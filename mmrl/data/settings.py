"""The options of `config.data` that belong to the pipeline, with their defaults and ranges."""

from collections.abc import Mapping
from typing import Any

from mmrl.data import labels, views
from mmrl.data.batches import excerpts
from mmrl.data.overlap import leaks
from mmrl.types import InputError


def defaults() -> dict[str, Any]:
    """Every option of the pipeline with its default, and the corpus that needs no files."""
    return {
        "source": "phantom",  # a file in mmrl/data/sources; its options stand beside this
        "sections": ("findings", "impression"),
        # first, frontal, random or each; see mmrl/data/views.py.
        "views": "first",
        "image_size": 64,
        # Training images are brought to this size, and cropped from there to image_size in one
        # warp, or to a random window of it where crop_scale is (1, 1). 0: image_size.
        "load_size": 0,
        "resize": "pad",  # pad: keep the aspect, zero margins; stretch: squash to a square
        # What training reads of them: report, section, sentence or sentences; see
        # mmrl/data/batches/excerpts.py. Evaluation reads all.
        "text": "report",
        "text_length": 96,  # tokens, with begin and end marks
        "vocab_size": 2000,
        "tokenizer_model": "bpe",
        "tokenizer": "",  # a sentencepiece .model; empty: trained on the training split
        # Kinds in mmrl/data/perturb: names, or {name: weight}. These are the paper's nine.
        "perturbations": (
            "shuffle_all_words",
            "swap_adjacent_words",
            "reverse_words",
            "shuffle_within_trigrams",
            "shuffle_trigrams",
            "shuffle_nouns_and_adjectives",
            "shuffle_all_but_nouns_and_adjectives",
            "shuffle_nouns_verbs_adjectives",
            "replace_adjectives_with_antonyms",
        ),
        # What takes over later: ({"from_step": 500, "perturbations": (...)}, ...).
        "perturbation_curriculum": (),
        "num_perturbed": 9,  # K, copies of each report per step
        "crop_scale": (1.0, 1.0),  # area range of the random resized crop; (1, 1): no crop
        "aspect": (0.9, 1.1),  # width / height of that crop
        "translate": 0.0,  # greatest shift, as a share of the side
        "rotate": 0.0,  # greatest turn either way, in degrees
        "brightness": 0.0,  # greatest relative change of levels, of their distances from the
        "contrast": 0.0,  # mean, and of the power that they are raised to
        "gamma": 0.0,
        "cache_images": False,  # keep decoded, resized images in memory,
        "cache_mib": 2048,  # up to so much in each process
        # How evaluators read raw labels, see mmrl/data/labels.py: a preset, or what uncertain ones
        # (ignore, zeros, ones, classes) and blank ones (ignore, zero) become; labels: for one by
        # one, as {"Edema": "ones"}.
        "label_policy": {"preset": "", "uncertain": "ignore", "blank": "ignore", "labels": {}},
        "num_threads": 2,
        "num_workers": 0,  # processes; 0: threads only
        "stall_seconds": 60.0,  # a batch that takes longer is reported, with what it hangs on
        "prefetch": 2,  # batches sent to the device ahead of the step that takes them
        "max_reject_fraction": 0.01,
        # Overlap of held-out with training records that is accepted, and written into results:
        # (kind in mmrl/data/overlap/leaks.py, greatest share of the held-out records, reason).
        "waive_leaks": (),
    }


# Options of `config.data` that belong to the pipeline; all others go to the source.
KEYS = frozenset(defaults())

# Those that configs of earlier runs do not have, and what those runs did.
LATER_KEYS: dict[str, Any] = {
    "waive_leaks": (),
    "views": "first",
    "text": "report",
    "label_policy": {"preset": "", "uncertain": "ignore", "blank": "ignore", "labels": {}},
    "load_size": 0,
    "aspect": (0.9, 1.1),
    "translate": 0.0,
    "rotate": 0.0,
    "gamma": 0.0,
    "cache_mib": 2048,
    "stall_seconds": 60.0,
}


def check(data: Mapping[str, Any]) -> None:
    """Refuses values out of range.

    Raises:
      InputError: names the option in one line.
    """
    least = {"image_size": 1, "num_perturbed": 1, "prefetch": 2, "cache_mib": 0}
    for key, low in least.items():
        if data[key] < low:
            raise InputError(f"config.data.{key}={data[key]} must be at least {low}")
    if not data["stall_seconds"] > 0:
        raise InputError(f"config.data.stall_seconds={data['stall_seconds']} must be above 0")
    size, load_size = data["image_size"], data["load_size"]
    if load_size and load_size < size:
        raise InputError(
            f"config.data.load_size={load_size} must be 0 or at least config.data.image_size={size}"
        )
    views.check(data["views"])
    excerpts.check(data["text"])
    labels.Policy.from_config(data["label_policy"])
    leaks.parse_waivers(data["waive_leaks"])
