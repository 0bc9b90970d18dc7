"""Labels as prompts: which labels they name, what training draws, and images without a report."""

import numpy as np
import pytest

from mmrl import config as configs
from mmrl import wiring
from mmrl.data.inputs import base as inputs
from mmrl.data.inputs.base import Place
from mmrl.training import run
from mmrl.types import InputError
from tests.test_inputs import LABELS, Changed, batches, config, made_of, read, rows

TEMPLATES = ("{labels} on a chest radiograph", "radiograph: {labels}")
STATED = [
    (1, 0, 1),
    (0, 0, 0),
    (0, -2, 0),
    (-2, -2, -2),
    (-1, 0, 0),
    (1, 0, 1),
    (0, 1, 0),
    (1, 0, 0),
]


class Spelled:
    """A tokenizer whose tokens are the characters of a text."""

    def encode_batch(self, texts, length):
        tokens = np.zeros((len(texts), length), np.int32)
        for row, text in zip(tokens, texts, strict=True):
            row[: len(text)] = [ord(letter) for letter in text]
        return tokens, tokens > 0, np.zeros(len(texts), bool)


def prompts(*, train=False, repeats=1, stated=STATED, **options):
    """The prompt and key of each record, `repeats` times, and which are present."""
    chosen = config(towers__text__length=128)
    chosen.inputs.label_prompts = {"templates": TEMPLATES, **options}
    changes = {n: {"labels": labels} for n, labels in enumerate(stated)}
    corpus = read(made_of(chosen, "image.embedding"), Changed(len(stated), changes))
    one = inputs.make_one(chosen, "label_prompts", "text")
    indices = list(range(len(stated)))
    found = []
    for step in range(repeats):
        drawn = rows(indices)._replace(seeds=rows(np.asarray(indices) + 1000 * step).seeds)
        made = one.open(Place(corpus, Spelled(), train))(drawn, {})
        texts = ["".join(map(chr, row[row > 0])) for row in made["tokens"]]
        assert [bool(text) for text in texts] == made["present"].tolist()
        found.append((texts, made["key"].tolist()))
    return found


def test_evaluation_names_the_present_labels_in_the_first_template():
    ((texts, keys),) = prompts(label_names=LABELS)
    assert texts == [
        "Effusion, Edema on a chest radiograph",
        "no finding on a chest radiograph",
        "",  # Mass is not known
        "",
        "",  # Effusion is uncertain
        "Effusion, Edema on a chest radiograph",
        "Mass on a chest radiograph",
        "Effusion on a chest radiograph",
    ]
    assert keys[0] == keys[5] and len(set(keys)) == len(keys) - 1


def test_options_decide_what_is_named():
    ((texts, _),) = prompts(
        label_names=("Edema", "Effusion"),
        label_policy={"uncertain": "ones"},
        templates="{labels}",
        normal="",
        num_absent=1,
        absent_template="without {label}",
    )
    assert texts == [
        "Edema, Effusion",
        "without Edema",
        "without Edema",
        "",
        "Effusion, without Edema",
        "Edema, Effusion",
        "without Edema",
        "Effusion, without Edema",
    ]


def test_training_draws_templates_and_absent_labels_and_keeps_keys():
    drawn = prompts(train=True, repeats=40, num_absent=1, label_names=LABELS)
    assert {texts[7] for texts, _ in drawn} == {
        template.replace("{labels}", f"Effusion, no {absent}")
        for template in TEMPLATES
        for absent in ("Mass", "Edema")
    }
    assert len({tuple(keys) for _, keys in drawn}) == 1
    assert any(texts[0] != texts[5] for texts, _ in drawn)  # each row draws for itself


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"templates": ()}, "0 templates and num_absent=0"),
        ({"num_absent": -1}, "2 templates and num_absent=-1"),
        ({"templates": ("{label}",)}, "templates '{label}'; expected one {labels}"),
        ({"absent_template": "no"}, "absent_template 'no'; expected one {label}"),
        ({"label_names": ("Masses",)}, "unknown label in config.inputs.label_prompts.label_names"),
    ],
)
def test_options_that_cannot_be_used_are_refused(options, message):
    with pytest.raises(InputError) as error:
        prompts(**options)
    assert message in str(error.value)


def contrasts(chosen):
    """Global contrasts of images with reports, and with prompts."""
    prompt = {"text": "text@label_prompts.embedding", "group": "label_prompts.key"}
    chosen.objectives = {
        "global_contrastive": {},
        "prompts": {"name": "global_contrastive", "reads": prompt},
    }
    return chosen


def test_images_without_a_report_are_trained_on_beside_pairs():
    chosen = contrasts(config())
    del chosen.towers.vector
    chosen.inputs.text = {"required": False}
    configs.validate(chosen)
    made = inputs.make(chosen, wiring.wire(chosen)[0])
    changes = {n: {"sections": {}, "labels": (1, 0, n % 2)} for n in range(4)}
    corpus = read(made, Changed(8, changes | {n: {"labels": (-2,) * 3} for n in range(4, 8)}))
    assert len(corpus) == 8 and not corpus.rejects
    (batch,) = batches(chosen, made, corpus, 1)
    unpaired = batch["index"] < 4
    np.testing.assert_array_equal(batch["text.present"], ~unpaired)
    np.testing.assert_array_equal(batch["label_prompts.present"], unpaired)
    assert len(set(batch["label_prompts.key"][unpaired].tolist())) == 2


def test_a_tower_of_prompts_alone_learns_its_vocabulary_from_them():
    chosen = config()
    del chosen.towers.vector
    chosen.towers.text.update({"input": "label_prompts", "vocab_size": 290})
    chosen.inputs.label_prompts = {"templates": TEMPLATES}
    reads = {"text": "text.embedding", "group": "label_prompts.key"}
    chosen.objectives = {"global_contrastive": {"reads": reads}}
    configs.validate(chosen)
    made = inputs.make(chosen, wiring.wire(chosen)[0])
    changes = {n: {"sections": {}, "labels": (1, n % 2, 0)} for n in range(9)}
    corpus = read(made, Changed(9, changes))
    assert len(corpus) == 9
    tokenizer = run.make_tokenizers(chosen, corpus)["text"]
    text = "Effusion on a chest radiograph"
    assert len(tokenizer.encode(text, 64).tokens.nonzero()[0]) < len(text)
