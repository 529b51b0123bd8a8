"""Other servers of the same protocol, as small as they can be: they check little and promise nothing."""
