"""Batches of pictures held in memory, as ComfyUI passes them on, instead of files that stream."""
