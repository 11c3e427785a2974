"""What is done to the history by itself: roll-ups and retention."""
