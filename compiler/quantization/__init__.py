"""A scheme: how a tensor is stored. `scheme` is the table, `group` the arithmetic."""
