"""Configs sized for accelerators, each with the plan that says where it fits."""
