"""Options: every one can be set on the command line, is described, and is in the documentation."""

import os
import subprocess
import sys
import typing
from collections.abc import Mapping, Sequence

import ml_collections
import pytest

from mmrl import build, cli, options, presets, values, wiring
from mmrl import config as configs
from mmrl.types import InputError
from tests import commands
from tests.conftest import ROOT

PRETRAIN = f"--config={ROOT / 'configs' / 'pretrain.py'}:paper"


def parsed(*arguments: str, preset: str = PRETRAIN) -> ml_collections.ConfigDict:
    """The config that a command would get."""
    flags = cli.new_flags()
    config = cli.define_config(flags, "")
    assert cli._parse([preset, *arguments], flags) == []
    made = config.make()
    assert made is not None
    return made


def at(config, path):
    """The value of a dotted key, with lists for tuples."""
    value = configs.plain(config)
    for part in path.split("."):
        value = value[part]
    return value


def plain(value):
    return configs.plain({"value": value})["value"]


def leaves(keys, prefix=""):
    """Dotted name and Option of every key of the config."""
    for name, one in keys.items():
        if isinstance(one, values.Option):
            yield f"{prefix}{name}", one
        else:
            yield from leaves(one, f"{prefix}{name}.")


KEYS = dict(leaves(configs.KEYS))
# Path of the place, module, option; for every option of every shipped module.
OPTIONS = [
    (path, name, option)
    for path, place in configs.MODULES.items()
    for name in build.choices(place.kind)
    for option in (*place.options(name), *(place.beside if place.many else ()))
]
SYSTEMS = (
    "biomedclip",
    "chexficient",
    "convirt",
    "dcvlp",
    "image_vector",
    "kg_words",
    "labels",
    "locked_towers",
    "m3ae",
    "mae",
    "mllm4pue",
    "mmclip",
    "mv_mlm",
    "pathgen",
    "plip_person",
    "prd",
    "quilt",
    "rad_dino",
    "rudolf_v",
    "second_stage",
    "swav",
    "text_text",
)
PARTS = ({"source": "phantom"},)
# What modules need beside the option under test: encoders of towers, names of labels.
NEEDED = {
    "side_texts": {
        "corpus": {"source": "phantom"},
        "path": "texts.csv",
        "templates": {"report": "{age}"},
    },
    "vit": {"width": 32, "depth": 2, "num_heads": 2},
    "transformer": {"width": 32, "depth": 2, "num_heads": 2},
    "resnet": {"depth": 18},
}
# What names of labels are read from.
LABELLED = ("--config.towers.image.heads.labels=1", "--config.data.label_names=('nodule',)")
PROOFS = ("colour", "fusion", "masked_patches", "prior", "sets", "teacher")


def present_here(path: str, name: str) -> dict[str, str]:
    """Arguments of a module whose defaults the small config lacks -> something that it has."""
    if path not in ("objectives", "derived", "fusions"):
        return {}
    kind = {"objectives": "objective", "fusions": "fusion"}.get(path, path)
    target: typing.Any = build.find(kind, name)
    offered, reads = build.choices("input"), {}
    for argument, encoding in wiring.redirected("reads", target.reads, None).items():
        parsed = wiring.parse(encoding)
        if parsed.tower not in ("image", "text") or (parsed.input or "image") not in offered:
            reads[argument] = "image.embedding"
    for argument, array in wiring.redirected("reads", target.batch, None).items():
        if "." in array and array.partition(".")[0] not in offered:
            reads[argument] = "index"
    return reads


def sample(option: values.Option):
    """A value that the option accepts, its default where there is one."""
    if not option.required and option.default is not None:
        return option.default
    kind = next(part for part in values.members(option.accepts) if part is not type(None))
    if typing.get_origin(kind) is Mapping:
        texts = str in values.members(typing.get_args(kind)[1])
        return {} if texts else {"embedding": 8}
    if typing.get_origin(kind) is not None:
        return PARTS
    return {str: "x", int: 8, float: 0.5}[kind]


