"""Lip poses in time: ``motion`` changes whole tracks, ``operations`` are an artist's edits that a file can hold."""
