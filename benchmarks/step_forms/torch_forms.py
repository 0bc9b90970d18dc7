"""The PyTorch forms of the step, with the same encoders, parameters, losses and update.

"published" is the published formulation, see step_forms.published. "fused" shares passes: one image
pass, one text pass over all 1 + K texts, and the local loss for all pairs at once. In bfloat16 the
forward pass runs under autocast with float32 parameters, which corresponds to `config.dtype`.
"""

import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import ml_collections
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.step_forms.base import Cost
from benchmarks.step_forms.torch_model import Resnet, Text, Tree, Vit, linear, parameter

Batch = dict[str, Tensor]


def two_way_cross_entropy(logits: Tensor, group: Tensor) -> Tensor:
    """As `objectives.base.two_way_cross_entropy`: logits [B, B], group i64[B]."""
    same = group[:, None] == group[None]
    same = same & ~torch.eye(len(group), dtype=torch.bool, device=group.device)
    kept = logits.float().masked_fill(same, -torch.inf)
    target = torch.arange(len(group), device=group.device)
    return 0.5 * (F.cross_entropy(kept, target) + F.cross_entropy(kept.T, target))


def discrimination_loss(
    image: Tensor, candidates: Tensor, valid: Tensor, log_scale: Tensor
) -> Tensor:
    """As the function of that name in `objectives.perturbed_discrimination`.

    Args:
      image: [B, D]. candidates: [B, 1+K, D]. valid: bool[B, K].
    """
    logits = log_scale.exp() * torch.einsum("bd,bcd->bc", image, candidates).float()
    kept = F.pad(valid, (1, 0), value=True)
    logits = logits.masked_fill(~kept, -torch.inf)
    weight = valid.any(dim=1).float()
    target = torch.zeros(len(image), dtype=torch.long, device=image.device)
    losses = F.cross_entropy(logits, target, reduction="none")
    return (losses * weight).sum() / weight.sum().clamp(min=1)


def similarity(words: Tensor, mask: Tensor, regions: Tensor, temperatures: Any) -> Tensor:
    """Similarity [B, c] of images and captions, as `objectives.local_contrastive`.

    Args:
      words: [c, W, D]. mask: bool[c, W]. regions: [B, R, D].
    """
    first, second, third = temperatures
    scores = torch.einsum("brd,cwd->bcrw", regions, words).float()
    any_word = mask.any(dim=1)  # c
    hidden = ~(mask | ~any_word[:, None])[None]  # 1 c W
    over_words = scores.masked_fill(hidden[:, :, None], -torch.inf).softmax(dim=3)
    attention = (first * over_words).softmax(dim=2)
    context = torch.einsum("bcrw,brd->bcwd", attention, regions).float()
    words = words.float()
    squares = (context**2).sum(dim=3) * (words**2).sum(dim=2)
    cosine = (context * words).sum(dim=3) * squares.clamp(min=1e-12).rsqrt()
    pooled = (second * cosine).masked_fill(hidden, -torch.inf).logsumexp(dim=2)
    return torch.where(any_word, third * pooled, 0.0)


def word_mask(mask: Tensor) -> Tensor:
    """bool[N, L] without the first and the last valid token."""
    position = torch.arange(mask.shape[1], device=mask.device)
    last = torch.where(mask, position, 0).amax(dim=1, keepdim=True)
    return mask & (position > 0) & (position < last)


