"""Plans a training step for devices that need not be present: `python -m mmrl.plan`."""
