"""Checkpoints and the model: files to an ``OcrModel`` that the engine runs."""