class Learner(nn.Module):
    """The three losses over both encoders, weighted as in the config: batch -> loss.

    Args:
      tree: `state["params"]` of a TrainStep, as numpy arrays.
      config: the config of that step.
      published: whether to use the published formulation.
    """

    def __init__(self, tree: Tree, config: ml_collections.ConfigDict, published: bool) -> None:
        super().__init__()
        image, text = tree["towers"]["image"], tree["towers"]["text"]
        options = config.towers.image
        self.image: nn.Module
        if options.name == "vit":
            self.image = Vit(image["encoder"], options.patch_size)
        else:
            self.image = Resnet(image["encoder"], options.region_stage)
        self.text = Text(text["encoder"])
        self.image_head = linear(image["heads"]["embedding"]["out"])
        self.text_head = linear(text["heads"]["embedding"]["out"])
        self.region_head = linear(image["heads"]["regions"]["out"])
        self.word_head = linear(text["heads"]["words"]["out"])
        objectives = tree["objectives"]
        self.global_scale = parameter(objectives["global_contrastive"]["logit_scale"]["log"])
        log_scale = objectives["perturbed_discrimination"]["logit_scale"]["log"]
        self.perturbed_scale = parameter(log_scale)
        self.mean = options.get("pixel_mean", 0.5)
        self.std = options.get("pixel_std", 0.25)
        self.weights = {name: options.weight for name, options in config.objectives.items()}
        self.temperatures = config.objectives.local_contrastive.temperatures
        self.losses = self._published if published else self._fused

    def forward(self, batch: Batch) -> Tensor:
        """The weighted sum of the three losses."""
        pairs = self.losses(batch).items()
        return torch.stack([self.weights[name] * loss for name, loss in pairs]).sum()

    def _encode_image(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """u8[B, 1, H, W] -> embeddings [B, D] and region features before their head."""
        pooled, regions = self.image((image.float() / 255.0 - self.mean) / self.std)
        return F.normalize(self.image_head(pooled).float(), dim=1), regions

    def _encode_text(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """[N, L] -> embeddings [N, D] and word features before their head."""
        pooled, words = self.text(tokens, mask)
        return F.normalize(self.text_head(pooled).float(), dim=1), words

    def _fused(self, batch: Batch) -> dict[str, Tensor]:
        image, regions = self._encode_image(batch["image.pixels"])
        tokens = torch.cat([batch["text.tokens"][:, None], batch["perturbed.tokens"]], dim=1)
        mask = torch.cat([batch["text.mask"][:, None], batch["perturbed.mask"]], dim=1)
        texts, words = self._encode_text(tokens.flatten(0, 1), mask.flatten(0, 1))
        candidates = texts.unflatten(0, mask.shape[:2])  # B 1+K D
        words = self.word_head(words.unflatten(0, mask.shape[:2])[:, 0])
        similarities = similarity(
            words, word_mask(batch["text.mask"]), self.region_head(regions), self.temperatures
        )
        return self._losses(batch, image, candidates[:, 0], similarities, image, candidates)

    def _published(self, batch: Batch) -> dict[str, Tensor]:
        original = batch["text.tokens"], batch["text.mask"]
        global_image, _ = self._encode_image(batch["image.pixels"])
        global_text, _ = self._encode_text(*original)
        regions = self.region_head(self._encode_image(batch["image.pixels"])[1])
        words, kept = self.word_head(self._encode_text(*original)[1]), word_mask(original[1])
        columns = [
            similarity(words[i : i + 1], kept[i : i + 1], regions, self.temperatures)
            for i in range(len(words))
        ]
        image, _ = self._encode_image(batch["image.pixels"])
        texts = [self._encode_text(*original)[0]]
        for number in range(batch["perturbed.tokens"].shape[1]):
            copy = batch["perturbed.tokens"][:, number], batch["perturbed.mask"][:, number]
            texts.append(self._encode_text(*copy)[0])
        candidates = torch.stack(texts, dim=1)
        similarities = torch.cat(columns, dim=1)
        return self._losses(batch, global_image, global_text, similarities, image, candidates)

    def _losses(
        self,
        batch: Batch,
        global_image: Tensor,
        global_text: Tensor,
        similarities: Tensor,
        image: Tensor,
        candidates: Tensor,
    ) -> dict[str, Tensor]:
        logits = self.global_scale.exp() * (global_image @ global_text.T)
        return {
            "global_contrastive": two_way_cross_entropy(logits, batch["group"]),
            "local_contrastive": two_way_cross_entropy(similarities, batch["group"]),
            "perturbed_discrimination": discrimination_loss(
                image, candidates, batch["perturbed.valid"], self.perturbed_scale
            ),
        }


def make_optimizer(learner: nn.Module, options: Mapping[str, Any], fused: bool) -> Any:
    """The optimizer of `config.optimizer`, without decay of biases, norms, positions and scales."""
    named = dict(learner.named_parameters())
    norms = [m for m in learner.modules() if isinstance(m, nn.LayerNorm | nn.BatchNorm2d)]
    scales = {id(norm.weight) for norm in norms}
    no_decay = [
        id(p) in scales or name.rpartition(".")[2] in ("bias", "position") or p.ndim == 0
        for name, p in named.items()
    ]
    groups = [
        {
            "params": [
                p for p, free in zip(named.values(), no_decay, strict=True) if free == exempt
            ],
            "weight_decay": 0.0 if exempt else float(options["weight_decay"]),
        }
        for exempt in (False, True)
    ]
    rate = float(options["learning_rate"])
    if options["name"] == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=options["momentum"], fused=fused)
    betas = (float(options["b1"]), float(options["b2"]))
    return torch.optim.AdamW(groups, lr=rate, betas=betas, fused=fused)


class TorchForm:
    """A PyTorch step, see base.Form. It runs on the GPU if there is one.

    Args:
      name: of the form.
      tree, config, published: as in Learner.
      batch: an example, which gives the shapes of all batches.
      compiles: whether to use torch.compile.
    """

    def __init__(
        self,
        name: str,
        tree: Tree,
        config: ml_collections.ConfigDict,
        batch: Mapping[str, np.ndarray],
        published: bool,
        compiles: bool,
    ) -> None:
        self.name = name
        self._cuda = torch.cuda.is_available()
        self._target = torch.device("cuda" if self._cuda else "cpu")
        self.device = torch.cuda.get_device_name() if self._cuda else "cpu"
        self._dtype = torch.bfloat16 if config.dtype == "bfloat16" else None
        self._learner = Learner(tree, config, published).to(self._target).train()
        if self._cuda:
            self._learner = self._learner.to(memory_format=torch.channels_last)
        self._optimizer = make_optimizer(self._learner, config.optimizer, self._cuda)
        self._call: Callable[[Batch], Tensor] = self._learner
        self._loss = torch.zeros(())
        placed = self.place(batch)
        with FlopCounterMode(display=False) as counter:
            self._gradients(placed)
        seconds = 0.0
        if compiles:
            self._call = torch.compile(self._learner)
            first, later = self._timed(placed), self._timed(placed)
            seconds = max(0.0, first - later)
        self.cost = Cost(counter.get_total_flops(), seconds, self._temporary(placed))

    def place(self, batch: Mapping[str, np.ndarray]) -> Batch:
        """Copies a batch to the device; images become [B, C, H, W]."""
        tensors = {name: torch.from_numpy(np.array(array)) for name, array in batch.items()}
        tensors["image.pixels"] = tensors["image.pixels"].permute(0, 3, 1, 2)
        for name in ("text.tokens", "perturbed.tokens", "group"):
            tensors[name] = tensors[name].long()
        return {name: tensor.to(self._target) for name, tensor in tensors.items()}

    def run(self, placed: Batch) -> None:
        """Performs one update."""
        self._gradients(placed)
        self._optimizer.step()
        self._wait()

    def values(self) -> tuple[float, float]:
        """Loss and gradient norm of the last update."""
        gradients = [p.grad for p in self._learner.parameters() if p.grad is not None]
        norms = torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients])
        return float(self._loss), float(torch.linalg.vector_norm(norms))

    def _gradients(self, placed: Batch) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        kind = self._target.type
        low = self._dtype and torch.autocast(kind, dtype=self._dtype)
        with low or contextlib.nullcontext():
            loss = self._call(placed)
        loss.backward()
        self._loss = loss.detach()

    def _timed(self, placed: Batch) -> float:
        began = time.perf_counter()
        self._gradients(placed)
        self._wait()
        return time.perf_counter() - began

    def _temporary(self, placed: Batch) -> int | None:
        """Peak of the CUDA allocator during a pass minus what was allocated before it, in bytes."""
        if not self._cuda:
            return None
        self._optimizer.zero_grad(set_to_none=True)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        self._gradients(placed)
        self._wait()
        return torch.cuda.max_memory_allocated() - before

    def _wait(self) -> None:
        if self._cuda:
            torch.cuda.synchronize()
