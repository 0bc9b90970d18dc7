"""The Python interface to trained encoders: `mmrl.load(path)`."""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import PIL.Image

from mmrl import build, encoder_folder, hub, sequences, wiring
from mmrl.data.image import channels, readers
from mmrl.data.image.arrays import Range
from mmrl.data.image.images import Geometry, Preprocess
from mmrl.data.inputs import base as inputs
from mmrl.data.text import reports, spans
from mmrl.devices import choice
from mmrl.evaluators import grounding, pointing, sentence_pointing, statistics
from mmrl.remote import opened
from mmrl.training import run
from mmrl.training.predict import Predict
from mmrl.types import InputError

Image = str | os.PathLike[str] | bytes | np.ndarray | jax.Array | PIL.Image.Image
Word = tuple[str, int, int]
"""A word, and where it starts and ends in its text, in characters."""

_IMAGES = (str, os.PathLike, bytes, np.ndarray, jax.Array, PIL.Image.Image)
# The objectives that contrast images with whole reports; their scale is that of similarities.
_CONTRASTS = ("global_contrastive", "siglip")


@dataclasses.dataclass(frozen=True)
class Heatmap:
    """Where in an image the words of a text look, or its sentences.

    Attributes:
      words: W words or sentences, with their places in the text.
      weights: f32[W, rows, columns], the attention of each over the regions; each sums to 1.
      geometry: maps pixels of the original image to the square that the encoder sees.
      height, width: of the original image. size: side of the square. All in pixels.
    """

    words: list[Word]
    weights: np.ndarray
    geometry: Geometry
    height: int
    width: int
    size: int

    def over(self, index: int) -> np.ndarray:
        """The map of one word in pixels of the original image.

        Returns:
          f64[height, width], the weight of the nearest region; NaN where the encoder sees nothing.
        """
        weights = self.weights[index]
        return grounding.heat_map(weights, self.height, self.width, self.geometry, self.size)


