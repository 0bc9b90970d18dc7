"""Multiple choice: which of several statements fits the image?"""

from collections.abc import Mapping
from typing import Any, ClassVar

from mmrl.evaluators.option_similarity import Choice


class MultipleChoice(Choice):
    """Chooses among several options by their similarity to the image.

    By default each study is asked which of four findings is present, of which it has one and lacks
    the others. Values, rows and options are those of `Choice`. Protocol
    "multiple_choice@1".

    Args:
      others: as of Choice.
    """

    protocol: ClassVar[str] = "multiple_choice@1"
    headline: ClassVar[Mapping[str, str]] = {
        "accuracy": "multiple-choice questions answered right",
        "accuracy_images_permuted": "the same with images of other patients",
    }

    def __init__(self, *args: Any, questions: str = "findings", **others: Any) -> None:
        super().__init__(*args, questions=questions, **others)
