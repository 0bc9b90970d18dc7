"""Configs: shipped ones are valid, misspelt keys are refused, resuming checks the experiment."""

import runpy
from pathlib import Path

import ml_collections
import pytest

from configs.recipes import vit_l16
from mmrl import build
from mmrl import config as configs
from mmrl.types import InputError
from tests.conftest import ROOT

SHIPPED = sorted(p for p in (ROOT / "configs").rglob("*.py") if p.stem != "__init__")

RECIPES = sorted(p for p in SHIPPED if p.parent.name == "recipes")


def pretrain(variant=""):
    return runpy.run_path(str(ROOT / "configs" / "pretrain.py"))["get_config"](variant)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_config_is_valid(path: Path):
    config = runpy.run_path(str(path))["get_config"]()
    if "path" in config.data and config.data.path is None:  # the data are the user's
        with pytest.raises(InputError, match="needs a value for: path"):
            configs.validate(config)
        config.data.path = "pairs.csv"
    for name, tower in config.towers.items():  # and so is what to start from
        if "init" in tower and tower.init is None:
            with pytest.raises(InputError, match=rf"towers\.{name}\.init needs a value"):
                configs.validate(config)
            tower.init = "runs/pretrain"
            if "tokenizer" in tower:
                tower.tokenizer = "runs/pretrain"
    configs.validate(config)


@pytest.mark.parametrize("variant", ["phantom", "smoke", "phantom,smoke", "prepared,smoke"])
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_variants_of_the_recipes(path, variant):
    config = runpy.run_path(str(path))["get_config"](variant)
    if "phantom" not in variant:
        config.data.path = "pairs.csv"
    configs.validate(config)
    assert (config.total_steps == 20) == ("smoke" in variant)


@pytest.mark.parametrize("variant", ["crops", "crops,smoke", "crops,phantom,smoke"])
def test_crops_of_the_large_recipe(variant):
    config = vit_l16.get_config(variant)
    if "phantom" not in variant:
        config.data.path = "pairs.csv"
    configs.validate(config)
    assert {config.inputs[name].num_crops for name in ("wide", "local")} == {2, 8}
    assert config.inputs["local"].crop_size % config.towers.image.patch_size == 0


@pytest.mark.parametrize("variant", ["smoke", "table", "table,smoke", "prepared"])
def test_variants_of_the_default(variant):
    config = pretrain(variant)
    if variant != "smoke":
        with pytest.raises(InputError, match="needs a value for: path"):
            configs.validate(config)
        config.data.path = "pairs.csv"
    configs.validate(config)


def broken(change):
    config = pretrain()
    with config.unlocked():
        change(config)
    return config


def put(path, value):
    def change(config):
        *parents, last = path.split("/")
        for part in parents:
            config = config[part]
        config[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (put("optimiser", 1), "unknown key in config 'optimiser' (did you mean 'optimizer'?)"),
        (put("optimizer/lr", 1), "unknown key in config.optimizer 'lr'"),
        (put("data/load_sise", 1), "unknown option in config.data 'load_sise' (did you mean"),
        (put("data/source", "phantm"), "unknown source 'phantm' (did you mean 'phantom'?)"),
        (put("towers/image/headz", 1), "unknown option in config.towers.image 'headz' (did you"),
        (
            put("towers/image/name", "vgg"),
            "unknown encoder 'vgg'; choices: mlp, resnet, transformer, vit",
        ),
        (put("towers/image/patches", 4), "unknown option in config.towers.image 'patches'"),
        (put("towers/image/image_size", 4), "unknown option in config.towers.image 'image_size'"),
        (put("towers/more", {"size": 4}), "config.towers.more needs a name; choices: mlp, "),
        (
            put("towers/more", {"name": "mlp", "size": 4}),
            "config.towers.more needs a value for: heads",
        ),
        (put("inputs/report", {}), "unknown input 'report'; choices: bag, concepts, crops, "),
        (put("inputs/second", {"size": 4}), "unknown option in config.inputs.second 'size'"),
        (put("data/image_size", 4), "config.data.image_size is now config.towers.image.size"),
        (put("model", {"embed_dim": 4}), "config.model.embed_dim is now config.towers.image.heads"),
        (
            put("objectives/siglip", {"reads": {"texts": "text.embedding"}}),
            "unknown argument in config.objectives.siglip.reads 'texts' (did you mean 'text'?)",
        ),
        (
            put("objectives/siglip", {"reads": {"text": "report.embedding"}}),
            "unknown tower in 'report.embedding' 'report'; choices: image, text",
        ),
        (
            put("evaluators/retrieval", {"reads": {"report": "text.embedding"}}),
            "unknown argument in config.evaluators.retrieval.reads 'report'; choices: image, text",
        ),
        (
            put("objectives/siglip", {"weight": {"kind": "cosin", "end": 1.0}}),
            "unknown kind in config.objectives.siglip.weight 'cosin' (did you mean 'cosine'?)",
        ),
        (put("objectives/siglip", {"weight": -1.0}), "config.objectives.siglip.weight=-1.0 must"),
        (put("objectives/contrast", {"weight": 1.0}), "unknown objective 'contrast'"),
        (
            put("objectives/siglip", {"weight": 1.0, "tau": 1.0}),
            "unknown option in config.objectives.siglip 'tau'; choices: bias, chunk_size, "
            "implementation, reads, temperature, weight",
        ),
        (put("objectives", ml_collections.ConfigDict()), "config.objectives is empty"),
        (put("evaluators/recall", {}), "unknown evaluator 'recall'"),
        (put("evaluators/retrieval/top", 3), "unknown option in config.evaluators.retrieval"),
        (put("batch_size", 0), "config.batch_size=0 must be at least 1"),
        (put("accumulation", 7), "must be a multiple of config.accumulation=7"),
        (put("average/decay", 1.5), "config.average.decay=1.5; expected 0 to 1"),
        (put("optimizer/weight_decay", -0.1), "config.optimizer.weight_decay=-0.1; expected at"),
        (lambda c: c.__delitem__("seed"), "config lacks 'seed'"),
    ],
)
def test_refusals_are_one_line_with_the_choices(change, expected):
    with pytest.raises(InputError) as error:
        configs.validate(broken(change))
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_unknown_names_list_all_choices():
    with pytest.raises(InputError) as error:
        build.find("objective", "global_contrastiv")
    assert str(error.value) == (
        "unknown objective 'global_contrastiv' (did you mean 'global_contrastive'?); choices: "
        "class_classification, concept_alignment, curated_contrastive, distillation, entities, "
        "global_contrastive, graph_regulariser, identity_contrastive, koleo, label_classification, "
        "local_contrastive, masked_image, masked_patches, masked_regions, masked_text, matching, "
        "mil_nce, "
        "perturbed_discrimination, prototypes, self_distillation, sentence_contrastive, siglip, "
        "sub_captions, swapped_prediction, token_alignment"
    )


