"""What name maps of several families share: layers of a source, as parameters of ours.

An entry names a parameter of ours, the tensors that it comes from, and the function of these. A
linear layer of PyTorch has its weight as [out, in], ours as [in, out]; a convolution has
[out, in, rows, columns], ours [rows, columns, in, out].
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np


class Entry(NamedTuple):
    """One parameter of ours.

    Attributes:
      target: its path.
      sources: names of the tensors that it comes from.
      make: these tensors -> the parameter.
    """

    target: str
    sources: tuple[str, ...]
    make: Callable[..., np.ndarray]


Entries = Iterator[Entry]


def same(target: str, source: str, shape: tuple[int, ...] | None = None) -> Entry:
    """A tensor as it is, or in another shape."""
    return Entry(target, (source,), lambda x: x if shape is None else x.reshape(shape))


def linear(target: str, source: str, *, bias: bool = True) -> Entries:
    """A linear layer, or a 1 x 1 convolution, with its bias where it has one."""
    yield Entry(f"{target}/kernel", (f"{source}.weight",), lambda x: x.reshape(x.shape[:2]).T)
    if bias:
        yield same(f"{target}/bias", f"{source}.bias")


def norm(target: str, source: str) -> Entries:
    """Layer norm."""
    yield same(f"{target}/scale", f"{source}.weight")
    yield same(f"{target}/bias", f"{source}.bias")


def convolution(target: str, source: str) -> Entries:
    """A convolution without bias."""
    yield Entry(f"{target}/kernel", (f"{source}.weight",), lambda x: x.transpose(2, 3, 1, 0))


def batch_norm(target: str, source: str) -> Entries:
    """Batch norm with its running statistics."""
    yield from norm(target, source)
    yield same(f"{target}/mean", f"{source}.running_mean")
    yield same(f"{target}/var", f"{source}.running_var")


def attention(
    target: str,
    query: str,
    key: str,
    value: str,
    out: str,
    *,
    heads: int,
    kv_heads: int | None = None,
    bias: bool = True,
    out_bias: bool = True,
) -> Entries:
    """Self-attention of three linear layers, and the one after it.

    Queries have a kernel of their own where keys and values have fewer heads.
    """

    def stacked(path: str, layers: tuple[str, ...], count: int) -> Entries:
        def kernel(*weights: np.ndarray) -> np.ndarray:
            return np.stack([x.T.reshape(x.shape[1], count, -1) for x in weights], axis=1)

        def biases(*rows: np.ndarray) -> np.ndarray:
            return np.stack([x.reshape(count, -1) for x in rows])

        yield Entry(f"{path}/kernel", tuple(f"{x}.weight" for x in layers), kernel)
        if bias:
            yield Entry(f"{path}/bias", tuple(f"{x}.bias" for x in layers), biases)

    if kv_heads in (None, heads):
        yield from stacked(f"{target}/qkv", (query, key, value), heads)
    else:
        path = f"{target}/query"
        yield Entry(
            f"{path}/kernel", (f"{query}.weight",), lambda x: x.T.reshape(x.shape[1], heads, -1)
        )
        if bias:
            yield Entry(f"{path}/bias", (f"{query}.bias",), lambda x: x.reshape(heads, -1))
        yield from stacked(f"{target}/kv", (key, value), kv_heads)
    yield from _out(target, out, heads, out_bias)


def fused_attention(target: str, weight: str, bias: str | None, out: str, *, heads: int) -> Entries:
    """Self-attention whose query, key and value are the thirds of one tensor [3 * width, width]."""
    yield Entry(f"{target}/qkv/kernel", (weight,), lambda x: x.T.reshape(x.shape[1], 3, heads, -1))
    if bias is not None:
        yield Entry(f"{target}/qkv/bias", (bias,), lambda x: x.reshape(3, heads, -1))
    yield from _out(target, out, heads)


def _out(target: str, source: str, heads: int, bias: bool = True) -> Entries:
    yield Entry(
        f"{target}/out/kernel", (f"{source}.weight",), lambda x: x.T.reshape(heads, -1, len(x))
    )
    if bias:
        yield same(f"{target}/out/bias", f"{source}.bias")


def mlp(target: str, wide: str, out: str, *, gate: str = "", bias: bool = True) -> Entries:
    """The two linear layers of an MLP, and that of its gates if it has one."""
    yield from linear(f"{target}/wide", wide, bias=bias)
    if gate:
        yield from linear(f"{target}/gate", gate, bias=bias)
    yield from linear(f"{target}/out", out, bias=bias)


def patches(target: str, source: str, *, bias: bool = True) -> Entries:
    """A convolution whose stride is its size, as a linear layer of flattened patches.

    Ours always has a bias; without one in the source it is 0.
    """
    weight = f"{source}.weight"
    yield Entry(
        f"{target}/kernel", (weight,), lambda x: x.transpose(2, 3, 1, 0).reshape(-1, len(x))
    )
    if bias:
        yield same(f"{target}/bias", f"{source}.bias")
    else:
        yield Entry(f"{target}/bias", (weight,), lambda x: np.zeros(len(x), x.dtype))


def class_positions(target: str, token: str, table: str) -> Entries:
    """A class token and the table of positions that begins with its own.

    Ours has no position at the class token: its value holds the sum.
    """
    yield Entry(f"{target}/cls", (token, table), lambda x, rows: x.reshape(-1) + _rows(rows)[0])
    yield Entry(f"{target}/position", (table,), lambda rows: _rows(rows)[1:])


def _rows(table: np.ndarray) -> np.ndarray:
    """[1, rows, width] or [rows, width] -> [rows, width]."""
    return table.reshape(-1, table.shape[-1])


def block_path(index: int) -> str:
    """Path of a block of a stack that is not scanned, within its encoder."""
    return f"stack/block_{index:02d}"


def split_layers(targets: Sequence[str], weight: str, bias: str | None = None) -> Entries:
    """Linear layers whose weights are equal parts of one tensor, [parts * out, in]."""
    for index, target in enumerate(targets):
        part = functools.partial(_part, len(targets), index)
        yield Entry(f"{target}/kernel", (weight,), part)
        if bias is not None:
            yield Entry(f"{target}/bias", (bias,), part)


def _part(count: int, index: int, x: np.ndarray) -> np.ndarray:
    """A part of [count * out, in], as [in, out]; of [count * out], as [out]."""
    return np.split(x, count)[index].T
