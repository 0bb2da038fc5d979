"""What differs between tasks: head, supervised loss, metrics, columns, decoding. One file, one task; `table.py` is the list."""
