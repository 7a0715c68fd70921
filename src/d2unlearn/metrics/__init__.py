"""What is measured of answers, likelihoods and energies: pure functions of numbers and texts, without a model."""
