"""Labels as prompts: a text that states the labels of the record, such as "edema on a radiograph".

Records without a report then have a text, too: the images that MMCLIP pairs with prompts of their
kind of disease (Wu et al. 2024), and the classes of UniCL (Yang et al. 2022, section 3.2).
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from mmrl.data import counter, stall
from mmrl.data.corpus import Corpus
from mmrl.data.inputs.base import Input, Place, Reader, Rows, Shapes
from mmrl.data.inputs.text import text_length
from mmrl.data.labels import ABSENT, PRESENT, Policy
from mmrl.data.text.excerpts import text_group
from mmrl.types import InputError

_PLACE = {"templates": "{labels}", "absent_template": "{label}"}


class LabelPrompts(Input):
    """tokens i32[n, L], mask bool[n, L], key i32[n] and present bool[n].

    A prompt is a template with the names of the labels in the place of {labels}, divided by commas:
    first the present ones, or `normal` where all labels are known and none is present, then up to
    `num_absent` absent ones, each in `absent_template`. A record that would name no label lacks the
    input. Training draws the template and the absent labels for each row anew; evaluation takes the
    first ones. `key` is equal where the present labels are equal, whatever was drawn: such rows are
    not negatives of each other. It takes the place of the duplicate groups by
    config.objectives.NAME.reads.group=label_prompts.key.

    Args: as of Input. `label_names` lists the labels in the order in which they are named; empty:
      all of the corpus. `label_policy` says what uncertain and blank ones count as; an uncertain
      label that is a class of its own is not named.

    Raises:
      InputError: no template, one without {labels} or {label}, or a negative `num_absent`; from
        `open`, a name that the corpus does not have.
    """

    kind: ClassVar[str] = "text"
    tower_options: ClassVar[tuple[str, ...]] = ("tokenizer", "tokenizer_model", "vocab_size")
    options: ClassVar[tuple[str, ...]] = (
        "label_names",
        "label_policy",
        "templates",
        "normal",
        "num_absent",
        "absent_template",
        "max_tokens",
    )

    def __init__(self, name: str, tower: Mapping[str, Any], data: Mapping[str, Any]) -> None:
        super().__init__(name, tower, data)
        self.length, where = text_length(name, tower, data), f"config.inputs.{name}"
        self.label_names = tuple(data.get("label_names") or ())
        self.policy = Policy.from_config(data["label_policy"])
        given = data.get("templates", ("{labels}",))
        self.templates = (given,) if isinstance(given, str) else tuple(given)
        self.normal = str(data.get("normal", "no finding"))
        self.num_absent = int(data.get("num_absent", 0))
        self.absent_template = str(data.get("absent_template", "no {label}"))
        if not self.templates or self.num_absent < 0:
            raise InputError(
                f"{where}: {len(self.templates)} templates and num_absent={self.num_absent}; "
                "expected at least one template, and at least 0"
            )
        stated = {"templates": self.templates, "absent_template": (self.absent_template,)}
        for option, place in _PLACE.items():
            for template in stated[option]:
                if template.count(place) != 1:
                    raise InputError(f"{where}.{option} {template!r}; expected one {place} in it")

    def shapes(self) -> Shapes:
        """See Input."""
        return {
            "tokens": ((self.length,), np.int32),
            "mask": ((self.length,), np.bool_),
            "key": ((), np.int32),
            "present": ((), np.bool_),
        }

    def table(self, corpus: Corpus) -> tuple[Sequence[str], np.ndarray, np.ndarray]:
        """The names of C labels, and values i8[N, C] and mask bool[N, C] of all examples.

        Raises:
          InputError: a name that the corpus does not have.
        """
        names = self.label_names or corpus.label_names
        what = f"label in config.inputs.{self.name}.label_names"
        return names, *self.policy.table(names, corpus.label_names, corpus.labels, what=what)

    def named(self, values: np.ndarray, mask: np.ndarray, names: Sequence[str]) -> list[str]:
        """The present labels of a record with values i8[C] and mask bool[C], or `normal`."""
        present = [names[i] for i in np.flatnonzero(mask & (values == PRESENT)).tolist()]
        clear = self.normal and len(mask) and mask.all() and (values == ABSENT).all()
        return present or ([self.normal] if clear else [])

    def prompt(self, template: str, named: Sequence[str], absent: Sequence[str]) -> str:
        """The text with these labels in it; "" without any."""
        denied = [self.absent_template.replace("{label}", label) for label in absent]
        labels = ", ".join([*named, *denied])
        return template.replace("{labels}", labels) if labels else ""

    def vocabulary(self, corpus: Corpus) -> tuple[str, ...]:
        """See Input: every template with the labels of every example, absent ones included."""
        names, values, mask = self.table(corpus)
        most = self.num_absent and len(names)
        found = []
        for value, known in zip(values, mask, strict=True):
            absent = [names[i] for i in np.flatnonzero(known & (value == ABSENT)).tolist()][:most]
            named = self.named(value, known, names)
            found += [self.prompt(template, named, absent) for template in self.templates]
        return tuple(filter(None, found))

    def open(self, place: Place) -> Reader:
        """See Input."""
        return _Prompts(self, place)


class _Prompts:
    """Draws and tokenises prompts."""

    def __init__(self, own: LabelPrompts, place: Place) -> None:
        self._own, self._place = own, place
        self._names, self._values, self._mask = own.table(place.corpus)
        self._absent = self._mask & (self._values == ABSENT)

    def _of(self, index: int, seed: int) -> tuple[str, int]:
        """(prompt, key) of an example; `seed` is a number of 64 bits."""
        own, absent = self._own, np.flatnonzero(self._absent[index])
        named = own.named(self._values[index], self._mask[index], self._names)
        template = own.templates[0]
        if self._place.train:
            template = own.templates[seed % len(own.templates)]
            absent = absent[counter.subset(np.uint64(seed), len(absent), own.num_absent)]
        denied = [self._names[i] for i in absent[: own.num_absent].tolist()]
        text = own.prompt(template, named, denied)
        return text, text_group(", ".join(named) if text else f"example {index}")

    def __call__(self, rows: Rows, made: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The arrays of the rows, and their keys as duplicate groups."""
        seeds = rows.stream(f"{self._own.name}/prompt").tolist()
        found = [self._of(*one) for one in zip(rows.indices, seeds, strict=True)]
        texts, keys = zip(*found, strict=True)
        assert self._place.tokenizer is not None
        self._place.mark(stall.TOKENISE, rows.indices[0])
        tokens, mask, _ = self._place.tokenizer.encode_batch(list(texts), self._own.length)
        key = np.array(keys, np.int32)
        present = np.array([bool(text) for text in texts])
        return {"tokens": tokens, "mask": mask, "key": key, "present": present, "group": key}
