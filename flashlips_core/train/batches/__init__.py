"""What the stages learn from: clips, labels, crops, sounds; drawn, changed and encoded."""
