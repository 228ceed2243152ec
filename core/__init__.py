"""Atelier's engine: a library and a command line for fine-tuning language models; it knows nothing of the studio."""
