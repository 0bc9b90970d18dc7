"""Damaged images of every kind are read or refused; no crash, no hang, bounded memory.

As tests/test_fuzz_sources.py, with the images of tests/corpora_images.py and damage to them alone.
"""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.corpora_images import FILES
from tests.damage import OPERATIONS, Damage
from tests.test_fuzz_sources import CHOICES, MEMORY, NUMBERS, Bench, Reader, cases, outside

__all__ = ["outside"]  # a fixture
KINDS = ("truncate", "flip", "insert", "garbage", "swap_files", "image_size", "image_mode")
KINDS += ("dicom_element", "tiff_tag", "webp_chunk")
DAMAGES = st.lists(
    st.builds(Damage, st.sampled_from(KINDS), NUMBERS, NUMBERS, NUMBERS, NUMBERS),
    min_size=1,
    max_size=6,
)


class Counting(Reader):
    """Counts the images that were refused, of those of all cases."""

    refused, cases = 0, 0

    def ask(self, case: dict[str, Any], warm: dict[str, Any]) -> dict[str, Any]:
        answer = super().ask(case, warm)
        self.refused, self.cases = self.refused + answer.get("rejects", 0), self.cases + 1
        return answer


@pytest.mark.parametrize("number", [60, pytest.param(1500, marks=pytest.mark.exhaustive)])
def test_damaged_images_are_read_or_refused(number, outside, tmp_path):
    assert set(KINDS) <= set(OPERATIONS)
    (tmp_path / "scratch").mkdir()
    (tmp_path / "bench").mkdir()
    reader = Counting(tmp_path / "scratch", MEMORY)
    bench = Bench(tmp_path / "bench", reader, outside, "image_table")

    @cases(number)
    @given(DAMAGES, CHOICES)
    def check(damages, choices):
        bench.read(damages, {**choices, "verify": "decode"}, prepare=False)

    try:
        check()
    finally:
        reader.close()
    assert 0 < reader.refused < reader.cases * len(FILES) / 2
