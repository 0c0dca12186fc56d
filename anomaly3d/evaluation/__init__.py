"""Tables of scores -> metrics."""