@pytest.mark.parametrize("key", KEYS)
def test_every_key_can_be_set(key):
    value = KEYS[key].default
    config = parsed(f"--config.{key}={values.show(value)}")
    assert at(config, key) == plain(value)
    configs.validate(config)


@pytest.mark.parametrize(("path", "name", "option"), OPTIONS)
def test_every_option_of_every_module_can_be_set(path, name, option):
    place = configs.MODULES[path]
    known = {**place.options(name), **(place.beside if place.many else {})}
    own = f"{path}.some" if place.many else path
    given = {other: sample(one) for other, one in known.items() if one.required}
    given |= NEEDED.get(name, {})
    if option == "variant":
        given |= {"variant": "S"}
    if reads := present_here(path, name):
        given["reads"] = reads
    given.setdefault(option, sample(known[option]))
    arguments = [f"--config.{own}.{key}={values.show(value)}" for key, value in given.items()]
    arguments.append(f"--config.{own}.{place.chooser}={name}")
    config = parsed(*arguments, *(LABELLED if path == "objectives" else ()))
    assert at(config, own)[option] == plain(given[option])
    configs.validate(config)


@pytest.mark.parametrize(
    "argument",
    [
        "towers.image.remat=dots",
        "towers.image.scan_layers=true",
        "towers.image.variant=B",
        "towers.image.dropout=0.1",
        "towers.image.pixel_mean=0.4",
        "towers.image.heads.pairs=16",
        "towers.text.packing=0.5",
        "towers.text.block.norm=rms",
        "towers.text.block.rope_scaling.factor=8.0",
        "towers.text.pool={'name': 'latent_attention', 'latents': 64}",
        "towers.text.frozen=true",
        "towers.text.frozen=encoder",
        "objectives.siglip.weight=1",
        "objectives.siglip.weight={'kind': 'linear', 'start': 0.0, 'end': 0.1, 'steps': 500}",
        "objectives.siglip.reads.text=text@perturbed.embedding",
        "evaluators.retrieval.reads.text=text.pooled",
        "inputs.second.rotate=5",
        "inputs.text.sections=('findings',)",
        "objectives.local_contrastive.chunk_size=8",
        "evaluators.zero_shot.tasks=findings",
        "evaluators.zero_shot.tasks=('findings',)",
        "data.label_policy.preset=mgca",
        "data.label_policy.labels.Edema=ones",
        "data.perturbations={'swap_zone': 1, 'reverse_words': 0.5}",
        "data.perturbation_curriculum=({'from_step': 9, 'perturbations': ('swap_zone',)},)",
    ],
)
def test_options_that_the_preset_does_not_list(argument):
    key, _, text = argument.partition("=")
    config = parsed(f"--config.{argument}")
    configs.validate(config)
    assert at(config, key) == plain(values.literal(text))


def test_another_module_starts_from_its_defaults_and_a_note_says_so():
    config = configs.base()
    kept = {"size": 64, "heads": {"embedding": 128, "regions": 128}, "pixel_mean": 0.4}
    config.towers.image.pixel_mean = 0.4
    changes = [("towers.image.depth", "50"), ("towers.image.name", "resnet")]
    assert presets.change(config, changes) == [
        "config.towers.image: resnet instead of vit; dropped its options depth=4, num_heads=4, "
        "patch_size=8, width=128"
    ]
    assert config.towers.image.to_dict() == {"name": "resnet", "depth": 50, **kept}
    configs.validate(config)
    # The options of a tower of another kind mean nothing to the new one.
    (note,) = presets.change(config, [("towers.image.name", "mlp"), ("towers.image.size", "6")])
    assert note == (
        "config.towers.image: mlp instead of resnet; dropped its options depth=50, "
        "heads={'embedding': 128, 'regions': 128}, pixel_mean=0.4, size=64"
    )
    assert config.towers.image.to_dict() == {"name": "mlp", "size": 6}
    config = configs.base()
    notes = presets.change(config, [("data.source", "nih14"), ("data.path", "nih")])
    assert notes == [] and config.data.path == "nih"  # base() gives phantom no options
    notes = presets.change(config, [("data.source", "phantom"), ("data.length", "9")])
    assert notes == ["config.data: phantom instead of nih14; dropped its options path=nih"]
    assert config.data.source == "phantom" and config.data.length == 9
    assert "path" not in config.data and config.data.load_size == 0
    configs.validate(config)
    assert presets.change(config, [("data.source", "phantom")]) == []
    assert config.data.length == 9


