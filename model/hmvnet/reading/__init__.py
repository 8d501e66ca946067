"""Bytes to values: images, health records, tables, folders. The trust boundary."""
