"""Attacks on a model that forgot: what a score at rest does not show."""
