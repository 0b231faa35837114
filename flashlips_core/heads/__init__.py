"""Rendered heads: the same face, pose and light with different mouths, which no camera can film."""