def test_objectives_and_evaluators_are_added_removed_and_replaced():
    config = parsed(
        "--config.objectives.siglip.bias=-5",
        "--config.objectives.global_contrastive=none",
        "--config.evaluators.zero_shot={}",
        "--config.objectives.local_contrastive={'weight': 2}",
    )
    assert config.objectives.to_dict() == {
        "siglip": {"bias": -5.0},
        "local_contrastive": {"weight": 2.0},
        "perturbed_discrimination": {"weight": 0.5, "temperature": 0.07},
    }
    assert config.evaluators.zero_shot.to_dict() == {} and "structure" in config.evaluators
    config = parsed(
        "--config.objectives.siglip.weight=0.5",
        "--config.objectives={'siglip': {'bias': -1}}",
        "--config.evaluators={}",
        "--config.towers.text={'name': 'transformer', 'variant': 'B', 'length': 48, "
        "'vocab_size': 500, 'heads': {'embedding': 128, 'words': 32}}",
        "--config.optimizer={'b1': 0.8, 'name': 'sgd'}",
    )
    assert config.objectives.to_dict() == {"siglip": {"bias": -1.0, "weight": 0.5}}
    assert config.evaluators.to_dict() == {}
    assert config.towers.text.to_dict() == {
        "name": "transformer",
        "variant": "B",
        "length": 48,
        "vocab_size": 500,
        "heads": {"embedding": 128, "words": 32},
    }
    assert (config.optimizer.b1, config.optimizer.b2, config.optimizer.name) == (0.8, 0.98, "sgd")
    configs.validate(config)


def test_free_names_are_added_in_any_order():
    config = parsed(
        "--config.objectives.views.reads.text=image@second.embedding",
        "--config.objectives.views.temperature=0.1",
        "--config.objectives.views.name=global_contrastive",
        "--config.objectives.copies={'weight': 0.5, 'name': 'siglip'}",
        "--config.towers.profile.heads.embedding=128",
        "--config.towers.profile.size=12",
        "--config.towers.profile.input=expression",
        "--config.towers.profile.name=mlp",
        "--config.inputs.expression.name=vector",
        "--config.evaluators.views.name=retrieval",
        "--config.evaluators.views.reads.text=image@second.embedding",
    )
    assert config.objectives.views.to_dict() == {
        "name": "global_contrastive",
        "reads": {"text": "image@second.embedding"},
        "temperature": 0.1,
    }
    assert config.objectives.copies.to_dict() == {"name": "siglip", "weight": 0.5}
    assert config.towers.profile.to_dict() == {
        "name": "mlp",
        "size": 12,
        "input": "expression",
        "heads": {"embedding": 128},
    }
    assert config.inputs.to_dict() == {"expression": {"name": "vector"}}
    assert config.evaluators.views.reads.text == "image@second.embedding"
    configs.validate(config)
    names = {section.title for section in options.of(config)}
    assert {"objectives.views: global_contrastive", "objectives.local_contrastive"} < names


def test_encoders_of_other_packages_need_the_kind_of_their_tower(monkeypatch):
    monkeypatch.setattr(build, "module_of", lambda kind, name: "mmrl.models.vector.mlp")
    given = ("--config.towers.more.width=8", "--config.towers.more.name=elsewhere.mlp")
    given += ("--config.towers.more.size=3", "--config.towers.more.heads.embedding=4")
    with pytest.raises(InputError, match=r"is not of mmrl; set config\.towers\.NAME\.kind, one of"):
        parsed(*given)
    monkeypatch.undo()
    with pytest.raises(InputError, match=r"encoder 'elsewhere\.mlp': No module named 'elsewhere'"):
        parsed(*given)


