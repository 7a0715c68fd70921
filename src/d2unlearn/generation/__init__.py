"""Generation with the gate in it."""
