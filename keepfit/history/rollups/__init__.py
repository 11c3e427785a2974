"""What roll-ups keep of documents that expire, and which queries they answer."""