def test_changes_reach_what_refers_to_a_key_and_lock_the_config(tmp_path):
    file = tmp_path / "preset.py"
    file.write_text(
        "from mmrl import config as defaults\n"
        "def get_config():\n"
        "    config = defaults.base()\n"
        "    config.eval_every = config.get_ref('log_every')\n"
        "    return config\n"
    )
    config = parsed("--config.log_every=7", preset=f"--config={file}")
    assert config.eval_every == 7 and config.is_locked


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("sed=1", "unknown key in config 'sed' (did you mean 'seed'?); choices: accumulation, "),
        ("data.lenth=1", "unknown key in config.data 'lenth' (did you mean 'length'?); choices: "),
        ("towers.image.side=1", "unknown key in config.towers.image 'side' (did you mean 'size'?)"),
        ("towers.image.image_size=1", "unknown key in config.towers.image 'image_size'"),
        ("towers.image.name=vitt", "unknown encoder 'vitt' (did you mean 'vit'?)"),
        (
            "towers.imag.size=1",
            "unknown tower 'imag' (did you mean 'image'?); choices: image, text; a new one needs "
            "config.towers.imag.name",
        ),
        ("towers.vit.size=1", "unknown tower 'vit'"),  # the name of an encoder is no free name
        (
            "inputs.report.sections=x",
            "unknown input 'report'; choices: bag, concepts, crops, entities, image, ",
        ),
        ("objectives.views.weight=1", "a new one needs config.objectives.views.name"),
        ("objectives.views={'weight': 1}", "a new one needs config.objectives.views.name"),
        ("objectives.views.name=siglp", "unknown objective 'siglp' (did you mean 'siglip'?)"),
        (
            "model.image.patch_size=4",
            "config.model.image.patch_size=4: config.model.image.patch_size is now "
            "config.towers.image.patch_size",
        ),
        (
            "model.embed_dim=4",
            "config.model.embed_dim is now config.towers.image.heads.embedding and "
            "config.towers.text.heads.embedding",
        ),
        ("model.dtype=bfloat16", "config.model.dtype is now config.dtype"),
        ("data.image_size=4", "config.data.image_size is now config.towers.image.size"),
        ("data={'text_length': 4}", "config.data.text_length is now config.towers.text.length"),
        ("model.heads=4", "config.model is now config.towers"),
        ("model={}", "config.model is now config.towers"),
        ("objectives.siglip.kinds={}", "unknown key in config.objectives.siglip 'kinds'"),
        ("evaluators.retrieval.k=1", "unknown key in config.evaluators.retrieval 'k'"),
        ("evaluators.recall={}", "unknown evaluator 'recall'"),
        ("seed.x=1", "the value 0 has no keys; expected a whole number"),
        (
            "data.perturbations.swap_zone=1",
            "has no keys; expected a list of texts or a mapping to numbers",
        ),
        ("seed=1.5", "--config.seed=1.5; expected a whole number"),
        ("seed=true", "--config.seed=true; expected a whole number"),
        ("tensorboard=1", "--config.tensorboard=1; expected true or false"),
        ("average.warm_up=3", "--config.average.warm_up=3; expected true or false"),
        ("data.crop_scale=0.5", "--config.data.crop_scale=0.5; expected (a number, a number)"),
        ("towers.image.remat=some", "expected one of none, full, dots"),
        ("objectives.siglip.weight=much", "expected a number or a mapping"),
        ("objectives.siglip=1", "--config.objectives.siglip=1; expected a mapping or none"),
        ("optimizer=adamw", "--config.optimizer=adamw; expected a mapping"),
        ("optimizer={'b3': 1}", "unknown key in config.optimizer 'b3'"),
        ("seed", "--config.seed: expected --config.seed=VALUE"),
    ],
)
def test_wrong_changes_end_in_one_line(argument, message):
    with pytest.raises(InputError) as error:
        parsed(f"--config.{argument}")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_what_no_preset_takes_is_refused_before_one_is_loaded():
    for change, message in (
        (("seed", "much"), "--config.seed=much; expected a whole number"),
        (("sead", "1"), "unknown key in config 'sead' (did you mean 'seed'?)"),
        (("average.deca", "1"), "unknown key in config.average 'deca'"),
        (("model.heads", "1"), "config.model is now config.towers"),
    ):
        with pytest.raises(InputError) as error:
            presets.check_early([change])
        assert message in str(error.value)
    later = ("objectives.x.weight", "much"), ("towers.image.depht", "1"), ("optimizer", "{'b3': 1}")
    presets.check_early([*later, ("data.perturbations.swap_zone", "1"), ("seed", "1")])


