"""Checks of published systems on phantoms, with thresholds that are frozen before the last runs."""
