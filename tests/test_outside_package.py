"""One module of each kind from a package outside mmrl."""

import sys
import textwrap

import ml_collections
import pytest

from mmrl import config as configs
from mmrl.training.train import Trainer
from mmrl.types import InputError
from tests import toys

MODULES = {
    "distance": """
        import jax.numpy as jnp
        from mmrl.objectives.base import Objective
        from mmrl.types import Loss

        class Distance(Objective):
            reads = {"one": "image.embedding", "two": "sound.embedding"}

            def __call__(self, *, context, one, two):
                value = jnp.mean(jnp.sum((one - two) ** 2, axis=1))
                return Loss(value, {"loss": (value * len(one), jnp.float32(len(one)))})
        """,
    "waves": """
        import numpy as np
        from mmrl.data.inputs.base import Input

        class Waves(Input):
            kind = "sound"

            def shapes(self):
                return {"samples": ((int(self.tower["length"]),), np.float32)}

            def open(self, place):
                return Reader(int(self.tower["length"]))

        class Reader:
            def __init__(self, length):
                self.length = length

            def __call__(self, rows, made):
                times = np.arange(self.length) / self.length
                pitch = np.asarray(rows.indices)[:, None] % 7
                return {"samples": np.sin(2 * np.pi * pitch * times).astype(np.float32)}
        """,
    "sound": """
        from typing import ClassVar
        from mmrl.models.towers.base import Tower

        class Sound(Tower):
            input: ClassVar[str] = "waves"

            def __init__(self, *, encoder, heads, length=16, head="linear", dtype, param_dtype,
                         make_rngs):
                super().__init__(encoder=encoder, heads=heads, head=head, dtype=dtype,
                                 param_dtype=param_dtype, make_rngs=make_rngs)

            @staticmethod
            def encoder_options(given):
                return {"length": given["length"]}

            def __call__(self, inputs, wanted, *, train=False, key=None):
                return {
                    name: self._pooled(self.encoder(inputs[name]["samples"]), features)
                    for name, features in wanted.items()
                }
        """,
    "spectrum": """
        import jax.numpy as jnp
        from flax import nnx
        from mmrl.models.layers import dense

        class Spectrum(nnx.Module):
            def __init__(self, *, length, width=8, dtype, param_dtype, rngs):
                self.width = width
                self.out = dense(length // 2 + 1, width, ("embed", "mlp"), dtype=dtype,
                                 param_dtype=param_dtype, rngs=rngs)

            def __call__(self, samples):
                return self.out(jnp.abs(jnp.fft.rfft(samples)))
        """,
    "muted": """
        import jax
        from mmrl.models.derived.base import Derived

        class Muted(Derived):
            of = "waves"
            batch = {"index": "index"}

            def __init__(self, *, share=0.5):
                self.share = share

            def __call__(self, *, context, given, index):
                def silence(key, samples):
                    return samples * (jax.random.uniform(key, samples.shape) >= self.share)

                return {"samples": jax.vmap(silence)(context.row_keys(index), given["samples"])}
        """,
    "chord": """
        from mmrl.models.fusion.base import Fusion
        from mmrl.models.layers import dense
        from mmrl.vectors import l2_normalize

        class Chord(Fusion):
            reads = {"image": "image.pooled", "sound": "sound.pooled"}
            features = ("embedding",)

            def __init__(self, *, widths, dtype, param_dtype, make_rngs, width=8):
                self.width = width
                for name, size in widths.items():
                    setattr(self, name, dense(size, width, ("embed", "joint"), dtype=dtype,
                                              param_dtype=param_dtype, rngs=make_rngs(name)))

            def width_of(self, feature):
                return self.width

            def __call__(self, wanted, *, train, key, image, sound):
                return {"embedding": l2_normalize(self.image(image) + self.sound(sound))}
        """,
    "peak": """
        import jax
        from mmrl.models.pool.base import Pooler

        class Peak(Pooler):
            def __init__(self, *, width, grid, dtype, param_dtype, rngs):
                self.width = width

            def __call__(self, regions, mask=None, grid=None):
                return jax.nn.logsumexp(regions, axis=1)
        """,
    "closeness": """
        import numpy as np
        from mmrl.evaluators.base import Estimate, Evaluator, Results, identity

        class Closeness(Evaluator):
            reads = {"one": "image.embedding", "two": "sound.embedding"}

            def run(self, state):
                found = self.predict.encode(state, self.data, list(self.names.values()))
                one, two = (found[name] for name in self.names.values())
                value = float(np.mean(np.sum(one * two, axis=1)))
                return Results("closeness@1", {"cosine": Estimate(value)}, len(one),
                               identity(self.data), self.data.preprocessing)
        """,
}


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder = tmp_path / "hospital"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    for name, text in MODULES.items():
        (folder / f"{name}.py").write_text(textwrap.dedent(text))
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "hospital"]:
        del sys.modules[name]


def outside() -> ml_collections.ConfigDict:
    """The toy config with one line for each of the modules."""
    config = toys.config(total_steps=3, compile_cache="", tensorboard=False, eval_every=0)
    config.optimizer.warmup_steps = 1
    image = config.towers.image
    image.heads, image.pool = {"embedding": 8}, "hospital.peak"
    sound = {
        "kind": "hospital.sound",
        "name": "hospital.spectrum",
        "length": 16,
        "heads": {"embedding": 8},
    }
    config.towers = {"image": image, "sound": sound}
    config.inputs = {"waves": {"name": "hospital.waves"}}
    config.derived = {"muted": {"name": "hospital.muted", "share": 0.25}}
    config.fusions = {"chord": {"name": "hospital.chord"}}
    config.objectives = {
        "distance": {"name": "hospital.distance", "weight": 2.0},
        "fused": {
            "name": "hospital.distance",
            "reads": {"one": "chord.embedding", "two": "chord@muted.embedding"},
        },
    }
    config.evaluators = {"closeness": {"name": "hospital.closeness"}}
    return config


@pytest.mark.exhaustive
@pytest.mark.optax
def test_modules_from_outside_train_and_evaluate(package, tmp_path):
    trainer = Trainer(outside(), tmp_path / "run")
    trained, results = trainer.run()
    assert trained.step == 3
    assert -1 <= results["closeness"].values["cosine"].value <= 1
    assert "sound" in trained.state["params"]["towers"]
    assert set(trained.state["params"]["fusions"]["chord"]) == {"image", "sound"}


def test_a_missing_module_or_class_is_named(package):
    config = outside()
    config.objectives.distance.name = "hospital.nothing"
    with pytest.raises(InputError, match=r"objective 'hospital.nothing': No module named"):
        configs.validate(config)
    (package / "nothing.py").write_text("")
    with pytest.raises(InputError, match=r"expected a module with a class Nothing"):
        configs.validate(config)
