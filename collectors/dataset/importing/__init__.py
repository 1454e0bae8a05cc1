"""Other people's episodes as shards."""
