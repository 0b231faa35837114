"""The bundled clip and voice, and ``python dev.py demo``."""
