"""One check per file, named as its preset in configs/systems/."""
