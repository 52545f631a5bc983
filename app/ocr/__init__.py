"""The torch boundary: only modules in here, and ``rtprune``, import torch."""
