"""The way to an Android phone: connection, shell, files, condition, and what measures there."""
