"""What a derived input is: an input that a step makes from another one, and from encodings."""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
from flax import nnx

Arrays = Mapping[str, jax.Array]
"""Arrays of one input by name, such as {"tokens": i32[B, L], "mask": bool[B, L]}."""


class Derived(nnx.Module):
    """An input that is made on the device: masked patches or tokens, rows of a batch as negatives.

    It carries on the arrays of another input, `of`, some of which it replaces and to which it adds.
    Towers encode it, and objectives read its arrays, under its own name. Gradients do not flow
    through what it reads.

    Subclasses take keyword options. They hold parameters and other state as nnx variables, or
    none. Random numbers come from `context.row_keys`, so that splitting a batch changes none.

    Attributes:
      of: the input that it carries on, unless config.derived.NAME.of names another.
      reads: argument of `__call__` -> the encoding that it gets, with the gradient stopped.
      batch: argument of `__call__` -> the array of the batch that it gets, "<input>.<array>",
        "group" or "index". config.derived.NAME.reads redirects either.
      couples: whether a row depends on other rows. Such an input, and all that needs it, is made
        from the whole batch, after the micro-batches of config.gradient_cache.
      selects: whether it only chooses rows: it then returns `rows` i32[B], and each encoding of
        it is that of `of` in these rows. Nothing is encoded again.
    """

    of: ClassVar[str] = "image"
    reads: ClassVar[Mapping[str, str]] = {}
    batch: ClassVar[Mapping[str, str]] = {}
    couples: ClassVar[bool] = False
    selects: ClassVar[bool] = False

    def __call__(self, *_: Any, **arrays: Any) -> Arrays:
        """Makes the arrays. Subclasses take these arguments, all by keyword.

        Args:
          context: a Context whose `key` is that of this input alone.
          given: the arrays of `of`.
          arrays: the arguments of `reads` and `batch`.

        Returns:
          Name -> array with the batch axis first, to replace those of `given` or to add to them.
        """
        raise NotImplementedError
