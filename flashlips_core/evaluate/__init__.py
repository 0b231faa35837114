"""What a model is worth: dubs of held-out clips, watched by networks that took no part in making them."""