def test_stored_configs_come_back_equal():
    config = pretrain()
    stored = configs.plain(config)
    assert configs.plain(configs.from_plain(stored)) == stored
    assert configs.from_plain(stored).to_dict() == config.to_dict()


def test_a_stored_config_without_newer_keys_has_their_defaults():
    config = pretrain()
    del config.towers.image, config.evaluators.structure
    stored = configs.plain(config)
    del stored["epochs"], stored["optimizer"]["layer_decay"], stored["data"]["crop_scale"]
    assert configs.from_plain(stored).to_dict() == config.to_dict()
    config.data.crop_scale = stored["data"]["crop_scale"] = (0.5, 1.0)
    assert configs.from_plain(stored).to_dict() == config.to_dict()


def test_a_run_may_be_extended_but_not_turned_into_another():
    old, longer = configs.plain(pretrain()), pretrain()
    longer.total_steps += 100
    longer.eval_every = 7
    longer.checkpoint.keep = 5
    assert set(configs.check_resumable(old, longer)) == {
        "total_steps",
        "eval_every",
        "checkpoint.keep",
    }
    other = pretrain()
    other.towers.image.heads.embedding = 64
    other.data.num_perturbed = 4
    other.objectives.siglip = {"weight": 1.0}
    with pytest.raises(InputError) as error:
        configs.check_resumable(old, other)
    for text in (
        "data.num_perturbed: 3 -> 4",
        "towers.image.heads.embedding: 128 -> 64",
        "objectives.siglip",
    ):
        assert text in str(error.value)


def test_a_prefix_of_an_allowed_key_is_not_allowed():
    old = configs.plain(pretrain())
    new = {**old, "mesh_kind": 1}
    with pytest.raises(InputError, match="mesh_kind"):
        configs.check_resumable(old, new)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("probe", {"fractions": 0.1}, r"probe\.fractions=0\.1; expected a list of numbers"),
        ("probe", {"methods": "linear"}, r"probe\.methods='linear'; expected a list of texts"),
        ("probe", {"shots": (1.5,)}, r"probe\.shots=\(1\.5,\); expected a list of whole numbers"),
        ("segmentation", {"labels": "lesion"}, r"labels='lesion'; expected a list of texts"),
        ("grounding", {"prompts": "x"}, r"prompts='x'; expected a mapping to texts or none"),
    ],
)
def test_a_preset_gives_options_of_the_type_that_the_command_line_asks_for(name, given, message):
    """A text in place of a list would be read as its letters."""
    chosen = pretrain("smoke")
    chosen.evaluators = {name: given}
    with pytest.raises(InputError, match=message):
        configs.validate(chosen)
    chosen.evaluators = {"probe": {"fractions": [1, 0.1], "labels": ()}}
    configs.validate(chosen)
