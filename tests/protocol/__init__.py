"""The wire contract of PROTOCOL.md, line by line."""
