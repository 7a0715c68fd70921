"""Training a method's loss: the reference computed once, the trainer, the artifact that comes out."""
