"""The Hugging Face Hub, object stores and folders to publish to."""
