"""Learning one person from one clip of them: editor, decoder, way of speaking."""