@pytest.mark.parametrize(
    ("text", "accepts", "value"),
    [
        ("3", float, 3.0),
        ("1e-3", float, 1e-3),
        ("None", int | None, None),
        ("none", str | None, None),
        ("none", str, "none"),
        ("17", str, "17"),
        ("(1, 0.5)", tuple[float, float], (1.0, 0.5)),
        ("1,2", tuple[int, ...], (1, 2)),
        ("a, b", tuple[str, ...], ("a", "b")),
        ("a,b", str | tuple[str, ...], ("a", "b")),
        ("1, 2", str | Sequence[str], ("1", "2")),
        ("a", str | tuple[str, ...], "a"),
        ("('a,b',)", str | tuple[str, ...], ("a,b",)),
        ("a,b", str | Mapping[str, str], "a,b"),
        ("{'a': 1}", Mapping[str, float], {"a": 1.0}),
        ("[1]", list[int], [1]),
        ("(1, 'a')", tuple, (1, "a")),
        ("[x", typing.Any, "[x"),
        ("false", typing.Any, False),
        ("2", typing.Literal[1, 2], 2),
    ],
)
def test_texts_become_values(text, accepts, value):
    found = values.parse("--x", text, accepts)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("data.report_columns", "findings,impression"),
        ("data.label_columns", "edema, nodule"),
        ("evaluators.zero_shot.tasks", "findings,laterality"),
    ],
)
def test_names_between_commas_are_a_list(key, text):
    config = parsed(f"--config.{key}={text}", preset=f"{PRETRAIN},table")
    assert at(config, key) == [name.strip() for name in text.split(",")]


def test_annotations_that_are_texts_are_resolved():
    class Resolved:
        def __init__(self, *, one: "int | None" = None, two: "Missing" = 0.5) -> None:  # noqa: F821
            pass

    class Later(Resolved):
        """Options of its own and of its base.

        Args:
          three, four: what they
            share. Two sentences
          one: first of all.

        Raises:
          one: nothing.
        """

        def __init__(self, *, three: "bool" = True, four=(), **others) -> None:
            super().__init__(**others)

    found = build.options(Later)
    assert list(found) == ["three", "four", "one", "two"]
    assert found["three"].accepts is bool and found["two"].accepts is float
    assert found["three"].text == found["four"].text == "What they share. Two sentences."
    assert found["one"].text == "First of all." and found["two"].text == ""
    assert found["one"].owner is Resolved and found["four"].owner is Later


def test_every_key_and_option_has_a_sentence():
    texts = {key: one.text for key, one in KEYS.items()}
    for path, name, option in OPTIONS:
        place = configs.MODULES[path]
        texts[f"{path} {name}.{option}"] = {**place.options(name), **place.beside}[option].text
    for where, text in texts.items():
        assert text.endswith(".") and len(text.split()) > 2, where
        assert not text.startswith(("See ", "As in ", "As of ", "As for ")), where


def test_the_documentation_is_what_the_command_prints(capsys):
    assert commands.run_here("mmrl.options", "--markdown") == 0
    written = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    message = "run: python -m mmrl.options --markdown > docs/configuration.md"
    assert capsys.readouterr().out == written, message


