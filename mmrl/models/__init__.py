"""Image and text encoders, and the dual encoder that combines them."""

from flax import nnx

# Parameters carry logical axis names, which `mmrl.devices.sharding` maps to mesh axes. With eager
# sharding, creating such a parameter outside a mesh context would be an error.
nnx.use_eager_sharding(False)
