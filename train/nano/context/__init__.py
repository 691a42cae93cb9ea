"""A longer context, taught to nano and measured on it."""
