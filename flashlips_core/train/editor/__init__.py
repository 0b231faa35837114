"""The editor's training: the paper's own way (``paper``), and ours on latents that are encoded once (``pairs``)."""
