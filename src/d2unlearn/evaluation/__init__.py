"""Measuring what a model knows: pure metrics, the suites they are taken on, and the file they are kept in."""
