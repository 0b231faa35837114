"""How fast, how big, how much memory."""
