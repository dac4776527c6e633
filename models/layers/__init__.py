"""The blocks that every family is put together from."""
