"""Finds findings, anatomy and their attributes in English reports, and relations among them."""
