"""Anybody's outputs, measured beside their sources: ``python -m flashlips_core eval --pairs`` and the *Score Lip Sync* node."""
