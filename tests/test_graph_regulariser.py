"""Names of a graph of knowledge as an input, and the loss that pulls linked ones together."""

import jax
import numpy as np
import pytest

from mmrl.data.entities import graph
from mmrl.data.inputs.base import Place, Rows
from mmrl.data.inputs.relations import Relations
from mmrl.data.text.tokenizer import Tokenizer
from mmrl.objectives.graph_regulariser import GraphRegulariser, graph_loss, name_vectors
from mmrl.types import InputError
from tests import references
from tests.arrays import assert_close, unit

TOWER = {"length": 24}
B, L, D = 5, 4, 6


def made(**data):
    return Relations("relations", TOWER, {"sections": (), "max_tokens": 24, **data})


def test_rows_hold_linked_names_and_one_that_is_not():
    own = made()
    texts = [f"{one.head} {one.relation} {one.tail}" for one in graph.built_in()]
    tokenizer = Tokenizer.train(texts, vocab_size=400)
    read = own.open(Place(None, tokenizer, train=True))
    arrays = read(Rows(range(64), 0, np.arange(64, dtype=np.uint64)), {})
    assert {name: array.shape[1:] for name, array in arrays.items()} == {
        name: shape for name, (shape, _) in own.shapes().items()
    }
    place = {name: number for number, name in enumerate(own.names_of_graph)}
    numbers = [[place[tokenizer.decode(row)] for row in rows] for rows in arrays["tokens"]]
    linked = {frozenset(pair) for pair in own.pairs.tolist()}
    for head, tail, other in numbers:
        assert {head, tail} in linked and {head, other} not in linked and head != other
    assert len({tuple(row) for row in numbers}) > 32
    again = read(Rows(range(64), 9, np.arange(64, dtype=np.uint64)), {})
    np.testing.assert_array_equal(again["tokens"], arrays["tokens"])


def test_a_file_may_hold_the_graph(tmp_path):
    path = tmp_path / "own.csv"
    path.write_text("head,relation,tail\na,is_a,b\nb,is_a,c\nc,part_of,d\n")
    assert made(relations=str(path)).pairs.tolist() == [[0, 1], [1, 2], [2, 3]]
    assert made(relations=str(path), kinds=("part_of",)).pairs.tolist() == [[2, 3]]
    with pytest.raises(InputError) as error:
        made(relations=str(path), kinds=("treats",))
    assert "config.inputs.relations.kinds=('treats',): no relation of " in str(error.value)
    path.write_text("head,relation,tail\na,is_a,b\n")
    with pytest.raises(InputError) as error:
        made(relations=str(path))
    assert "a name is linked to all others" in str(error.value)


def reference(names, margin):
    head, tail, other = (references.unit(names[:, n].astype(float)) for n in range(3))
    linked, others = (1 - (head * one).sum(axis=1) for one in (tail, other))
    return (linked + np.maximum(0, margin - others)).mean(), linked.mean(), others.mean()


@pytest.mark.parametrize("margin", [pytest.param(0.0, marks=pytest.mark.exhaustive), 1.0])
def test_the_loss_equals_the_reference_in_value_and_gradient(margin):
    names = 3 * unit(B, 3, D)
    assert_close(graph_loss(names, margin=margin), reference(names, margin))
    got = jax.grad(lambda x: graph_loss(x, margin=margin)[0])(names)
    assert_close(got, references.gradient(lambda x: reference(x, margin)[0], names), 1e-4)


def test_a_name_is_the_mean_of_its_tokens():
    embedded, mask = unit(B, 3, L, D), np.arange(L) < np.array([[1, 2, 4]])[..., None]
    mask = np.broadcast_to(mask, (B, 3, L))
    spoiled = np.where(mask[..., None], embedded, np.nan)
    expected = np.stack([embedded[:, n, :size].mean(axis=1) for n, size in enumerate((1, 2, 4))], 1)
    assert_close(name_vectors(spoiled, mask), expected)


def test_a_margin_out_of_range_is_refused():
    with pytest.raises(InputError) as error:
        GraphRegulariser(margin=3)
    assert "margin 3; expected a number from 0 to 2" in str(error.value)
