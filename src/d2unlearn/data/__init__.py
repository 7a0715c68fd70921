"""From files to token ids: reading rows, rendering them with a template, and batching."""
