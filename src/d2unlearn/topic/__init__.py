"""From the name of a topic to files: what a model is asked about it, what it demonstrably knows, and what stands beside it."""
