"""Parts of speech: those that textblob itself gives where the lexicon of radiology has no word."""

import re
import subprocess
import sys
import warnings

import pytest

from mmrl.data import perturb
from mmrl.data.corpus import records
from mmrl.data.perturb import tagger
from mmrl.data.perturb.tagger_lexicon import LEXICON
from mmrl.data.sources.phantom import Phantom
from mmrl.data.text.reports import compose

CLASSES = {"NN": "noun", "JJ": "adjective", "VB": "verb"}
TRICKY = re.findall(
    r"\S+",
    """
    running seeing thing swiftly kindly effusion effusions thorax glass boss basis ness process
    venous callous vagus virus hilus lens edible readable apical useful transient foolish massive
    painless basilar aortic rubbed bed red infrared opacify intubate plate isolate otherwise realize
    wheals doings blastings zz q x-ray x-XXXX XXXX T8/T9 C7-T1 C7 2.5 10 1.2.3 3rd 12mm p.m. e.g.
    Dr. well-expanded ill-timed non-zzzing left-zzzly Kerley Größe naïve O\u0301dem don't patient's
    ___ SVC ETT CABG NO No bibasilar zzzed zzzs zzzis zzzss zzzous zzzsal zzzate zzzise zzz-
    """,
)


@pytest.fixture(scope="module")
def theirs():
    """Classes of the words of a sentence, by textblob."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # also of the packages that it imports
        from textblob import en

        en.tag("word", tokenize=False)  # reads its files

    def tags(words):
        letters = [(re.findall(r"[^\W\d_]+", word.lower()) or ["2"])[-1] for word in words]
        plain = [
            word.lower() if word.isalpha() else last
            for word, last in zip(words, letters, strict=True)
        ]
        return [
            LEXICON.get(word.lower()) or CLASSES.get(tag[:2], "other")
            for word, (_, tag) in zip(words, en.tag(" ".join(plain), tokenize=False), strict=True)
        ]

    return tags


@pytest.mark.exhaustive
def test_tags_of_phantom_reports_are_those_of_textblob(theirs):
    source = Phantom(split="train", length=1500, fractions=(1.0, 0.0, 0.0))
    for record in records(source):
        words = perturb.parse(compose(record.sections, ("findings", "impression"))).words
        assert list(map(tagger.tag, words)) == theirs(words)


def test_tags_of_tricky_words_are_those_of_textblob(theirs):
    assert [(word, tagger.tag(word)) for word in TRICKY] == [
        (word, tag) for word in TRICKY for tag in theirs([word])
    ]
    assert list(map(tagger.tag, TRICKY)) == theirs(TRICKY)  # neighbours do not matter
    assert {tagger.tag(word) for word in TRICKY} == set(tagger.TAGS)


def test_the_lexicon_of_radiology_comes_first():
    assert set(LEXICON.values()) <= set(tagger.TAGS)
    assert tagger.tag("Basilar") == "adjective" and tagger.tag("EFFUSIONS") == "noun"
    report = perturb.parse("The basilar zzzing effusions, 2.5 cm.")
    assert report.tags == ["other", "adjective", "verb", "noun", "other", "noun"]


def test_tagging_imports_neither_textblob_nor_what_it_needs():
    """They would take up to two seconds of every start."""
    program = (
        "import sys; from mmrl.data import perturb; perturb.parse('zzzing').tags; "
        "print({'textblob', 'nltk', 'scipy'} & set(sys.modules))"
    )
    made = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert made.stdout == "set()\n", made.stderr
