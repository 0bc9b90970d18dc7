"""Real captions and many more synthetic ones, as in PathGen-1.6M: few phantoms have a report.

    python -m mmrl.main --config=configs/systems/pathgen.py --workdir=runs/pathgen

PathGen-1.6M (2024): models choose representative patches of slides and write their captions, and
CLIP learns from these beside real pairs. Here 200 studies have reports; of 4,000 others only
captions by templates are known, which name the labels and nothing else. Half of every batch is of
each kind. With 640 reports, prompts still gain and the retrieval of reports does not, since the
captions say less. `config.data.subset` chooses by a file of ids what training draws from.
"""

import ml_collections

from configs import pretrain
from mmrl import config as defaults

VARIANTS = {
    "real": "the studies with reports alone, for as many steps",
    "smoke": "20 steps of a tiny model, for tests.",
}
WORDINGS = (
    "Findings: {labels}.",
    "A radiograph that shows {labels}.",
    "{labels} on a chest radiograph.",
)


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The preset with the variants named after the colon."""
    chosen = defaults.variants(variant, VARIANTS)
    config = pretrain.of_300_steps(smoke="smoke" in chosen)
    for key in ("length", "seed", "render_size", "fractions"):
        del config.data[key]
    real = {"source": "phantom", "length": 1000, "render_size": 32, "fractions": (0.2, 0.8, 0.0)}
    others = {**real, "seed": 1, "length": 4000, "fractions": (1.0, 0.0, 0.0)}
    synthetic = {
        "source": "side_texts",
        "corpus": others,
        "templates": {"caption": (WORDINGS,)},
        "leave_out": ("findings", "impression"),
    }
    parts = ({**real, "weight": 1.0}, {**synthetic, "weight": 1.0})
    config.data.update({"source": "mixture", "parts": parts[:1] if "real" in chosen else parts})
    config.data.sections = ("findings", "impression", "caption")
    config.data.max_reject_fraction = 0.3  # a study without findings has no such caption
    if "smoke" not in chosen:
        pretrain.narrow(config)
    config.objectives = {"global_contrastive": {"weight": 1.0, "temperature": 0.07}}
    config.evaluators = {
        "retrieval": {"max_pairs": 256, "bootstrap": 0},
        "zero_shot": {"tasks": "findings", "bootstrap": 0},
    }
    return config
