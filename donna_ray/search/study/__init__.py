"""What is searched, and what was asked and told, on disk."""
