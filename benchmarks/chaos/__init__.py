"""Runs that are killed, starved and damaged must end as those left in peace do."""
