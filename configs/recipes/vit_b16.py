"""ViT-B/16 at 224 pixels with a 12-layer text encoder, global batch 4096, for a TPU pod.

    python -m mmrl.main --config=configs/recipes/vit_b16.py --config.data.path=pairs.csv \
        --workdir=runs/vit_b16
    python -m mmrl.plan --config=configs/recipes/vit_b16.py --topology=v5e:16x16

It trains on your own table of images and reports, as configs/pretrain.py:table does. `VARIANTS` are
given after a colon. The figures in the comments are those of docs/plan.md.
"""

import ml_collections

from configs import pretrain
from mmrl import config as defaults

VARIANTS = {
    "prepared": "a corpus that python -m mmrl.prepare wrote, at config.data.path",
    "phantom": "the built-in corpus: no data needed",
    "smoke": "20 steps of a tiny model, for tests",
}


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The preset with the variants named after the colon."""
    chosen = defaults.variants(variant, VARIANTS)
    config = defaults.base()
    recipe(config)
    source(config, chosen)
    if "smoke" in chosen:
        smoke(config)
    return config


def recipe(config: ml_collections.ConfigDict) -> None:
    """Everything but the source of the data."""
    config.batch_size = 4096  # 16 pairs on each of 256 devices
    config.total_steps = 20_000
    config.log_every = 50
    config.eval_every = 1000
    config.checkpoint.every = 1000
    config.optimizer.learning_rate = 5e-4
    config.optimizer.warmup_steps = 1000
    config.optimizer.weight_decay = 0.2
    _data(config.data)
    config.dtype = "bfloat16"  # of the computation; parameters stay float32
    # scan_layers: without it the stack compiles once for each of its layers. remat: the results of
    # dense layers are kept, attention and elementwise work is computed again; without it the step
    # takes all of 16 GiB, with it 6.7. No gradient cache: nothing that large is left to save.
    layers = {"scan_layers": True, "remat": "dots"}
    image = {"name": "vit", "variant": "B", "patch_size": 16, "size": 224, **layers}
    # packing: on Open-i with K = 4, 32 % of the slots of unpacked rows hold tokens, and 99.9 % of
    # groups of 16 reports fit 0.463 rows per text (`python -m benchmarks.packing --copies=4`).
    # Longer reports need a larger budget, which that command tells. 16 is a device's share.
    packed = {"packing": 0.5, "packing_group": 16}
    text = {
        "name": "transformer",
        "variant": "B",
        "length": 128,
        "vocab_size": 32_000,  # divides by any power of two that a mesh may have
        **layers,
        **packed,
    }
    # The local loss meets B^2 pairs of image and report: at 128 features it takes 0.63 times the
    # FLOPs of the encoders, at the encoders' own 768 it would take 2.2 times. Its form, "auto", is
    # the ring here.
    image["heads"] = {"embedding": 512, "regions": 128}
    text["heads"] = {"embedding": 512, "words": 128}
    config.towers = {"image": image, "text": text}
    config.evaluators.retrieval.max_pairs = 1024


def _data(data: ml_collections.ConfigDict) -> None:
    pretrain.table(data)
    data.fractions = (0.95, 0.025, 0.025)
    data.crop_scale = (0.6, 1.0)
    data.num_perturbed = 4
    data.num_threads = 16
    data.num_workers = 8


def source(config: ml_collections.ConfigDict, chosen: set[str]) -> None:
    """A prepared or the built-in corpus instead of a table, where a variant says so."""
    if not chosen & {"prepared", "phantom"}:
        return
    for key in pretrain.table_options():
        del config.data[key]
    if "phantom" in chosen:
        _phantom(config)
        return
    del config.data.fractions
    crop_scale = config.data.crop_scale
    pretrain.prepared(config.data)
    config.data.crop_scale, config.data.load_size = crop_scale, 256


def _phantom(config: ml_collections.ConfigDict) -> None:
    """Its reports yield few pieces."""
    config.data.source = "phantom"
    config.data.sections = ("findings", "impression")
    config.data.fractions = (0.8, 0.1, 0.1)
    config.data.length = 20_000
    config.data.seed = 0
    config.data.render_size = 224
    config.towers.text.vocab_size = 2000


def smoke(config: ml_collections.ConfigDict) -> None:
    """A model of the same make in which everything is small."""
    shrink(config)
    small = {"variant": None, "width": 32, "depth": 2, "num_heads": 2}
    config.towers.image.update({**small, "patch_size": 8})
    config.towers.text.update({**small, "packing_group": 4})


def shrink(config: ml_collections.ConfigDict) -> None:
    """20 steps on small inputs, for the variants "smoke" of recipes; encoders are left to them."""
    pretrain.short(config)
    config.batch_size = 32
    config.towers.text.vocab_size = 500
    config.data.num_workers = 0
