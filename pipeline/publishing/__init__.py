"""Publishing to the Hugging Face Hub, object stores and folders."""
