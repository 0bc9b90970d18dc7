"""Image and text encoders and the pair they form."""

from flax import nnx

# Parameters carry logical axis names that `mmrl.devices.sharding` resolves; without this, creating
# one outside a mesh context is an error.
nnx.use_eager_sharding(False)
