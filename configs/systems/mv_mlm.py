"""Image-text and view-view contrast in one run, as in MV-MLM: phantoms with a lateral image.

    python -m mmrl.main --config=configs/systems/mv_mlm.py --workdir=runs/mv_mlm

The same objective runs twice, on frontal images and reports, and on the two images
of a study. Both images pass through the image tower. With the variant `metadata`, the reports are
templates over what a table would state, here the labels.
"""

import ml_collections

from configs import pretrain
from mmrl import config as defaults

VARIANTS = {
    "dedicated": "The image-text objective alone, to compare with.",
    "metadata": "Template reports in place of those of the corpus.",
    "smoke": "20 steps of a tiny model, for tests.",
}
TEMPLATES = {"report": (["A radiograph with {labels}.", "There is {labels}.", "{labels}."],)}


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The preset with the variants named after the colon."""
    chosen = defaults.variants(variant, VARIANTS)
    config = pretrain.of_300_steps(smoke="smoke" in chosen)
    config.data.update({"lateral": True, "render_size": 32})
    if "smoke" not in chosen:
        config.data.length = 4000
        pretrain.narrow(config)
    config.objectives = {"global_contrastive": {"weight": 1.0, "temperature": 0.07}}
    to_second = {"text": "image@second.embedding"}
    lateral = {"image": "image@second.embedding"}
    config.evaluators = {
        "retrieval": {"max_pairs": 256, "bootstrap": 0},
        "views": {"name": "retrieval", "max_pairs": 256, "bootstrap": 0, "reads": to_second},
        "zero_shot": {"tasks": "findings", "bootstrap": 0},
        "lateral": {"name": "zero_shot", "tasks": "findings", "bootstrap": 0, "reads": lateral},
    }
    if "dedicated" not in chosen:
        # A greater weight serves the views, at the cost of images and reports.
        config.objectives.views = {"name": "global_contrastive", "weight": 0.2, "reads": to_second}
    if "metadata" in chosen:
        own = ("length", "seed", "render_size", "fractions", "lateral")
        corpus = {"source": "phantom", **{name: config.data[name] for name in own}}
        for name in own:
            del config.data[name]
        config.data.update({"source": "side_texts", "corpus": corpus, "templates": TEMPLATES})
        config.data.sections = ("report",)
        config.data.max_reject_fraction = 0.5  # a study without findings has no such report
    return config
