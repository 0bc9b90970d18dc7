"""Perturbed copies of a report: hard negatives."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from mmrl.data import perturb, stall
from mmrl.data.inputs.base import Input, Place, Reader, Rows, Shapes
from mmrl.data.inputs.text import Text, Texts, text_length
from mmrl.data.perturb.copies import Copies
from mmrl.data.perturb.mix import Mix


class Perturbed(Input):
    """tokens i32[n, K, L], mask bool[n, K, L], valid bool[n, K] and kind i8[n, K].

    A copy is not valid where it equals the report, nor where its kind is for English and the report
    is not. `kind` is an index into perturb.KINDS.

    Args: as of Input. `perturbations`, `perturbation_curriculum` and `num_perturbed` K: what the
      copies are.

    Raises:
      InputError: see `Mix.from_config`.
    """

    kind: ClassVar[str] = "text"
    tower_options: ClassVar[tuple[str, ...]] = Text.tower_options
    options: ClassVar[tuple[str, ...]] = (
        "perturbations",
        "perturbation_curriculum",
        "num_perturbed",
        "sections",
        "text",
        "max_tokens",
    )
    required: ClassVar[bool] = True

    def __init__(self, name: str, tower: Mapping[str, Any], data: Mapping[str, Any]) -> None:
        super().__init__(name, tower, data)
        self.mix = Mix.from_config(data["perturbations"], data["perturbation_curriculum"])
        self.count, self.length = int(data["num_perturbed"]), text_length(name, tower, data)
        self.after = ("text",)
        self.of_text = False

    def shapes(self) -> Shapes:
        """See Input."""
        count, length = self.count, self.length
        return {
            "tokens": ((count, length), np.int32),
            "mask": ((count, length), np.bool_),
            "valid": ((count,), np.bool_),
            "kind": ((count,), np.int8),
        }

    def link(self, inputs: Mapping[str, Input]) -> None:
        """See Input. Where the texts are those of the input `text`, they are tokenised once."""
        text = inputs.get("text")
        self.of_text = (
            isinstance(text, Text)
            and (text.tower_name, text.length) == (self.tower_name, self.length)
            and text.separator == " "
            and all(text.data[key] == self.data[key] for key in ("sections", "text"))
        )

    def names(self) -> Mapping[str, Mapping[str, int]]:
        """See Input."""
        return {"kind": {kind: perturb.KINDS.index(kind) for kind in self.mix.kinds}}

    def open(self, place: Place) -> Reader:
        """See Input."""
        return _Copies(self, place)


_FOR_ENGLISH = np.array([kind in perturb.ENGLISH_KINDS for kind in perturb.KINDS])


class _Copies:
    """Makes the copies."""

    def __init__(self, own: Perturbed, place: Place) -> None:
        assert place.tokenizer is not None
        self._own, self._mark, self._foreign = own, place.mark, place.corpus.foreign
        self._texts = Texts(Text(own.name, own.tower, own.data), place)
        self._copies = Copies(place.tokenizer, own.length)

    def __call__(self, rows: Rows, made: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        own = self._own
        texts, _ = self._texts.read(rows)
        if own.of_text:
            tokens, mask = made["text.tokens"], made["text.mask"]
        else:
            whole = self._texts(rows, made)
            tokens, mask = whole["tokens"], whole["mask"]
        seeds = rows.stream(f"{own.name}/copies")
        kinds = own.mix.draw(rows.step, own.count, seeds)

        def mark(row: int) -> None:
            self._mark(stall.PERTURB, rows.indices[row])

        copies = self._copies(texts, tokens, mask, kinds, seeds, mark)
        if self._foreign:
            foreign = np.array([index in self._foreign for index in rows.indices])
            copies["valid"] &= ~(foreign[:, None] & _FOR_ENGLISH[kinds])
        return copies
