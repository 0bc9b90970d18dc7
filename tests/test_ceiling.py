"""The supervised ceiling: its presets, its questions, its probes and its page."""

import numpy as np
import pytest

from benchmarks import ceiling, probes
from configs import ceiling as experiment
from configs import pretrain
from mmrl import config as configs
from mmrl.data.phantom import study as phantom
from mmrl.evaluators.zero_shot import Question, ask, finding_task
from mmrl.types import Finding, InputError, Record

VARIANTS = (*ceiling.SUPERVISED, *ceiling.CONTRAST)


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_are_valid_and_keep_the_tower_of_the_demo(variant):
    config = experiment.get_config(variant)
    configs.validate(config)
    demo, image = pretrain.get_config(), dict(config.towers.image)
    pool = variant.split(",")[1]
    assert image.pop("pool") == pool
    for key in ("seed", "total_steps", "batch_size", "optimizer", "dtype"):
        assert config[key] == demo[key], key
    if "resnet" not in variant and "large" not in variant:
        same = dict(demo.towers.image)
        same.pop("pool", None)
        assert image.pop("heads") is not None and same.pop("heads") is not None
        assert image == same
    assert image.get("name") == ("resnet" if "resnet" in variant else "vit")
    assert (
        config.data.render_size == config.towers.image.size == (224 if "large" in variant else 64)
    )
    if variant.startswith("contrast"):
        assert list(config.objectives) == ["global_contrastive"]
        assert config.objectives.global_contrastive == demo.objectives.global_contrastive
        assert config.towers.text == demo.towers.text
    else:
        assert list(config.towers) == ["image"]
        assert config.towers.image.heads.labels == (24 if variant.startswith("sides") else 10)


@pytest.mark.parametrize("given", ["sides,findings", "sides,mean,zones"])
def test_at_most_one_target_and_one_pool(given):
    expected = r"expected at most one of \('findings', 'sides', 'contrast'\) and"
    with pytest.raises(InputError, match=expected):
        experiment.get_config(given)


class Studies:
    """Held-out studies of which only findings are known."""

    name = "studies/val"

    def __init__(self, findings):
        self.findings = findings

    def __len__(self):
        return len(self.findings)

    def record(self, index):
        found = tuple(Finding(name, side) for name, side in self.findings[index])
        return Record(str(index), "", "", "", "", "val", (), {}, findings=found)


def test_areas_of_logits_by_hand():
    """Both sides, or none, say nothing about left against right."""
    one, two = ("nodule", "left"), ("nodule", "right")
    sets = ask(Studies([[one], [one], [two], [two], [one, two], []]), min_positives=1).sets
    names = ("nodule", "right nodule", "left nodule")
    logits = np.array(
        [[1, 0, 2], [0, 1, 0], [2, 3, 0], [3, 0, 0], [4, 9, -9], [-1, -9, 9]], np.float32
    )
    found = ceiling.areas_of_logits(sets, logits, names, sides=True)
    # Left minus right: 2 and -1 of the left ones, -3 and 0 of the right ones.
    assert found == {"findings": {"nodule": 1.0}, "laterality": {"nodule": 3 / 4}}
    assert ceiling.areas_of_logits(sets, logits[:, :1], names[:1], sides=False) == {
        "findings": {"nodule": 1.0}
    }


def asked(rows, positive):
    return Question(finding_task("nodule"), np.asarray(rows), np.asarray(positive, bool))


