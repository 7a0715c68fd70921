"""The version of this package: a part of every key and every manifest."""

__version__ = "0.2.0"
