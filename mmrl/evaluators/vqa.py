"""Closed visual question answering: yes or no, or another closed list of answers."""

from collections.abc import Mapping
from typing import Any, ClassVar

from mmrl.evaluators.option_similarity import Choice


class Vqa(Choice):
    """Answers closed questions by the similarity of the image with question and answer.

    By default each study is asked about one finding that it has and one that it lacks; the answers
    are yes and no. Questions of a data set come from a file. Values, rows and options are those of
    `Choice`. Protocol "vqa@1".

    Args:
      others: as of Choice.
    """

    protocol: ClassVar[str] = "vqa@1"
    headline: ClassVar[Mapping[str, str]] = {
        "accuracy": "closed questions answered right",
        "accuracy_images_permuted": "the same with images of other patients",
    }

    def __init__(self, *args: Any, questions: str = "presence", **others: Any) -> None:
        super().__init__(*args, questions=questions, **others)
