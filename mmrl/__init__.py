"""mmrl: pretrain, judge and ship biomedical image+report encoders in JAX."""

__version__ = "0.1.0"
