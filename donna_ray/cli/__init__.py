"""The command line: `donna`, one module a group of commands."""