class Encoder:
    """Embeds images and texts exactly as evaluation does. Threads may share one.

    Example:
      ```python
      encoder = mmrl.load("runs/pretrain")
      similarity = encoder.embed_images(["a.png"]) @ encoder.embed_texts(["No effusion."]).T
      ```

    Images are paths or the bytes of DICOM, JPEG, PNG, TIFF or WebP files, whose content decides
    their kind; arrays or Pillow images. A tower of three channels sees colour, unless its config or
    `load` says otherwise. Kinds and sizes may be mixed. Arrays of u8 and u16 use their whole range,
    floats that from 0 to 1, unless `value_range` = (black, white) states another.
    `allow_burned_in` accepts DICOM images whose header says that text is burned into the pixels.

    Attributes:
      dim: D, width of the joint space; 0 without one.
      step: of the checkpoint in use; None for encoders that were not trained here.
      names: of all encodings, such as image.embedding and text.pooled.
      grid: (rows, columns) of the regions of an image; None without an image tower.
      trained: config, tokenizers, parameters and digests, as commands use them.
      weights_sha256: digest of the weights, as in the manifest of exported embeddings.
    """

    def __init__(
        self,
        trained: run.Trained,
        device: jax.Device | None = None,
        *,
        colour: bool | None = None,
    ) -> None:
        self.trained = trained
        self._device, self._colour = device, colour
        self.names = trained.predict.provides
        heads = [dict(tower.heads) for tower in trained.config.towers.values()]
        given: Any = next((head["embedding"] for head in heads if "embedding" in head), 0)
        self.dim = int(given["width"] if hasattr(given, "items") else given)
        self.step = trained.step
        self.grid: tuple[int, int] | None = trained.predict.grids.get("image")

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        step: int | Literal["best"] | None = None,
        batch_size: int = 64,
        device: str | jax.Device | None = None,
        colour: bool | None = None,
    ) -> "Encoder":
        """Loads encoders.

        Args:
          path: a run; a folder of `python -m mmrl.convert` or `mmrl.export`; an address of one of
            these on an object store, such as s3://bucket/run; or hf://OWNER/NAME, such a folder
            on the Hugging Face hub, from the local cache if it is there.
          step: of the checkpoint of a run; by default the latest; "best": the one that it chose.
          batch_size: items of one call of the device; fewer are filled up to it.
          device: "cpu", "gpu", "gpu:1" or a device of JAX; by default batches are spread over all.
          colour: whether towers of three channels see colour, or the luma in all three; by default
            as config.data.colour of the encoder says.

        Raises:
          InputError: `path` is no path or holds no encoders, or the run has no such step, or chose
            no best one; a batch size below 1; no such device; colour for a tower of one channel.
        """
        if not isinstance(path, sequences.PATHS):
            given = type(path).__name__
            raise InputError(f"path is {given}; expected the path of a run or of an encoder")
        if type(batch_size) is not int or batch_size < 1:
            raise InputError(f"batch_size={batch_size!r}; expected an integer from 1")
        chosen = None if device is None else choice.find(device)
        mesh = run.whole_mesh(None if chosen is None else [chosen])
        on_hub = str(path).startswith(hub.PREFIX)
        if on_hub:
            folder = hub.fetch(str(path))
        elif opened.is_address(str(path)):
            folder = opened.reading("path", str(path))
        else:
            folder = Path(path)
        if on_hub or encoder_folder.is_encoder(folder):
            if step is not None:
                raise InputError(f"{path} holds one encoder without steps; given: step={step}")
            trained = run.read_encoder(folder, mesh=mesh)
        elif not (folder / "checkpoints").is_dir():
            raise InputError(
                f"{path} holds neither a trained run nor encoders of mmrl; expected a run, a "
                "folder of python -m mmrl.convert or of mmrl.export, or hf://OWNER/NAME"
            )
        else:
            trained = run.restore(folder, step=step, mesh=mesh)
        predict = Predict(trained.predict.layout, mesh, batch_size=batch_size)
        for tower, facts in trained.encoders().items():
            if colour and facts.get("channels", 3) != 3:  # towers of texts state none
                raise InputError(f"colour=True, but tower {tower} of {trained} reads one channel")
        return cls(dataclasses.replace(trained, predict=predict), chosen, colour=colour)

    def with_batch_size(self, batch_size: int) -> "Encoder":
        """The same encoders with batches of another size; they share their weights."""
        mesh = run.whole_mesh(None if self._device is None else [self._device])
        predict = Predict(self.trained.predict.layout, mesh, batch_size=batch_size)
        trained = dataclasses.replace(self.trained, predict=predict)
        return Encoder(trained, self._device, colour=self._colour)

    @functools.cached_property
    def weights_sha256(self) -> str:
        """See the class."""
        return self.trained.weights_sha256()

    @functools.cached_property
    def logit_scale(self) -> float | None:
        """The factor of cosines in the contrast of images and reports; None without one."""
        log = self._of_contrast("logit_scale/log")
        return None if log is None else float(np.exp(log))

    @functools.cached_property
    def logit_bias(self) -> float | None:
        """What SigLIP's contrast adds to scaled cosines; None for other encoders."""
        bias = self._of_contrast("logit_bias")
        return None if bias is None else float(bias)

    def embed_images(
        self,
        items: Sequence[Image],
        *,
        name: str = "image.embedding",
        value_range: Range | None = None,
        allow_burned_in: bool = False,
        as_jax: bool = False,
    ) -> Any:
        """Embeds images; the class describes them.

        Args:
          name: the encoding, "<image tower>.<feature>".
          as_jax: return an array of JAX, on the device of the encoder.

        Returns:
          f32[N, D], L2-normalised.

        Raises:
          InputError: a single item in place of a list, an item of another type, shape or range, or
            a file that cannot be read; the message gives its index.
        """
        images = self._images(items, value_range, allow_burned_in)
        return self._out(self._encode(images, name)[name], as_jax)

    def embed_texts(
        self, texts: Sequence[str], *, name: str = "text.embedding", as_jax: bool = False
    ) -> Any:
        """Embeds reports, sentences or prompts: f32[N, D], L2-normalised.

        Texts longer than the length of the tower are cut, as in training.

        Args:
          name: the encoding, "<text tower>.<feature>".
          as_jax: as of `embed_images`.

        Raises:
          InputError: a single text in place of a list, or an item that is no Unicode text; the
            message gives its index.
        """
        return self._out(self._encode(_Texts(self.trained, texts), name)[name], as_jax)

    def regions(
        self,
        items: Sequence[Image],
        *,
        value_range: Range | None = None,
        allow_burned_in: bool = False,
        as_jax: bool = False,
    ) -> Any:
        """Embeds the regions of images, row by row of `grid`: f32[N, R, D'], L2-normalised.

        Raises:
          InputError: as of `embed_images`; the encoder has no head for regions.
        """
        self._need("regions", "image.regions")
        images = self._images(items, value_range, allow_burned_in)
        found = self._encode(images, "image.regions")["image.regions"]
        return self._out(statistics.unit_rows(found, "image.regions", _numbers(found)), as_jax)

    def words(self, text: str) -> tuple[list[Word], np.ndarray]:
        """Embeds the words of a text: W words and f32[W, D'], L2-normalised.

        A word of several tokens has the mean of their embeddings. Words that do not fit in the
        length of the tower are left out.

        Raises:
          InputError: no Unicode text; the encoder has no head for words.
        """
        self._need("words", "text.words")
        given = _Texts(self.trained, [sequences.text(text, "text")])
        found = self._encode(given, "text.words")["text.words"]
        words, positions = self._positions(text)
        whole = pointing.by_word(found[0], positions)
        return words, statistics.unit_rows(whole, "text.words", [word for word, *_ in words])

    def word_heatmap(
        self,
        image: Image,
        text: str,
        *,
        value_range: Range | None = None,
        allow_burned_in: bool = False,
    ) -> Heatmap:
        """Where each word of a text looks: its attention over regions in the local contrast.

        A word of several tokens has the mean of their maps (GLoRIA, Huang et al. 2021, equations
        4-5). The temperature is that of the run, or that of the local contrast by default.

        Raises:
          InputError: as of `embed_images` and `words`; the encoder lacks heads for regions and
            words, or their widths differ.
        """
        self._need("a heatmap of words", "image.regions", "text.words")
        pixels = self._pixels(image, value_range, allow_burned_in)
        regions = self._encode(self._images([pixels]), "image.regions")["image.regions"]
        given = _Texts(self.trained, [sequences.text(text, "text")])
        found = self._encode(given, "text.words", "text.word_mask")
        tokens, mask = found["text.words"][0], found["text.word_mask"][0].astype(bool)
        self._need_width("words", tokens.shape[-1], regions.shape[-1])
        temperature = self._option("local_contrastive", "temperatures")[0]
        attention = pointing.word_region_attention(
            tokens, mask, regions[0], temperature=temperature
        )
        words, positions = self._positions(text)
        return self._heatmap(words, pointing.by_word(attention, positions), pixels)

    def sentence_heatmap(
        self,
        image: Image,
        text: str,
        *,
        value_range: Range | None = None,
        allow_burned_in: bool = False,
    ) -> Heatmap:
        """Where each sentence of a text, encoded alone, looks: its attention over regions.

        The attention is that of the contrast of sentences with regions. A word alone is a sentence,
        too. The sharpness is that of the run, or that of the contrast by default.

        Raises:
          InputError: as of `embed_images`; the encoder lacks heads for regions and sentences, or
            their widths differ.
        """
        self._need("a heatmap of sentences", "image.regions", "text.sentence")
        pixels = self._pixels(image, value_range, allow_burned_in)
        regions = self._encode(self._images([pixels]), "image.regions")["image.regions"]
        places = reports.sentence_spans(sequences.text(text, "text"))
        sentences = [(text[start:end], start, end) for start, end in places]
        given = _Texts(self.trained, [sentence for sentence, *_ in sentences])
        found = self._encode(given, "text.sentence")["text.sentence"]
        self._need_width("sentences", found.shape[-1], regions.shape[-1])
        every = np.broadcast_to(regions, (len(found), *regions.shape[1:]))
        sharpness = self._option("sentence_contrastive", "sharpness")
        return self._heatmap(
            sentences, sentence_pointing.sentence_maps(found, every, sharpness), pixels
        )

    def preprocess(
        self,
        items: Sequence[Image],
        *,
        tower: str = "image",
        value_range: Range | None = None,
        allow_burned_in: bool = False,
    ) -> np.ndarray:
        """Images as a tower gets them: u8[N, S, S, C], C the channels of the tower.

        `embed_images` of these arrays gives the embeddings of the images.

        Raises:
          InputError: as of `embed_images`; no such image tower.
        """
        name = self._input(tower, "image")
        images = self._images(items, value_range, allow_burned_in)
        return images.arrays([name], range(len(images)), tower)[f"{name}.pixels"]

    def tokenize(
        self, texts: Sequence[str], *, tower: str = "text"
    ) -> tuple[np.ndarray, np.ndarray]:
        """Tokens i32[N, L] and their mask bool[N, L], as a tower gets them.

        Raises:
          InputError: as of `embed_texts`; no such text tower.
        """
        name = self._input(tower, "text")
        given = _Texts(self.trained, texts)
        arrays = given.arrays([name], range(len(given)), tower)
        return arrays[f"{name}.tokens"], arrays[f"{name}.mask"]

    def _images(
        self,
        items: Sequence[Image],
        value_range: Range | None = None,
        allow_burned_in: bool = False,
    ) -> "_Images":
        given = sequences.of(items, "items", _IMAGES)
        read = functools.partial(
            readers.pixels, value_range=value_range, allow_burned_in=allow_burned_in
        )
        return _Images(self.trained, given, read, self._colour)

    def _pixels(self, image: Image, value_range: Range | None, allow_burned_in: bool) -> np.ndarray:
        """One image in grey before it is resized, u8 or u16 [H, W]."""
        if not isinstance(image, _IMAGES):
            raise InputError(f"image is {type(image).__name__}; expected a file or an array")
        return readers.pixels(image, value_range=value_range, allow_burned_in=allow_burned_in)

    def _encode(self, items: "_Images | _Texts", *names: str) -> dict[str, np.ndarray]:
        """Encodings [N, ...] by name; numbers are f32."""
        predict = self.trained.predict
        parts = list(predict.stream(self.trained.state, items, names))
        whole = {name: np.concatenate([part[name] for part in parts]) for name in names}
        return {name: array.astype(np.float32, copy=False) for name, array in whole.items()}

    def _out(self, array: np.ndarray, as_jax: bool) -> Any:
        return jax.device_put(array, self._device) if as_jax else array

    def _heatmap(self, words: list[Word], maps: np.ndarray, pixels: np.ndarray) -> Heatmap:
        assert self.grid is not None
        own = self._images([]).prepared(self._input("image", "image"), "image")
        weights = maps.reshape(len(words), *self.grid).astype(np.float32)
        height, width = pixels.shape
        geometry = own.geometry(height, width)
        return Heatmap(words, weights, geometry, height, width, own.size)

    def _positions(self, text: str) -> tuple[list[Word], list[list[int]]]:
        """The words of a text, and the places of their tokens."""
        tokens, _ = self.tokenize([text])
        found = self.trained.tokenizers["text"].words(tokens[0])
        names = [word for word, _ in found]
        places = spans.locate(text, names)
        words = [(name, *place) for name, place in zip(names, places, strict=True)]
        return words, [positions for _, positions in found]

    def _need(self, what: str, *names: str) -> None:
        lacking = [name for name in names if name not in self.names]
        if lacking:
            raise InputError(
                f"{self.trained} lacks {', '.join(lacking)} for {what}; it provides "
                f"{', '.join(self.names)}"
            )

    def _need_width(self, what: str, width: int, expected: int) -> None:
        if width != expected:
            raise InputError(
                f"{self.trained}: {what} have {width} features and regions {expected}; a heatmap "
                "needs heads of one width"
            )

    def _input(self, tower: str, kind: str) -> str:
        """The input that a tower of some kind reads."""
        towers = self.trained.config.towers
        of_kind = [name for name, given in towers.items() if wiring.kind_of(name, given) == kind]
        if tower not in of_kind:
            raise InputError(build.unknown(f"{kind} tower of {self.trained}:", tower, of_kind))
        return wiring.own_inputs(towers)[tower]

    def _option(self, objective: str, option: str) -> Any:
        """An option of the objective of the run, or its default where the run has none."""
        given = self._objective((objective,))
        default = build.options(build.find("objective", objective))[option].default
        return default if given is None else given.options.get(option, default)

    def _objective(self, modules: Sequence[str], *reads: str) -> "_Objective | None":
        """The first objective of the run that is one of some modules and reads some encodings."""
        config = self.trained.config
        if not config.objectives:
            return None
        _, encodings, _ = wiring.wire(config)
        for name, options in config.objectives.items():
            read = {str(one) for one in encodings[name].values()}
            if wiring.chosen_module(name, options) in modules and read >= set(reads):
                return _Objective(name, options)
        return None

    def _of_contrast(self, parameter: str) -> np.ndarray | None:
        """A parameter of the contrast of images and reports; None without one."""
        if self.trained.step is None:
            own = encoder_folder.read(self.trained.folder)
            found = (own.array(f"objectives/{name}/{parameter}") for name in _CONTRASTS)
            return next((array for array in found if array is not None), None)
        own_inputs = wiring.own_inputs(self.trained.config.towers)
        reads = (f"{one}@{own_inputs.get(one, '')}.embedding" for one in ("image", "text"))
        chosen = self._objective(_CONTRASTS, *reads)
        if chosen is None:
            return None
        layout = self.trained.predict.layout
        found = layout.weights_of(self.trained.state)["params"]["objectives"][chosen.name]
        for key in parameter.split("/"):
            if key not in found:
                return None
            found = found[key]
        return np.asarray(jax.device_get(found))


