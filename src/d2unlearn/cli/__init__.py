"""The command line: one file a verb, which parses and prints and does nothing else."""
