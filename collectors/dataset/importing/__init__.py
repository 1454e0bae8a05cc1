"""Import of other people's episodes as shards."""