class _Objective(NamedTuple):
    """An objective of a run."""

    name: str
    options: Mapping[str, Any]


class _Images:
    """Images from outside a corpus, as `Predict` takes them."""

    def __init__(
        self,
        trained: run.Trained,
        items: Sequence[Image],
        read: Callable[..., np.ndarray],
        colour: bool | None,
    ) -> None:
        self._config, self._items = trained.config, items
        self._read, self._colour = read, colour

    def __len__(self) -> int:
        return len(self._items)

    def arrays(
        self, names: Sequence[str], rows: Sequence[int], tower: str = ""
    ) -> dict[str, np.ndarray]:
        """Pixels of some images, under the name of the input that the tower reads."""
        made = {}
        for name in names:
            own = self._own(name, tower)
            squares = [self._square(own, row) for row in rows]
            (shape, dtype) = own.shapes()["pixels"]
            made[f"{name}.pixels"] = np.stack(squares) if squares else np.zeros((0, *shape), dtype)
        return made

    def _square(self, own: Any, row: int) -> np.ndarray:
        """One image as the tower gets it, u8[S, S, C]."""
        shown = own.colour != "grey" if self._colour is None else self._colour
        try:
            pixels = self._read(self._items[row], colour=shown and own.channels == 3)
            square = own.preprocess(pixels)
        except InputError as error:
            raise InputError(f"image {row}: {error}") from None
        if square.ndim == 3:
            return square
        return channels.repeated(square) if own.channels == 3 else square[..., None]

    def prepared(self, name: str, tower: str) -> Preprocess:
        """How an input prepares images for a tower."""
        return self._own(name, tower).preprocess

    def _own(self, name: str, tower: str) -> Any:
        return inputs.make_one(self._config, name, tower)


class _Texts:
    """Texts from outside a corpus, as `Predict` takes them."""

    def __init__(self, trained: run.Trained, texts: Sequence[str]) -> None:
        self._trained = trained
        self._texts = [reports.normalise(text) for text in sequences.each(texts, "texts")]

    def __len__(self) -> int:
        return len(self._texts)

    def arrays(
        self, names: Sequence[str], rows: Sequence[int], tower: str = ""
    ) -> dict[str, np.ndarray]:
        """Tokens of some texts, under the name of the input that the tower reads."""
        length = int(self._trained.config.towers[tower].length)
        texts = [self._texts[row] for row in rows]
        tokens, mask, _ = self._trained.tokenizers[tower].encode_batch(texts, length)
        return {
            f"{name}.{array}": value
            for name in names
            for array, value in {"tokens": tokens, "mask": mask}.items()
        }


def _numbers(rows: np.ndarray) -> list[str]:
    return [f"item {number}" for number in range(len(rows))]
