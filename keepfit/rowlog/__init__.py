"""The row log: accepted rows in blob storage, and its compaction."""
