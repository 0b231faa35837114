"""Training: one loop (``loop``), one file per stage, and the table of them (``presets``)."""