def test_probe_finds_what_is_there_and_nothing_else():
    """A side that one of 40 features states, in a few studies, beside a coin."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 40)).astype(np.float32)
    x[:, 7] = 5.0  # says nothing at all
    x[:, 3] *= 100.0
    side, coin = x[:, 3] + 10 * rng.normal(size=600) > 0, rng.random(600) < 0.5
    patients = [str(index // 2) for index in range(400)]
    rows = np.arange(0, 400, 2)
    questions = {"side": asked(rows, side[rows]), "coin": asked(range(400), coin[:400])}
    scores = probes.probe(x[:400], patients, questions, x[400:])
    held_out = {"side": asked(range(200), side[400:]), "coin": asked(range(200), coin[400:])}
    found = probes.areas(held_out, scores)
    assert found["side"] > 0.9 and 0.4 < found["coin"] < 0.6
    rescaled = probes.probe(x[:400] * 7 - 2, patients, questions, x[400:] * 7 - 2)
    for name, one in scores.items():
        np.testing.assert_allclose(rescaled[name], one, atol=1e-4)


def test_class_means_score_as_ensembles_of_prompts_do():
    """Two reports of each class; the mean of the positives is (.8, .6), of the others (0, 1)."""
    train = np.array([[1, 0], [0.28, 0.96], [0, 1], [0.6, 0.8], [0, 1]], np.float32)
    questions = {"nodule": asked([0, 1, 2, 4], [True, True, False, False])}
    found = probes.means(train, questions, np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]))
    np.testing.assert_allclose(found["nodule"], [0.8, -0.4, 0.16], atol=1e-6)


def test_tuning_needs_both_answers():
    x = np.random.default_rng(0).normal(size=(20, 3))
    positive = np.arange(20) % 5 != 0  # every fifth patient chooses the strength
    with pytest.raises(InputError, match="'nodule': 0 of 4 tuning studies are positive"):
        patients = [f"{index:02d}" for index in range(20)]
        probes.probe(x, patients, {"nodule": asked(range(20), positive)}, x)


def both(value):
    """AUROCs of one finding."""
    return {"findings": {"nodule": value}, "laterality": {"nodule": value + 0.1}}


def made_up():
    """Pool p with seed s scores .5 + p / 10 + s / 100, .1 more for sides."""
    supervised = {}
    for place, variant in enumerate(ceiling.SUPERVISED):
        by_seed = {str(s): both(0.5 + place % 5 / 10 + s / 100) for s in (0, 1, 2)}
        if variant.startswith("findings"):
            for areas in by_seed.values():
                del areas["laterality"]
        supervised[variant] = by_seed
    # The zones gain .01 more with each seed: .10, .11, .12.
    for seed, areas in supervised["sides,zones"].items():
        areas["laterality"]["nodule"] += int(seed) / 100
    return {
        "settings": {"command": "python -m this --seeds 0 1 2", "seeds": [0, 1, 2], "jax": "1"},
        "supervised": supervised,
        "contrast": {
            "contrast,mean,large": {
                "0": {"image_to_text/R@1": 0.1, "text_to_image/R@1": 0.2}
                | {"findings": 0.6, "laterality": 0.5}
            }
        },
        "data": {
            "pixels": both(0.81),
            "studies": {"findings": {"nodule": [30, 70]}, "laterality": {"nodule": [12, 13]}},
            "hidden": 4,
        },
        "probes": {
            "demo": [
                {"image.embedding": both(0.6), "zero-shot": both(0.52)},
                {"image.embedding": both(0.7), "zero-shot": both(0.54)},
            ]
        },
    }


def test_page_by_hand():
    page = ceiling.write_page(made_up(), 3.2)
    for line in (
        "`python -m this --seeds 0 1 2`, ",
        "| findings and sides | ViT, mean | 0.510 ± 0.010 | 0.610 ± 0.010 |  |  |",
        "| findings and sides | ViT, zones | 0.610 ± 0.010 | 0.720 ± 0.020 | +0.100 ± 0.000 | "
        "+0.110 ± 0.010 |",
        "| findings and sides | ResNet, zones | 0.910 ± 0.010 | 1.010 ± 0.010 | +0.100 ± 0.000 | "
        "+0.100 ± 0.000 |",
        "| findings | ViT, zones | 0.610 ± 0.010 | not trained | +0.100 ± 0.000 |  |",
        "| 224 px, ViT, mean | 0.100 ± 0.000 | 0.200 ± 0.000 | 0.600 ± 0.000 | 0.500 ± 0.000 |",
        "| pixels 32 x 32 |  | 0.810 | 0.910 |",
        "| `image.embedding` | demo | 0.650 ± 0.071 | 0.750 ± 0.071 |",
        "| `image.pooled` | demo | none | none |",
        "| prompts (zero-shot), for comparison | demo | 0.530 ± 0.014 | 0.630 ± 0.014 |",
        "| nodule | 12 | 13 | 0.910 | 0.720 | 0.750 | 0.630 |",
        "| nodule | 30 | 70 | 0.810 | 0.610 | 0.650 | 0.530 |",
    ):
        assert line in page, line


def test_page_without_runs_states_the_data_alone():
    found = made_up() | {"supervised": {}, "contrast": {}, "probes": {}}
    page = ceiling.write_page(found, 3.2)
    assert "Supervised" not in page and "Contrast" not in page
    assert "| nodule | 12 | 13 | 0.910 |\n" in page


def test_zero_shot_values_of_a_stored_run():
    values = {
        "findings/auroc": 0.6,
        "laterality/auroc": 0.5,
        "laterality/auroc_images_permuted": 0.4,
        "findings/pleural effusion/auroc": 0.7,
        "laterality/pleural effusion/auroc": 0.8,
        "laterality/pleural effusion/auroc_images_permuted": 0.3,
    }
    results = {"zero_shot": {"values": {key: {"value": one} for key, one in values.items()}}}
    assert ceiling.zero_shot(results) == {
        "findings": {"pleural effusion": 0.7},
        "laterality": {"pleural effusion": 0.8},
    }
    assert ceiling.zero_shot({"retrieval": {}}) == {}


def test_probed_runs_are_named():
    found = ceiling.parse_probed(["demo=a,b", "other=c/d"])
    assert {name: list(map(str, folders)) for name, folders in found.items()} == {
        "demo": ["a", "b"],
        "other": ["c/d"],
    }
    for given in ("demo", "=a", "demo=a,,b", "demo="):
        with pytest.raises(SystemExit, match="expected NAME=DIR,DIR"):
            ceiling.parse_probed([given])


def test_phantoms_have_every_label_of_the_preset():
    names = experiment.get_config("sides").data.label_names
    assert names == phantom.LABELS + phantom.SIDED_LABELS and len(set(names)) == 24
