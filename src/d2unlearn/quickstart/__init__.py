"""The whole way on an embedded world of made-up people."""
