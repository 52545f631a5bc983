"""Checkpoints and the model: turn files into an ``OcrModel`` that the engine runs."""