def test_a_preset_is_printed_with_its_values(capsys):
    change = "--config.towers.image.name=resnet"
    assert commands.run_here("mmrl.options", PRETRAIN + ",smoke", change) == 0
    out = capsys.readouterr().out
    for line in (
        "config.towers.image: resnet instead of vit; dropped its options depth=1, num_heads=2, "
        "patch_size=8, width=32",
        "  total_steps = 20  (a whole number)",
        "  towers.image.depth is required  (a whole number)",
        "  towers.image.region_stage = 4  (a whole number)",
        "  towers.image.size = 32  (a whole number)",
        "  objectives.perturbed_discrimination.weight = 0.5  (a number or a mapping)",
        "  data.length = 400  (a whole number)",
    ):
        assert line in out.splitlines()
    assert "siglip" not in out and "quilt" not in out


def test_every_variant_that_is_listed_exists():
    shipped = presets.shipped()
    assert [preset.given for preset in shipped] == [
        "configs/ceiling.py",
        "configs/compare.py",
        "configs/finetune.py",
        "configs/judge.py",
        "configs/pretrain.py",
        *(f"configs/proofs/{name}.py" for name in PROOFS),
        "configs/real.py",
        "configs/real_colour.py",
        "configs/real_text.py",
        "configs/recipes/paper.py",
        "configs/recipes/vit_b16.py",
        "configs/recipes/vit_l16.py",
        *(f"configs/systems/{name}.py" for name in SYSTEMS),
        "configs/text_inference.py",
    ]
    for preset in shipped:
        assert preset.title.endswith(".") and preset.variants
        for variant in preset.variants:
            presets.load(f"{preset.given}:{variant}")


PRESETS = [preset.given for preset in presets.shipped()] + [":discrimination", ":smoke", ":table"]
_PRESETS_BY = "`python -m mmrl.main --help` all presets"


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (("mmrl.main",), ("--config.KEY=VALUE", "--workdir=", "--[no]summary", *PRESETS)),
        (("mmrl.evaluate",), ("--split=SPLIT", "train, val, test", "Default: test.", _PRESETS_BY)),
        (("mmrl.compare",), ("--measures=MEASURE,...", "--may_differ=KEY,...")),
        (("mmrl.export",), ("--names=NAME,...", "--shard_size=N", _PRESETS_BY)),
        (("mmrl.plan",), ("--topology=DEVICES", "--sweep[=SWEEP]", _PRESETS_BY)),
        (("mmrl.options",), ("--markdown", _PRESETS_BY)),
        (("mmrl.prepare",), ("--input=PATH", "--beam-option=KEY=VALUE", "  openi\n", "audit")),
        (("mmrl.prepare", "audit"), ("--against=", "--waive=KIND SHARE REASON")),
        (("mmrl.prepare", "nih14"), ("Data_Entry_2017_v2020.csv", "--option=val_fraction=VALUE")),
        (
            ("mmrl.prepare", "phantom"),
            ("--option=length=VALUE  (a whole number)", "Default: 6000."),
        ),
        (("mmrl.prepare", "medmnist"), ("--option=flag=VALUE  (a text)", "Required.")),
    ],
)
def test_help_shows_flags_and_presets_and_ends_with_an_example(arguments, texts, capsys):
    assert commands.run_here(*arguments, "--help") == 0
    out = capsys.readouterr().out
    for text in texts:
        assert text in out
    *_, last = out.rstrip().split("\n\n")
    assert last.startswith("Example") and f"    python -m {' '.join(arguments)} " in last
    assert max(map(len, out.splitlines())) <= 100
    assert ("Presets, with" in out) == (arguments == ("mmrl.main",))


def test_help_of_preparation_and_audit_is_apart(capsys):
    audit = ("--lengths", "--batch-sizes", "--waive", "--against", "--sections")
    commands.run_here("mmrl.prepare", "--help")
    out = capsys.readouterr().out
    assert not [flag for flag in audit if flag in out]
    commands.run_here("mmrl.prepare", "audit", "--help")
    out = capsys.readouterr().out
    assert all(flag in out for flag in audit)
    assert not [flag for flag in ("--input", "--size", "--option", "--tfds") if flag in out]
    assert "error: unknown source 'opni' (did you mean 'openi'?)" in commands.refusal(
        capsys, "mmrl.prepare", "opni", "--help"
    )


