"""A message on its way: to its receiver, to disk, to a mailbox."""
