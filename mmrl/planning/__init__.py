"""What a step will need on devices that are not there: `python -m mmrl.plan`."""