@pytest.mark.parametrize("name", build.choices("source"))
def test_help_of_every_source_shows_its_layout_and_options(name, capsys):
    commands.run_here("mmrl.prepare", name, "--help")
    out = capsys.readouterr().out
    assert out.startswith(build.document("source", name).partition("\n")[0])
    for option, one in configs.MODULES["data"].options(name).items():
        flag = {"path": "--input=PATH", "allow_missing_images": "--allow-missing-images"}
        flag |= {"num_threads": "--workers=N"} | ({} if name == "prepared" else {"verify": "--ver"})
        assert flag.get(option, f"--option={option}=VALUE") in out
        assert one.text.split()[0] in out
    assert "Pitfalls" not in out and "Also handled" not in out


@pytest.mark.parametrize(
    "arguments",
    [
        ("mmrl.prepare", "--help"),
        pytest.param(("mmrl.options",), marks=pytest.mark.exhaustive),
        pytest.param(("mmrl.options", "--markdown"), marks=pytest.mark.exhaustive),
    ],
)
def test_output_that_nothing_reads_ends_quietly(arguments):
    reads, writes = os.pipe()
    os.close(reads)
    command = [sys.executable, "-m", *arguments]
    try:
        done = subprocess.run(
            command, cwd=ROOT, stdout=writes, stderr=subprocess.PIPE, check=False, timeout=120
        )
    finally:
        os.close(writes)
    assert (done.returncode, done.stderr) == (141, b"")


def test_another_broken_pipe_is_no_closed_output(monkeypatch):
    def main() -> None:
        raise BrokenPipeError("a worker ended")

    monkeypatch.setattr(sys, "argv", ["command"])
    with open(os.devnull, "w") as stdout, pytest.raises(BrokenPipeError, match="a worker ended"):
        monkeypatch.setattr(sys, "stdout", stdout)
        cli.run(main, cli.new_flags(), "")


def test_help_starts_without_jax():
    code = "import sys, mmrl.main, mmrl.evaluate; print({'jax', 'flax', 'grain'} & {*sys.modules})"
    told = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert told.stdout == "set()\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("x = 1\n", "the file has no function get_config"),
        ("def get_config():\n    return 3\n", "get_config returned 3; expected a ConfigDict"),
        ("import nothing_like_it\n", "ModuleNotFoundError: No module named"),
        ("def get_config():\n    return 1 / 0\n", "ZeroDivisionError: division by zero (line 2 of"),
        ("def get_config(:\n", "SyntaxError: "),
    ],
)
def test_files_that_are_no_presets_end_in_one_line(content, message, tmp_path):
    file = tmp_path / "preset.py"
    file.write_text(content)
    with pytest.raises(InputError) as error:
        presets.load(str(file))
    assert str(error.value).startswith(f"--config={file}: ") and message in str(error.value)
    file.write_text("def get_config():\n    return 1\n")
    with pytest.raises(InputError, match="this preset has no variants"):
        presets.load(f"{file}:smoke")


def test_evaluators_of_a_run_can_be_changed_without_a_preset():
    flags = cli.new_flags()
    config = cli.define_config(flags, "")
    trained = parsed()
    assert config.read_by(trained) is None
    cli._parse(["--config.evaluators.structure.max_reports=5", "--config.data.length=80"], flags)
    changed = configs.with_data(trained, config.read_by(trained))
    assert changed.evaluators.structure.max_reports == 5 and changed.data.length == 80
    assert "max_reports" not in trained.evaluators.structure
    cli._parse(["--config.towers.image.heads.embedding=5"], flags)
    message = r"config.towers.image.heads.embedding=5: trained encoders keep this"
    with pytest.raises(InputError, match=message):
        config.read_by(trained)
    assert options.text(options.of(trained)).startswith("General")
